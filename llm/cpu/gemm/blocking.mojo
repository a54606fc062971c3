"""Block sizes of the five loops, derived from the target.

The micro-kernel keeps MR x NR sums in registers. A micro-panel of B (KC x NR) passes through the first-level cache, a
block of A (MC x KC) stays in the second, a block of B (KC x NC) in the third.
"""

from std.sys import CompilationTarget, simd_width_of

comptime W = simd_width_of[DType.float32]()
"""Lanes of a float32 vector."""

comptime _HAS_32_REGISTERS = CompilationTarget.has_avx512f() or not CompilationTarget.is_x86()
comptime MR = 8 if _HAS_32_REGISTERS else 4
"""Rows of the tile in registers."""
comptime NR = 3 * W
"""Columns of the tile: three vectors, so that 3 MR sums, 3 vectors of B and an element of A fill the registers."""
comptime KC = 384
"""Terms that are summed in registers before the sum goes to memory. Part of the result's definition: it fixes the order of
the additions, and may depend on nothing but K."""
comptime MC = 256
comptime NC = 1536 // NR * NR
comptime A_STRIDE = KC + 16
"""Distance of the rows of a packed block of A: not a multiple of 4096 bytes, which would put all rows into one set."""


def block_of_k(K: Int) -> Int:
    """Returns the block size that cuts K into the fewest blocks of at most KC, of nearly the same size."""
    var blocks = (K + KC - 1) // KC
    return (K + blocks - 1) // blocks
