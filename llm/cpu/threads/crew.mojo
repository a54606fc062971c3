"""Threads of a model. This file alone knows the threading primitives.

A `Crew` owns threads that wait until there is something to run. Then all run the same code side by side, forward or
backward through the whole model, each as a member of a `Team`: each kernel gives each member its share of the output
and ends at a barrier. One wake-up a pass and about a tenth of a microsecond a kernel, where a fork and join cost twenty.

A `Team` that is no member of a crew does the shares of all its members one after another: tests of single kernels do that.
"""

from std.atomic import Atomic, Ordering
from std.builtin.rebind import downcast
from std.ffi import external_call
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, is_defined
from std.sys.intrinsics import llvm_intrinsic
from std.time import perf_counter_ns
from std.utils.numerics import FlushDenormals

from llm.cpu.threads.cores import threads_at_once

comptime _Call = def(Int, Team) thin -> None
"""Calls the body at an address as a member of a team."""

comptime TRACING = is_defined["TRACE"]()
"""With `mojo build -D TRACE` every member notes when it worked on what; otherwise nothing of that is compiled."""

comptime _PATIENCE = 40_000
"""Nanoseconds for which a waiting thread looks before it sleeps: longer than a team is apart on an idle machine. None if
not all of the crew can run at once."""
comptime _LOOKS = 16
"""Looks from one glance at the clock to the next."""
comptime _FUTEX = 202 if CompilationTarget.is_x86() else 98
comptime _FUTEX_WAIT_PRIVATE = 128
comptime _FUTEX_WAKE_PRIVATE = 129


struct Team(TrivialRegisterPassable):
    """The threads that share the work of a kernel, seen by one of them."""

    var size: Int
    """Number of members, at least 1."""
    var _member: Int
    """This member's number; -1 outside a crew."""
    var _state: Int
    """Address of the crew's state."""

    def __init__(out self, size: Int):
        """A team of which this thread is every member."""
        self.size = size
        self._member = -1
        self._state = 0

    def __init__(out self, size: Int, member: Int, state: Int):
        """One member of a crew."""
        self.size = size
        self._member = member
        self._state = state

    def leads(self) -> Bool:
        """Tells whether this thread is the first member."""
        return self._member <= 0

    @always_inline
    def run[Body: def(Int) -> None](self, body: Body, operation: StaticString = "", flops: Int = 0, bytes: Int = 0):
        """Calls body(member) for every member 0 .. size - 1 and returns when all are done.

        The body cannot raise. Which memory a member writes must follow from its number alone, and no result may depend
        on `size`: that is what keeps results identical for any number of threads. The operation's name and its
        arithmetic or memory traffic are for traces.
        """
        var begin = perf_counter_ns() if TRACING else 0
        # One call for both kinds of team: the body is inlined here, and large.
        for member in range(max(self._member, 0), self.size if self._member < 0 else self._member + 1):
            body(member)
        comptime if TRACING:
            if self._member >= 0:
                ref state = Pointer[_State, MutUntrackedOrigin](unsafe_from_address=self._state)[]
                state.events[self._member].append(Event(operation, Int(begin), Int(perf_counter_ns()), flops, bytes))
        self._barrier()

    def _barrier(self):
        """Waits until every member has arrived."""
        if self.size == 1 or self._member < 0:
            return
        ref state = Pointer[_State, MutUntrackedOrigin](unsafe_from_address=self._state)[]
        var phase = state.phases.count()
        if state.arrived.fetch_add(1) == Int64(self.size - 1):
            state.arrived.store(0)
            state.phases.advance()
        else:
            state.phases.wait_beyond(phase, state.patience)


@fieldwise_init
struct Event(Copyable, Movable):
    """One operation in one thread."""

    var operation: StaticString
    var begin: Int
    """Nanoseconds of the clock that `perf_counter_ns` reads."""
    var end: Int
    """When this thread was done; the next event begins when all were."""
    var flops: Int
    """Arithmetic of all threads together, or 0."""
    var bytes: Int
    """Memory traffic of all threads together, or 0."""


