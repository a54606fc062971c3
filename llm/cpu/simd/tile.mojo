"""Tiles that live in the first-level cache: copied in with padding, multiplied strip by strip, copied out.

A tile is BLOCK positions of one head, its channels padded with zeros to whole vectors, so that no kernel meets an edge.
"""

from std.sys import CompilationTarget, PrefetchOptions, prefetch, simd_width_of, size_of

from llm.base.checks import check_bounds, check_that
from llm.base.memory import Tensor
from llm.cpu.simd.rounding import round_to
from llm.cpu.simd.transpose import transpose_block

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime BLOCK = 64
"""Positions in a tile: of queries or of keys."""
comptime STRIP = 8
"""Rows that `strip_product` computes at once."""
comptime _MANY_REGISTERS = CompilationTarget.has_avx512f() or CompilationTarget.has_neon()
comptime _ROWS = STRIP if _MANY_REGISTERS else STRIP // 2
"""Rows of a strip whose sums fit into registers, in as many vectors side by side as follow."""
comptime _VECTORS = 2 if _MANY_REGISTERS else 3
comptime Ptr = Tensor[F32].Ptr
comptime _INTO_L2 = PrefetchOptions().for_read().medium_locality().to_data_cache()


@always_inline
def padded(channels: Int) -> Int:
    """Rounds a number of channels up to whole vectors and strips."""
    comptime GRAIN = max(W, STRIP)
    return (channels + GRAIN - 1) // GRAIN * GRAIN


@always_inline
def rows_from[dtype: DType](tensor: Tensor[dtype], start: Int, stride: Int, rows: Int, width: Int) -> Tensor[dtype]:
    """Views `rows` rows of `width` scalars that lie `stride` apart, from the first of them to the last; with rows <= 0,
    nothing.
    """
    var extent = (rows - 1) * stride + width if rows > 0 else 0
    check_bounds(start if rows > 0 else 0, extent, tensor.size)
    return Tensor[dtype](tensor.ptr.unsafe_offset(start), extent)


def load_tile[dtype: DType](tile: Tensor[F32], source: Tensor[dtype], stride: Int, rows: Int, HS: Int):
    """Copies `rows` rows of HS channels that lie `stride` apart into tile (BLOCK,HSp), zeros around them."""
    var HSp = padded(HS)
    var full = HS - HS % W
    for r in range(rows):
        for c in range(0, full, W):
            tile.store(r * HSp + c, source.load[W](r * stride + c).cast[F32]())
        for c in range(full, HS):
            tile[r * HSp + c] = source[r * stride + c].cast[F32]()
        for c in range(HS, HSp):
            tile[r * HSp + c] = 0
    for i in range(rows * HSp, BLOCK * HSp, W):
        tile.store(i, SIMD[F32, W](0))


def load_tile_transposed[
    dtype: DType
](tile: Tensor[F32], columns: Int, source: Tensor[dtype], stride: Int, rows: Int, HS: Int):
    """Copies as `load_tile` does, but into tile (HSp,columns); columns a multiple of the vector width."""
    check_that(rows <= columns and columns % W == 0, "load_tile_transposed: columns")
    check_that((rows - 1) * stride + HS <= source.size, "load_tile_transposed: the source is too small")
    check_that(padded(HS) * columns <= tile.size, "load_tile_transposed: the tile is too small")
    var full_rows = rows - rows % W
    var full = HS - HS % W
    if full_rows < columns or full < padded(HS):
        for i in range(0, padded(HS) * columns, W):
            tile.store(i, SIMD[F32, W](0))
    for r in range(0, full_rows, W):
        for c in range(0, full, W):
            transpose_block[dtype](
                tile.ptr.unsafe_offset(c * columns + r), columns, source.ptr.unsafe_offset(r * stride + c), stride
            )
    for r in range(rows):
        for c in range(full if r < full_rows else 0, HS):
            tile[c * columns + r] = source[r * stride + c].cast[F32]()


