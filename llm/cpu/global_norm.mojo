"""The length of the gradient: the square root of the sum of squares over all tensors.

Sums run over blocks of fixed size, each in one thread, and then over the blocks in order: the same bits for any number of
threads. AdamW leaves the sums of its blocks here, as it reads the gradients anyway.
"""

from std.math import sqrt

from llm.memory import Tensor

comptime F32 = DType.float32
comptime NORM_BLOCK = 16384
"""Elements summed at a time."""


def num_norm_blocks(size: Int) -> Int:
    """Counts the blocks of a tensor."""
    return (size + NORM_BLOCK - 1) // NORM_BLOCK


def norm_of_blocks(block_sums: Tensor[F32]) -> Float32:
    """Computes the norm from the blocks' sums of squares."""
    var sum = Float64(0)
    for i in range(block_sums.size):
        sum += block_sums[i].cast[DType.float64]()
    return sqrt(sum).cast[F32]()
