"""Conversion of a tensor to another type, rounded to nearest even where that is narrower."""

from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

comptime W = simd_width_of[DType.float32]()


def convert[to: DType, dtype: DType, //](team: Team, target: Tensor[to], source: Tensor[dtype]):
    """Computes target = source in the target's type."""

    def body(member: Int) {imm}:
        var lo, hi = share(source.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            target.store(i, source.load[W](i).cast[to]())
        for i in range(full, hi):
            target[i] = source[i].cast[to]()

    team.run(body, "convert", bytes=(size_of[Scalar[dtype]]() + size_of[Scalar[to]]()) * source.size)
