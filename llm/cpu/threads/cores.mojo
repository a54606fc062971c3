"""How many threads this process should have."""

from std.ffi import external_call
from std.math import ceil

from llm.base.cgroup import cpu_quota
from llm.base.files import read_system_text
from llm.base.numbers import parse_integer


def available_threads(root: String = "") -> Int:
    """Counts the cores that this process may use, one where hyperthreads share it: those of its affinity mask, or fewer
    if its control group has a quota of processor time, rounded up. `root` is that of the file system.
    """
    return _within_quota(num_cores(usable_cpus(), root), root)


def threads_at_once(root: String = "") -> Int:
    """Counts the threads that can run side by side: as `available_threads`, but hyperthreads count each for itself."""
    return _within_quota(len(usable_cpus()), root)


def usable_cpus() -> List[Int]:
    """Lists the numbers of the processors in this process's affinity mask."""
    var mask = Array[UInt64, 128](fill=0)
    var cpus = List[Int]()
    if external_call["sched_getaffinity", Int32](Int32(0), Int(1024), mask.unsafe_ptr()) >= 0:
        for cpu in range(64 * 128):
            if (mask[cpu // 64] >> UInt64(cpu % 64)) & 1 == 1:
                cpus.append(cpu)
    return cpus^


def num_cores(cpus: List[Int], root: String = "") -> Int:
    """Counts the cores that these processors are part of; what the system says nothing about is a core by itself."""
    var seen = List[Int]()
    var count = 0
    for cpu in cpus:
        count += Int(cpu not in seen)
        var folder = String(t"{root}/sys/devices/system/cpu/cpu{cpu}/topology/")
        var siblings = read_system_text(folder + "core_cpus_list")
        if not siblings:
            # Its name until Linux 5.3.
            siblings = read_system_text(folder + "thread_siblings_list")
        seen.append(cpu)
        seen.extend(numbers_of_ranges(siblings.or_else("")))
    return count


def numbers_of_ranges(text: String) -> List[Int]:
    """Reads a list like "0-2,8"; what is no such list has no numbers."""
    var numbers = List[Int]()
    for part in text.strip().split(","):
        var ends = part.split("-")
        var first = parse_integer(ends[0])
        var last = parse_integer(ends[len(ends) - 1])
        if first and last:
            for number in range(first.value(), last.value() + 1):
                numbers.append(number)
    return numbers^


def _within_quota(threads: Int, root: String) -> Int:
    var quota = cpu_quota(root)
    return max(1, min(threads, Int(ceil(quota.value()))) if quota else threads)
