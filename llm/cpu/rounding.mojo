"""Conversion of a tensor to another type, rounded to nearest even."""

from std.sys import simd_width_of, size_of

from llm.cpu.parallel import Team, share
from llm.memory import Tensor

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


def round_to[dtype: DType](team: Team, target: Tensor[dtype], source: Tensor[F32]):
    """Computes target = source in the target's type."""

    def body(member: Int) {imm}:
        var lo, hi = share(source.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            target.store(i, source.load[W](i).cast[dtype]())
        for i in range(full, hi):
            target[i] = source[i].cast[dtype]()

    team.run(body, "round_weights", bytes=(size_of[Float32]() + size_of[Scalar[dtype]]()) * source.size)
