"""The length of the gradient: the square root of the sum of squares over all tensors.

Sums run over blocks of fixed size, each in one thread, and then over the blocks in order: the same bits for any number of
threads. AdamW computes the same sums in the same order, as it reads the gradients anyway; who has to know the norm
before the update pays for a pass of its own.
"""

from std.math import sqrt
from std.sys import simd_width_of

from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime NORM_BLOCK = 16384
"""Elements summed at a time."""


def num_norm_blocks(size: Int) -> Int:
    """Counts the blocks of a tensor."""
    return (size + NORM_BLOCK - 1) // NORM_BLOCK


struct BlockPart(TrivialRegisterPassable):
    """Those blocks of one tensor that lie in a range of the blocks of all tensors."""

    var start: Int
    """The tensor's first element in them."""
    var size: Int
    """Its elements in them."""
    var first_block: Int
    """The first of the blocks among those of all tensors."""
    var blocks: Int

    def __init__(out self, size: Int, before: Int, range: Tuple[Int, Int]):
        """For a tensor of a size that comes after so many blocks of others; the range is [first, last)."""
        var last = min(range[1] - before, num_norm_blocks(size))
        var first = max(range[0] - before, 0)
        self.blocks = max(last - first, 0)
        self.start = min(first * NORM_BLOCK, size)
        self.size = min(self.blocks * NORM_BLOCK, size - self.start)
        self.first_block = before + first


def parts_of_tensor(size: Int, before: Int, ranges: List[Tuple[Int, Int]]) -> List[BlockPart]:
    """Returns what of a tensor lies in ranges of the blocks of all tensors, so many of which are before it."""
    var parts = List[BlockPart]()
    for range in ranges:
        var part = BlockPart(size, before, range)
        if part.blocks > 0:
            parts.append(part)
    return parts^


def sum_squares[dtype: DType](team: Team, grads: Tensor[dtype], block_sums: Tensor[F32]):
    """Writes the sum of grads^2 over each block to block_sums (num_norm_blocks(size))."""

    def body(member: Int) {imm}:
        var first, last = share(num_norm_blocks(grads.size), team.size, member)
        for block in range(first, last):
            var lo = block * NORM_BLOCK
            var hi = min(lo + NORM_BLOCK, grads.size)
            var full = lo + (hi - lo) // W * W
            var squares = SIMD[F32, W](0)
            for i in range(lo, full, W):
                var g = grads.load[W](i).cast[F32]()
                squares += g * g
            var sum = squares.reduce_add()
            for i in range(full, hi):
                var g = grads[i].cast[F32]()
                sum += g * g
            block_sums[block] = sum

    team.run(body)


def norm_of_blocks(block_sums: Tensor[F32]) -> Float32:
    """Computes the norm from the blocks' sums of squares."""
    var sum = Float64(0)
    for i in range(block_sums.size):
        sum += block_sums[i].cast[DType.float64]()
    return sqrt(sum).cast[F32]()
