"""GELU over a whole buffer; the products apply it to their tiles through their epilogues."""

from std.sys import simd_width_of, size_of

from llm.cpu.parallel import Team, share
from llm.cpu.vector_math import gelu
from llm.memory import Tensor

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


def gelu_forward[dtype: DType](team: Team, output: Tensor[dtype], inp: Tensor[dtype], size: Int):
    """Computes output = gelu(inp) for the first `size` elements."""

    def body(member: Int) {imm}:
        var lo, hi = share(size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            output.store(i, gelu(inp.load[W](i).cast[F32]()).cast[dtype]())
        for i in range(full, hi):
            output[i] = gelu(inp[i].cast[F32]()).cast[dtype]()

    team.run(body, "gelu_forward", bytes=2 * size_of[Scalar[dtype]]() * size)