struct _Milestones(Movable):
    """A counter that threads wait for: they look for a while, then sleep until it moves.

    Looking costs a tenth of a microsecond, sleeping and waking several. But where more threads want to run than the
    process has processors, one that only looks takes time from the one that it waits for.
    """

    var _count: Atomic[Int64]
    var _pad1: Array[Int64, 7]
    var _sleepers: Atomic[Int64]
    """Threads that sleep, or are about to."""
    var _pad2: Array[Int64, 7]

    def __init__(out self):
        self._count = Atomic[Int64](0)
        self._pad1 = Array[Int64, 7](fill=0)
        self._sleepers = Atomic[Int64](0)
        self._pad2 = Array[Int64, 7](fill=0)

    def count(self) -> Int64:
        return self._count.load[ordering=Ordering.ACQUIRE]()

    def advance(mut self):
        """Adds one, for all who wait."""
        _ = self._count.fetch_add(1)
        if self._sleepers.load() > 0:
            self._futex(_FUTEX_WAKE_PRIVATE, Int(Int32.MAX))

    def wait_beyond(mut self, seen: Int64, patience: Int):
        """Returns when the count is no longer the one seen; looks for so many nanoseconds and then sleeps."""
        if patience > 0:
            # Most waits end here, before the clock is needed.
            if self._moves(seen):
                return
            var begin = Int(perf_counter_ns())
            while Int(perf_counter_ns()) - begin < patience:
                if self._moves(seen):
                    return
        # The kernel looks again before it puts the thread to sleep: an advance in between is not missed.
        _ = self._sleepers.fetch_add(1)
        while self.count() == seen:
            self._futex(_FUTEX_WAIT_PRIVATE, Int(seen & 0xFFFFFFFF))
        _ = self._sleepers.fetch_add(-1)

    def _moves(self, seen: Int64) -> Bool:
        """Looks a few times, and tells whether the count is another."""
        for _ in range(_LOOKS):
            if self.count() != seen:
                return True
            _pause()
        return False

    def _futex(self, operation: Int, value: Int):
        # A futex is 32 bits, the lower half of the count.
        _ = external_call["syscall", Int](_FUTEX, Int(Pointer(to=self._count)), operation, value, Int(0))


struct _State(Movable):
    """What the members of a crew share; each counter has a cache line of its own."""

    var arrived: Atomic[Int64]
    var _pad: Array[Int64, 7]
    var phases: _Milestones
    """Barriers passed."""
    var jobs: _Milestones
    """Jobs given."""
    var call: _Call
    var body: Int
    """Address of what runs."""
    var size: Int
    var patience: Int
    """For which members look before they sleep."""
    var running: Atomic[Int64]
    """Whether somebody runs something: 0 or 1."""
    var stopping: Bool
    var events: List[List[Event]]
    """What each member did, if tracing."""

    def __init__(out self, size: Int):
        self.events = List[List[Event]](length=size, fill=List[Event]())
        self.arrived = Atomic[Int64](0)
        self._pad = Array[Int64, 7](fill=0)
        self.phases = _Milestones()
        self.jobs = _Milestones()
        self.call = _call_nothing
        self.body = 0
        self.size = size
        self.patience = _PATIENCE if size <= threads_at_once() else 0
        self.running = Atomic[Int64](0)
        self.stopping = False


def _call_nothing(body: Int, team: Team):
    pass


