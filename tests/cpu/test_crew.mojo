"""Crews: that all members take part, what is refused, and that nothing is left behind."""

from std.atomic import Atomic
from std.ffi import external_call
from std.os import listdir
from std.testing import TestSuite, assert_equal, assert_raises, assert_true

from llm.cpu.threads.cores import threads_at_once, usable_cpus
from llm.cpu.threads.crew import Crew, Team, share

comptime RLIMIT_AS = Int32(9)
comptime PAGE = 4096
comptime CLOCK_PROCESS_CPUTIME_ID = Int32(2)


def num_threads() raises -> Int:
    """Counts the threads of this process."""
    return len(listdir("/proc/self/task"))


def pages_of_process(field: Int) raises -> Int:
    """Returns a number of /proc/self/statm: 0 for the address space, 1 for memory in use."""
    with open("/proc/self/statm", "r") as file:
        return Int(String(file.read().split(" ")[field]))


def set_address_space(bytes: Int) raises:
    """Limits this process's address space; -1 for no limit."""
    # struct rlimit: the limit now, and that to which it can be raised again.
    var limits = [bytes, -1]
    assert_equal(external_call["setrlimit", Int32](RLIMIT_AS, Int(limits.unsafe_ptr())), 0)
    # An address keeps nothing alive.
    _ = limits^


def crew_is_refused_a_thread() -> Bool:
    """Tells whether a crew of 64 threads is refused."""
    try:
        var crew = Crew(64)
        _ = crew^
        return False
    except error:
        return "the system refuses thread" in String(error) and "of 64" in String(error)


