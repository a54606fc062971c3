"""The peak of the threads in use, measured: the products' multiply-adds in registers, as many as can be under way."""

from std.sys import simd_width_of
from std.time import perf_counter_ns

from llm.cpu.gemm import add_product, per_unit
from llm.cpu.threads.crew import Crew, Team

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _CHAINS = 24 if W == 16 else 12
"""Independent sums: enough for two units of a latency of six, and registers for all of them."""
comptime _ROUNDS = 2_400_000 // _CHAINS
"""Rounds of a try: about a millisecond."""
comptime _NANOSECONDS = 300_000_000


def measured_peak[dtype: DType = F32](threads: Int) raises -> Float64:
    """Returns operations per second of so many threads on numbers of this type: the best millisecond of 0.3 s.

    Raises:
        If the system refuses a thread.
    """
    var crew = Crew(threads)
    var best = Float64(0)
    var start = perf_counter_ns()
    while perf_counter_ns() - start < _NANOSECONDS:
        best = max(best, peak_of_one_try[dtype](crew))
    return best


def peak_of_one_try[dtype: DType = F32](crew: Crew) raises -> Float64:
    """Returns operations per second of a crew on numbers of this type during about a millisecond.

    Raises:
        If the crew is at work already.
    """
    var start = perf_counter_ns()
    # A factor from the clock, so that the compiler cannot know it; and a place for the result, so that it is needed.
    var numbers = Array[Float32, 2](fill=Float32(start % 3) * 1e-3)

    def body(team: Team) {mut numbers}:
        _multiply_adds[dtype](team, numbers)

    crew.run(body)
    return Float64(2 * per_unit[dtype]() * W * _CHAINS * _ROUNDS * crew.size) / (
        Float64(perf_counter_ns() - start) / 1e9
    )


def _multiply_adds[dtype: DType](team: Team, mut numbers: Array[Float32, 2]):
    def body(member: Int) {mut numbers, imm}:
        var sums = Array[SIMD[F32, W], _CHAINS](fill=SIMD[F32, W](Float32(member)))
        var factor = SIMD[F32, W](numbers[0])
        for _ in range(_ROUNDS):
            comptime for i in range(_CHAINS):
                sums[i] = add_product[dtype](sums[i], factor, factor)
        var total = SIMD[F32, W](0)
        comptime for i in range(_CHAINS):
            total += sums[i]
        if total.reduce_add() == -1:
            numbers[1] = -1

    team.run(body)
