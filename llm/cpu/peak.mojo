"""The floating-point peak of the threads in use, measured: multiply-adds in registers, as many as can be under way."""

from std.sys import simd_width_of
from std.time import perf_counter_ns

from llm.cpu.parallel import Team

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _CHAINS = 12
"""Independent sums: enough for two units of a latency of five."""
comptime _ROUNDS = 100_000
comptime _TRIES = 8


def measured_peak(threads: Int) -> Float64:
    """Returns floating-point operations per second, the best of a few tries of about a millisecond."""
    var best = Float64(0)
    for _ in range(_TRIES):
        var start = perf_counter_ns()

        def body(member: Int) {imm}:
            var sums = Array[SIMD[F32, W], _CHAINS](fill=SIMD[F32, W](Float32(member)))
            # Read from the clock, so that the compiler cannot know them.
            var factor = SIMD[F32, W](Float32(start % 3) * 1e-3)
            for _ in range(_ROUNDS):
                comptime for i in range(_CHAINS):
                    sums[i] = sums[i].fma(factor, factor)
            var total = SIMD[F32, W](0)
            comptime for i in range(_CHAINS):
                total += sums[i]
            if total.reduce_add() == -1:
                print("never")

        Team(threads).run(body)
        var seconds = Float64(perf_counter_ns() - start) / 1e9
        best = max(best, Float64(2 * W * _CHAINS * _ROUNDS * threads) / seconds)
    return best
