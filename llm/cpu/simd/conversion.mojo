"""Conversion of a tensor to another type, rounded to nearest even where that is narrower."""

from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.simd.rounding import round_to
from llm.cpu.threads.crew import Team, share

comptime W = simd_width_of[DType.float32]()


def convert[to: DType, dtype: DType, //](team: Team, target: Tensor[to], source: Tensor[dtype]):
    """Computes target = source in the target's type."""

    def body(member: Int) {imm}:
        var lo, hi = share(source.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            target.store(i, _convert[to](source.load[W](i)))
        for i in range(full, hi):
            target[i] = _convert[to](source[i])

    team.run(body, "convert", bytes=(size_of[Scalar[dtype]]() + size_of[Scalar[to]]()) * source.size)


@always_inline
def _convert[width: SIMDLength, dtype: DType, //, to: DType](x: SIMD[dtype, width]) -> SIMD[to, width]:
    comptime if dtype == DType.float32:
        return round_to[to](rebind[SIMD[DType.float32, width]](x))
    else:
        return x.cast[to]()
