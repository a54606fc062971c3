"""How many threads this process should have."""

from std.bit import pop_count
from std.ffi import external_call


def available_threads() -> Int:
    """Counts the cores that this process may use (its affinity mask)."""
    var mask = Array[UInt64, 128](fill=0)
    var status = external_call["sched_getaffinity", Int32](Int32(0), Int(1024), mask.unsafe_ptr())
    var count = 0
    if status >= 0:
        for i in range(128):
            count += Int(pop_count(mask[i]))
    return max(count, 1)
