"""Fork and join over the cores. The only file that knows the threading primitive."""

from std.bit import pop_count
from std.ffi import external_call
from max.algorithm import sync_parallelize


@fieldwise_init
struct Team(TrivialRegisterPassable):
    """The threads that a kernel may use. `run` is one fork and join."""

    var size: Int
    """Number of members, at least 1."""

    @always_inline
    def run[Body: def(Int) -> None](self, body: Body):
        """Calls body(member) for every member 0 .. size - 1 at the same time and waits for all.

        The body cannot raise. Which memory a member writes must follow from its number alone, and no result may depend
        on `size`: that is what keeps results identical for any number of threads.
        """
        sync_parallelize(body, self.size)


def available_threads() -> Int:
    """Counts the cores that this process may use (its affinity mask)."""
    var mask = Array[UInt64, 128](fill=0)
    var bytes = external_call["sched_getaffinity", Int32](Int32(0), Int(1024), mask.unsafe_ptr())
    var count = 0
    if bytes >= 0:
        for i in range(128):
            count += Int(pop_count(mask[i]))
    return max(count, 1)


@always_inline
def share(n: Int, parts: Int, i: Int, grain: Int = 1) -> Tuple[Int, Int]:
    """Splits 0 .. n - 1 into `parts` ranges of whole grains, as even as possible, and returns the i-th as [begin, end)."""
    var grains = (n + grain - 1) // grain
    var begin = grains * i // parts * grain
    var end = grains * (i + 1) // parts * grain
    return min(begin, n), min(end, n)
