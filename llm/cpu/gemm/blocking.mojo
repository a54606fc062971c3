"""Tile and block sizes, derived from the target's vector registers and caches.

Operands are counted in units, the 32 bits that one lane of a vector holds: a float32, or two bfloat16 that are
neighbours along K, as the hardware's dot products want them. So one set of sizes serves both. Where there are no such
dot products, a bfloat16 is widened to a float32 when it is packed, and a unit by itself.

The product is cut so that each level of memory holds what the loop above it reuses:

    registers   MR x NR of C
    L1          what the micro-kernel streams: MR rows of A and NR columns of B
    L2          a block of A, MC x KC
    L3          a block of B, KC x NC, for each thread

KC is the same on every target, because it decides the order of each sum: the bits of a product do not depend on the
machine's vector width.
"""

from std.sys import CompilationTarget, simd_width_of, size_of

comptime F32 = DType.float32

comptime W = simd_width_of[F32]()
"""Scalars in a vector register."""

comptime HAS_BF16_DOT = CompilationTarget._has_feature["avx512bf16"]() and W == 16
"""The target multiplies pairs of bfloat16 and adds both products in one instruction."""

comptime _VECTOR_REGISTERS = 32 if CompilationTarget.has_avx512f() or CompilationTarget.has_neon() else 16

comptime NR_VECTORS = 3
"""Vectors in a row of the register tile."""

comptime NR = NR_VECTORS * W
"""Columns of the register tile."""


def _rows_that_fit() -> Int:
    # The tile, one row of B and one broadcast element of A live in registers. A power of two divides most batches.
    var rows = 1
    while 2 * rows * NR_VECTORS + NR_VECTORS + 1 <= _VECTOR_REGISTERS:
        rows *= 2
    return rows


comptime MR = _rows_that_fit()
"""Rows of the register tile."""

comptime KC = 384
"""Units of K added up in registers before the sums go to C. Divides 768, 1536, 3072 ..; one block for K up to 384."""

comptime MC = 192
"""Rows of A in a block: MC x KC units are 300 KB with their padding, and leave half of a 1 MB L2 to B and to what is
packed next."""

comptime NC = 1536
"""Columns of B in a block."""

comptime LINE = 16
"""Units in a cache line of 64 bytes."""

comptime LDA = KC + LINE
"""Units from one row of a packed block of A to the next. Not a multiple of 4,096 bytes: rows would share a cache set."""

comptime CHUNK = 8
"""Units of K between two prefetches of the micro-kernel of lines that are needed later."""

comptime UNROLL = CHUNK if W == 8 else 1
"""Units of K in a turn of the micro-kernel's loop; of AVX-512's 24 multiply-adds a unit no more than one leaves the sums in
registers. With 12, counting and branching are a fifth of the instructions, which a core feels that shares its front end."""


def per_unit[dtype: DType]() -> Int:
    """Counts the scalars in a unit."""
    return size_of[DType.float32]() // size_of[dtype]() if HAS_BF16_DOT else 1


def largest_depth[dtype: DType, output: DType]() -> Int:
    """Returns the largest K of a product with operands and C of these types.

    A C narrower than the sums cannot keep them from one block of K to the next: all of K is one block then, and its MR
    rows of A and NR columns of B must fit where blocks of the usual shape do. The depth that fits depends on the target.
    """
    if output == F32:
        return Int.MAX
    return min(MC // MR * KC, KC * NC // NR) * per_unit[dtype]()


def check_product[dtype: DType, output: DType](K: Int) raises:
    """Checks a K before `gemm`, which cannot raise, gets it.

    Raises:
        If what `gemm` packs of K does not fit.
    """
    comptime LARGEST = largest_depth[dtype, output]()
    if K > LARGEST:
        raise Error(
            t"gemm: expected at most {LARGEST} terms in a sum that is rounded to {output}, got {K}; use a narrower"
            t" model or float32"
        )
