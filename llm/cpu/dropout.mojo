"""Dropout: each element is set to zero with probability `rate`, and the others are scaled so that the mean stays.

Which elements those are follows from a key and their place alone, so that forward and backward need not keep a mask, and
the result does not depend on the threads.
"""

from std.math import iota
from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime U32 = DType.uint32
comptime W = simd_width_of[F32]()


struct Dropout(TrivialRegisterPassable):
    """The choice of one place in the model, in one pass; by default nothing is dropped."""

    var rate: Float32
    """Probability of each element to be dropped, below 1; 0 for no dropout."""
    var key: UInt64
    """Two keys are as good as two independent masks."""

    def __init__(out self, rate: Float32 = 0, key: UInt64 = 0):
        """Takes rate and key."""
        self.rate = rate
        self.key = key

    @always_inline
    def is_on(self) -> Bool:
        """Tells whether anything is dropped."""
        return self.rate > 0

    @always_inline
    def factors[width: SIMDLength](self, place: Int, stride: Int = 1) -> SIMD[F32, width]:
        """Returns 0 or 1 / (1 - rate) for every `stride`th element from `place` on; places count modulo 2^32."""
        var bits = iota[U32, width](0) * UInt32(stride & 0xFFFFFFFF) + UInt32(place & 0xFFFFFFFF)
        bits = _scramble(bits ^ UInt32(self.key & 0xFFFFFFFF))
        bits = _scramble(bits ^ UInt32(self.key >> 32))
        var dropped = bits.lt(UInt32(self.rate.cast[DType.float64]() * 4294967296.0))
        return dropped.select(SIMD[F32, width](0), SIMD[F32, width](1 / (1 - self.rate)))

    @always_inline
    def apply(self, x: Tensor[F32], place: Int):
        """Drops from a few elements that are in the cache, whole vectors of them; the first stands at `place`."""
        for i in range(0, x.size, W):
            x.store(i, x.load[W](i) * self.factors[W](place + i))


@always_inline
def _scramble[width: SIMDLength, //](x: SIMD[U32, width]) -> SIMD[U32, width]:
    """Scrambles 32 bits (Wellons' lowbias32, 2018: xor-shifts and products found by search)."""
    var z = (x ^ (x >> 16)) * 0x7FEB352D
    z = (z ^ (z >> 15)) * 0x846CA68B
    return z ^ (z >> 16)


def apply_dropout[dtype: DType](team: Team, output: Tensor[dtype], inp: Tensor[dtype], dropout: Dropout):
    """Computes output = inp * factors; also the backward pass, with the gradient as inp. Both may be the same tensor.
    """

    def body(member: Int) {imm}:
        var lo, hi = share(inp.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            output.store(i, (inp.load[W](i).cast[F32]() * dropout.factors[W](i)).cast[dtype]())
        for i in range(full, hi):
            output[i] = (inp[i].cast[F32]() * dropout.factors[1](i)).cast[dtype]()

    team.run(body, "dropout", bytes=2 * size_of[Scalar[dtype]]() * inp.size)


def residual_dropout(
    team: Team,
    output: Tensor[F32],
    residual: Tensor[F32],
    inp: Tensor[F32],
    bias: Tensor[F32],
    rows: Int,
    C: Int,
    dropout: Dropout,
):
    """Computes output = residual + (inp + bias) * factors. All (rows,C) but bias (C)."""

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        var full = C - C % W
        for row in range(lo, hi):
            for c in range(0, full, W):
                _add_dropped[W](output, residual, inp, bias, row * C, c, dropout)
            for c in range(full, C):
                _add_dropped[1](output, residual, inp, bias, row * C, c, dropout)

    team.run(body, "residual_dropout", bytes=3 * size_of[Float32]() * rows * C)


@always_inline
def _add_dropped[
    width: Int
](
    output: Tensor[F32],
    residual: Tensor[F32],
    inp: Tensor[F32],
    bias: Tensor[F32],
    start: Int,
    c: Int,
    dropout: Dropout,
):
    var i = start + c
    var added = (inp.load[width](i) + bias.load[width](c)) * dropout.factors[width](i)
    output.store(i, residual.load[width](i) + added)