struct Crew(Movable):
    """Owner of `size - 1` threads; the caller of `run` is the remaining member."""

    var size: Int
    var _state: Pointer[_State, MutUntrackedOrigin]
    var _threads: List[Int]
    var _process: Int32
    """Where the threads are: fork() takes none along."""

    def __init__(out self, size: Int) raises:
        """Starts the threads.

        Raises:
            If there is to be no member, or the system refuses a thread; then none is left.
        """
        if size < 1:
            raise Error(t"threads: expected at least 1, got {size}")
        self.size = size
        self._process = external_call["getpid", Int32]()
        self._threads = List[Int]()
        self._state = unsafe_alloc[_State](1)
        self._state.unsafe_write(_State(size))
        for member in range(1, size):
            # Each worker gets (address of the state, its number) and frees the note.
            var note = unsafe_alloc[Int](2)
            note[unsafe_offset=0] = Int(self._state)
            note[unsafe_offset=1] = member
            var thread = Int(0)
            if external_call["pthread_create", Int32](Pointer(to=thread), Int(0), _work, note) != 0:
                note.unsafe_free()
                # All fields are set: raising calls the destructor, which ends the threads that have begun.
                raise Error(t"threads: the system refuses thread {member + 1} of {size}; use fewer (--threads)")
            self._threads.append(thread)

    def __init__(out self, *, deinit move: Self):
        """Takes over the threads of another crew."""
        self.size = move.size
        self._state = move._state
        self._threads = move._threads^
        self._process = move._process

    @no_inline
    def __deinit__(deinit self):
        """Ends the threads."""
        if external_call["getpid", Int32]() != self._process:
            # Whoever waits here for a thread of the parent waits for ever.
            self._threads.clear()
        self._state[].stopping = True
        self._state[].jobs.advance()
        for thread in self._threads:
            _ = external_call["pthread_join", Int32](thread, Int(0))
        self._state.unsafe_deinit_pointee()
        self._state.unsafe_free()

    def run[Body: def(Team) -> None](self, body: Body) raises:
        """Calls body(team) in every thread at the same time and waits for all.

        Between the barriers of `Team.run` members may read what others wrote before the last one. The body stays in the
        caller's frame, where all members use it, and cannot raise.

        Raises:
            If something runs already, of another thread or around this call, or the threads are in another process.
        """
        if external_call["getpid", Int32]() != self._process:
            raise Error(
                "threads: run expects to be called in the process that made the crew, but this is one that fork() made,"
                " without the threads; make a crew after fork()"
            )
        var idle = Int64(0)
        if not self._state[].running.compare_exchange(idle, 1):
            raise Error(
                "threads: run expects one call at a time, but something runs already; give each thread that calls a"
                " crew of its own, and call none from inside a body"
            )
        self._state[].call = _call[Body]
        self._state[].body = Int(Pointer(to=body))
        self._state[].jobs.advance()
        _join_in(self._state, 0)
        self._state[].running.store(0)

    def take_events(self, member: Int) -> List[Event]:
        """Returns what a member has done since the last call; nothing unless built with TRACE."""
        var events = self._state[].events[member].copy()
        self._state[].events[member].clear()
        return events^


def _call[Body: AnyType](body: Int, team: Team):
    """Calls a closure at an address. The compiler makes no thin function whose parameter is a closure: hence the detour.
    """
    comptime Closure = downcast[Body, def(Team) -> None]
    Pointer[Closure, MutUntrackedOrigin](unsafe_from_address=body)[](team)


def _join_in(state: Pointer[_State, MutUntrackedOrigin], member: Int):
    var team = Team(state[].size, member, Int(state))
    # Denormal numbers cost a hundred times as much as others, and have nothing to say here.
    with FlushDenormals():
        state[].call(state[].body, team)
    team._barrier()


def _work(note: Pointer[Int, MutUntrackedOrigin]) abi("C") -> Int:
    """The life of one worker: wait for a job, do it, until the crew stops."""
    var state = Pointer[_State, MutUntrackedOrigin](unsafe_from_address=note[unsafe_offset=0])
    var member = note[unsafe_offset=1]
    note.unsafe_free()
    var done = Int64(0)
    while True:
        state[].jobs.wait_beyond(done, state[].patience)
        done += 1
        if state[].stopping:
            return 0
        _join_in(state, member)


@always_inline
def _pause():
    """Lets a moment pass, cheaply."""
    comptime if CompilationTarget.is_x86():
        llvm_intrinsic["llvm.x86.sse2.pause", NoneType]()
    else:
        # ARM's `yield` takes no time on most processors; this takes some ten nanoseconds.
        llvm_intrinsic["llvm.aarch64.isb", NoneType](Int32(15))


@always_inline
def share(n: Int, parts: Int, i: Int, grain: Int = 1) -> Tuple[Int, Int]:
    """Splits 0 .. n - 1 into `parts` ranges of whole grains, as even as possible, and returns the i-th as [begin, end).
    """
    var grains = (n + grain - 1) // grain
    var begin = grains * i // parts * grain
    var end = grains * (i + 1) // parts * grain
    return min(begin, n), min(end, n)
