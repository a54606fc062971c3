"""The floating-point peak of the threads in use, measured: multiply-adds in registers, as many as can be under way."""

from std.sys import simd_width_of
from std.time import perf_counter_ns

from llm.cpu.parallel import Crew, Team

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _CHAINS = 12
"""Independent sums: enough for two units of a latency of five."""
comptime _ROUNDS = 200_000
"""Rounds of a try: about a millisecond."""
comptime _NANOSECONDS = 300_000_000


def measured_peak(threads: Int) raises -> Float64:
    """Returns floating-point operations per second of so many threads: the best millisecond of 0.3 s.

    Raises:
        If the system refuses a thread.
    """
    var crew = Crew(threads)
    var best = Float64(0)
    var start = perf_counter_ns()
    while perf_counter_ns() - start < _NANOSECONDS:
        best = max(best, peak_of_one_try(crew))
    return best


def peak_of_one_try(crew: Crew) -> Float64:
    """Returns floating-point operations per second of a crew during about a millisecond."""
    var start = perf_counter_ns()
    # A factor from the clock, so that the compiler cannot know it.
    crew.run(_multiply_adds, Int(start % 3))
    return Float64(2 * W * _CHAINS * _ROUNDS * crew.size) / (Float64(perf_counter_ns() - start) / 1e9)


def _multiply_adds(context: Int, team: Team):
    def body(member: Int) {imm}:
        var sums = Array[SIMD[F32, W], _CHAINS](fill=SIMD[F32, W](Float32(member)))
        var factor = SIMD[F32, W](Float32(context) * 1e-3)
        for _ in range(_ROUNDS):
            comptime for i in range(_CHAINS):
                sums[i] = sums[i].fma(factor, factor)
        var total = SIMD[F32, W](0)
        comptime for i in range(_CHAINS):
            total += sums[i]
        if total.reduce_add() == -1:
            print("never")

    team.run(body)