def test_every_member_takes_part() raises:
    """Each member writes its share, and after the barrier reads what all the others wrote."""
    for size in [1, 2, 3, 7]:
        var crew = Crew(size)
        for n in [0, 1, size - 1, size, 1000 * size + 1]:
            var written = List[Int](length=n, fill=-1)
            var sums = List[Int](length=size, fill=-1)

            def body(team: Team) {mut written, mut sums, imm n}:
                def write(member: Int) {mut written, imm n, imm team}:
                    var lo, hi = share(n, team.size, member)
                    for i in range(lo, hi):
                        written[i] = i

                def add(member: Int) {mut sums, imm written}:
                    var sum = 0
                    for number in written:
                        sum += number
                    sums[member] = sum

                team.run(write)
                team.run(add)

            for _ in range(50):
                crew.run(body)
                for sum in sums:
                    assert_equal(sum, n * (n - 1) // 2)
                written = List[Int](length=n, fill=-1)
                sums = List[Int](length=size, fill=-1)


def test_members_are_side_by_side() raises:
    """Each waits inside the body until all have come, which one after another could never end."""
    var crew = Crew(3)
    var arrived = Atomic[Int64](0)

    def body(team: Team) {mut arrived}:
        _ = arrived.fetch_add(1)
        while arrived.load() < 3:
            _ = external_call["sched_yield", Int32]()

    crew.run(body)
    assert_equal(arrived.load(), 3)


def test_a_size_below_one_is_refused() raises:
    for size in [0, -1]:
        with assert_raises(contains="expected at least 1"):
            _ = Crew(size)


def test_a_crew_that_fails_leaves_nothing() raises:
    """No thread, and no memory: two thousand states would be 900 KB."""
    var before = num_threads()
    set_address_space(pages_of_process(0) * PAGE + 100_000_000)
    var refused = 0
    var early = 0
    for i in range(2_100):
        refused += Int(crew_is_refused_a_thread())
        if i == 100:
            early = pages_of_process(1)
    var late = pages_of_process(1)
    set_address_space(-1)
    assert_equal(refused, 2_100)
    assert_equal(num_threads(), before)
    assert_true((late - early) * PAGE < 400_000, String(t"{(late - early) * PAGE} bytes more"))
    var crew = Crew(64)
    assert_equal(num_threads(), before + 63)
    _ = crew^
    assert_equal(num_threads(), before)


def test_two_threads_cannot_run_at_once() raises:
    """The members of one crew call another, at the same time: one call runs, the other is refused."""
    var callers = Crew(2)
    var crew = Crew(2)
    var begun = Atomic[Int64](0)
    var refused = Atomic[Int64](0)
    var message = String()

    def callers_body(team: Team) {mut begun, mut refused, mut message, imm crew}:
        def call(member: Int) {mut begun, mut refused, mut message, imm crew}:
            def body(team: Team) {mut begun, mut refused}:
                _ = begun.fetch_add(1)
                while refused.load() == 0:
                    _ = external_call["sched_yield", Int32]()

            if member == 1:
                while begun.load() == 0:
                    _ = external_call["sched_yield", Int32]()
            try:
                crew.run(body)
            except error:
                message = String(error)
                _ = refused.fetch_add(1)

        team.run(call)

    callers.run(callers_body)
    assert_equal(begun.load(), 2)
    assert_equal(refused.load(), 1)
    assert_true("one call at a time" in message, message)
    # The refused call has disturbed nothing.
    assert_runs(crew)


def assert_runs(crew: Crew) raises:
    """Checks that a body runs once in every member."""
    var calls = Atomic[Int64](0)

    def body(team: Team) {mut calls}:
        _ = calls.fetch_add(1)

    crew.run(body)
    assert_equal(calls.load(), Int64(crew.size))


def test_a_body_cannot_run_its_own_crew() raises:
    var crew = Crew(2)
    var refused = Atomic[Int64](0)

    def body(team: Team) {mut refused, imm crew}:
        def inner(team: Team) {}:
            pass

        try:
            crew.run(inner)
        except:
            _ = refused.fetch_add(1)

    crew.run(body)
    assert_equal(refused.load(), 2)
    assert_runs(crew)


def status_of_child(pid: Int32) raises -> Int32:
    """Waits for a child process and returns its exit status; -1 if a signal ended it."""
    var status = Int32(0)
    assert_equal(external_call["waitpid", Int32](pid, Int(Pointer(to=status)), Int32(0)), pid)
    return (status >> 8) & 0xFF if status & 0x7F == 0 else -1


def test_after_fork() raises:
    """In the child, run is refused, the destructor ends, and a new crew works; the parent's crew goes on."""
    var crew = Crew(3)
    assert_runs(crew)
    var pid = external_call["fork", Int32]()
    if pid == 0:
        # A child that hangs is ended by this signal.
        _ = external_call["alarm", UInt32](UInt32(60))
        _ = external_call["_exit", Int32](Int32(0 if child_is_right(crew^) else 1))
    else:
        assert_equal(status_of_child(pid), 0)
        assert_runs(crew)


def child_is_right(var crew: Crew) -> Bool:
    """Does what the child process does with its parent's crew, and then with one of its own."""

    def body(team: Team) {}:
        pass

    try:
        crew.run(body)
        return False
    except error:
        if "fork()" not in String(error):
            return False
    _ = crew^
    try:
        var own = Crew(3)
        assert_runs(own)
        _ = own^
        return num_threads() == 1
    except:
        return False


def cpu_time(size: Int) raises -> Int:
    """Returns the nanoseconds of processor time that a crew takes for the same work in so many shares, barrier by barrier.
    """
    var crew = Crew(size)
    var sums = List[Int](length=size, fill=0)

    def body(team: Team) {mut sums}:
        def work(member: Int) {mut sums, imm team}:
            var lo, hi = share(20_000, team.size, member)
            var sum = sums[member]
            for i in range(lo, hi):
                # A chain that no compiler shortens.
                sum = sum * 1664525 + i
            sums[member] = sum

        for _ in range(2_000):
            team.run(work)

    var before = process_time()
    crew.run(body)
    return process_time() - before


def process_time() -> Int:
    """Returns the nanoseconds of processor time that all threads of this process have taken."""
    var time = Array[Int, 2](fill=0)
    _ = external_call["clock_gettime", Int32](CLOCK_PROCESS_CPUTIME_ID, time.unsafe_ptr())
    return time[0] * 1_000_000_000 + time[1]


def set_affinity(cpus: List[Int]) raises:
    """Lets this thread, and those that it starts, run on these processors only."""
    var mask = Array[UInt64, 128](fill=0)
    for cpu in cpus:
        mask[cpu // 64] |= UInt64(1) << UInt64(cpu % 64)
    assert_equal(external_call["sched_setaffinity", Int32](Int32(0), Int(1024), mask.unsafe_ptr()), 0)


def test_more_threads_than_processors_burn_little() raises:
    """Processor time, not duration: it hardly depends on what else the machine does. Threads that looked for each other
    for ten microseconds at each barrier would take seven times as much as those that fit, these take less than three times.
    """
    var cpus = usable_cpus()
    set_affinity(List(cpus[: min(2, len(cpus))]))
    var fitting = cpu_time(threads_at_once())
    var crowded = cpu_time(8 * threads_at_once())
    set_affinity(cpus)
    assert_true(crowded < 5 * fitting, String(t"{crowded} ns of processor time, {fitting} in fewer threads"))


def test_waiting_ends_in_sleep() raises:
    """While one member takes its time, those that wait for it take next to none of the processor's."""
    var crew = Crew(2)

    def body(team: Team) {}:
        def sleep(member: Int) {}:
            if member == 0:
                _ = external_call["usleep", Int32](UInt32(300_000))

        team.run(sleep)

    var before = process_time()
    crew.run(body)
    assert_true(process_time() - before < 100_000_000)


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
