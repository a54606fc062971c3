"""The micro-kernel: MR x NR sums in registers."""

from llm.memory import Tensor

from .blocking import A_STRIDE, MR, NR, W
from .epilogue import Epilogue
from .matrix import Matrix

comptime F32 = DType.float32
comptime Ptr = Tensor[F32].Ptr
comptime VECTORS = NR // W


@always_inline
def micro_kernel[
    E: Epilogue, //, a_in_rows: Bool
](
    kc: Int,
    a: Ptr,
    b: Ptr,
    c: Ptr,
    ldc: Int,
    rows: Int,
    columns: Int,
    row: Int,
    col: Int,
    add: Bool,
    last: Bool,
    epilogue: E,
):
    """Computes one tile: C = [C +] A @ B over kc terms, then epilogue(C) if these are the last.

    a is a packed panel, (MR, A_STRIDE) in rows or (kc, MR); b a packed panel (kc, NR). c points at element (row, col); only
    `rows` x `columns` of the tile exist.
    """
    var acc = Array[SIMD[F32, W], MR * VECTORS](fill=SIMD[F32, W](0))
    var a_k = a
    var b_k = b
    for _ in range(kc):
        var b_row = Array[SIMD[F32, W], VECTORS](fill=SIMD[F32, W](0))
        comptime for v in range(VECTORS):
            b_row[v] = b_k.unsafe_offset(v * W).unsafe_load[width=W]()
        comptime for i in range(MR):
            comptime offset = i * A_STRIDE if a_in_rows else i
            var broadcast = SIMD[F32, W](a_k[unsafe_offset=offset])
            comptime for v in range(VECTORS):
                acc[i * VECTORS + v] = broadcast.fma(b_row[v], acc[i * VECTORS + v])
        a_k = a_k.unsafe_offset(1 if a_in_rows else MR)
        b_k = b_k.unsafe_offset(NR)

    if rows == MR and columns == NR:
        comptime for i in range(MR):
            comptime for v in range(VECTORS):
                var target = c.unsafe_offset(i * ldc + v * W)
                var sum = acc[i * VECTORS + v]
                if add:
                    sum += target.unsafe_load[width=W]()
                if last:
                    sum = epilogue.apply[W](row + i, col + v * W, sum)
                target.unsafe_store(sum)
    else:
        var tile = Array[Float32, MR * NR](fill=0)
        comptime for i in range(MR * VECTORS):
            tile.unsafe_ptr().unsafe_offset(i * W).unsafe_store(acc[i])
        for i in range(rows):
            for j in range(columns):
                var sum = tile[i * NR + j]
                if add:
                    sum += c[unsafe_offset=i * ldc + j]
                if last:
                    sum = epilogue.apply[1](row + i, col + j, sum)
                c[unsafe_offset=i * ldc + j] = sum