@always_inline
def prefetch_tile[dtype: DType](source: Tensor[dtype], stride: Int, rows: Int, HS: Int):
    """Prefetches the cache lines that a later `load_tile` of the same will read."""
    check_that(rows <= 0 or (rows - 1) * stride + HS <= source.size, "prefetch_tile: the source is too small")
    comptime PER_LINE = 64 // size_of[Scalar[dtype]]()
    for r in range(rows):
        for c in range(0, HS, PER_LINE):
            prefetch[_INTO_L2](source.ptr.unsafe_offset(r * stride + c))


def store_tile[dtype: DType](target: Tensor[dtype], stride: Int, tile: Tensor[F32], rows: Int, HS: Int):
    """Copies a tile (BLOCK,HSp) out to `rows` rows of HS channels that lie `stride` apart."""
    var HSp = padded(HS)
    var full = HS - HS % W
    for r in range(rows):
        for c in range(0, full, W):
            target.store(r * stride + c, round_to[dtype](tile.load[W](r * HSp + c)))
        for c in range(full, HS):
            target[r * stride + c] = round_to[dtype](tile[r * HSp + c])


@always_inline
def strip_product[
    accumulate: Bool
](
    c: Tensor[F32],
    ldc: Int,
    a: Tensor[F32],
    a_row_stride: Int,
    a_k_stride: Int,
    b: Tensor[F32],
    ldb: Int,
    N: Int,
    K: Int,
):
    """Computes C = A @ B, or C += A @ B, for STRIP rows of C.

    a (STRIP,K) with any strides, b (K,N) and c (STRIP,N) in rows; N a multiple of the vector width.
    """
    check_that(N % W == 0, "strip_product: N")
    check_that((STRIP - 1) * ldc + N <= c.size, "strip_product: c is too small")
    check_that((STRIP - 1) * a_row_stride + (K - 1) * a_k_stride < a.size, "strip_product: a is too small")
    check_that((K - 1) * ldb + N <= b.size, "strip_product: b is too small")
    for r in range(0, STRIP, _ROWS):
        var c_r, a_r = c.ptr.unsafe_offset(r * ldc), a.ptr.unsafe_offset(r * a_row_stride)
        var j = 0
        comptime for vectors in range(_VECTORS, 0, -1):
            while j + vectors * W <= N:
                _strip_columns[vectors, accumulate](
                    c_r.unsafe_offset(j), ldc, a_r, a_row_stride, a_k_stride, b.ptr.unsafe_offset(j), ldb, K
                )
                j += vectors * W


@always_inline
def _strip_columns[
    vectors: Int, accumulate: Bool
](c: Ptr, ldc: Int, a: Ptr, a_row_stride: Int, a_k_stride: Int, b: Ptr, ldb: Int, K: Int):
    var acc = Array[SIMD[F32, W], _ROWS * vectors](fill=SIMD[F32, W](0))
    var a_k = a
    var b_k = b
    for _ in range(K):
        var b_row = Array[SIMD[F32, W], vectors](fill=SIMD[F32, W](0))
        comptime for v in range(vectors):
            b_row[v] = b_k.unsafe_offset(v * W).unsafe_load[width=W]()
        comptime for r in range(_ROWS):
            var broadcast = SIMD[F32, W](a_k[unsafe_offset=r * a_row_stride])
            comptime for v in range(vectors):
                acc[r * vectors + v] = broadcast.fma(b_row[v], acc[r * vectors + v])
        a_k = a_k.unsafe_offset(a_k_stride)
        b_k = b_k.unsafe_offset(ldb)
    comptime for r in range(_ROWS):
        comptime for v in range(vectors):
            var target = c.unsafe_offset(r * ldc + v * W)
            comptime if accumulate:
                target.unsafe_store(target.unsafe_load[width=W]() + acc[r * vectors + v])
            else:
                target.unsafe_store(acc[r * vectors + v])
