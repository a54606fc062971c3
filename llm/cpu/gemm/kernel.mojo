"""The micro-kernel: a tile of C, MR rows by up to NR columns, held in registers over one block of K."""

from std.sys import PrefetchOptions, prefetch

from llm.memory import Tensor

from .blocking import CHUNK, F32, LDA, MR, NR, W
from .epilogue import Epilogue
from .pack import Ahead

comptime Ptr = Tensor[F32].Ptr
comptime V = SIMD[F32, W]
comptime _TO_WRITE = PrefetchOptions().for_write().high_locality().to_data_cache()


@fieldwise_init
struct Step(TrivialRegisterPassable):
    """Which block of K a tile is at."""

    var depth: Int
    """Products to add up."""
    var adds_to_c: Bool
    """C holds the sums of earlier blocks, or of the caller."""
    var is_last: Bool
    """The sums are complete: the epilogue applies."""


@always_inline
def update_tile[
    E: Epilogue, vectors: Int
](
    a: Ptr,
    b: Ptr,
    c: Ptr,
    ldc: Int,
    row: Int,
    col: Int,
    rows: Int,
    cols: Int,
    step: Step,
    epilogue: E,
    mut next_a: Ahead,
    mut next_b: Ahead,
):
    """Computes C = A @ B or C += A @ B for the tile at (row,col) of C, and the epilogue after the last step.

    a (MR,depth) in rows LDA apart, b (depth,vectors * W) in rows NR apart, both padded with zeros; c (rows,cols) with
    rows <= MR and cols <= vectors * W, of which nothing outside is touched. Each element is one chain of fused
    multiply-adds in the order of K, then added to C: the same bits in whichever tile it falls. Meanwhile it calls for
    C, and depth // CHUNK times for what is packed next.
    """
    var sums = Array[V, MR * vectors](fill=V(0))
    for chunk in range(step.depth // CHUNK):
        next_a.fetch()
        next_b.fetch()
        if chunk < MR:
            comptime for v in range(vectors):
                prefetch[_TO_WRITE](c.unsafe_offset(chunk * ldc + v * W))
        comptime for i in range(CHUNK):
            _add_products(sums, a.unsafe_offset(chunk * CHUNK + i), b.unsafe_offset((chunk * CHUNK + i) * NR))
    for k in range(step.depth - step.depth % CHUNK, step.depth):
        _add_products(sums, a.unsafe_offset(k), b.unsafe_offset(k * NR))
    if rows == MR and cols == vectors * W:
        _finish_whole(sums, c, ldc, row, col, step, epilogue)
    else:
        _finish_part[vectors](sums, c, ldc, row, col, rows, cols, step, epilogue)


@always_inline
def _add_products[vectors: Int, //](mut sums: Array[V, MR * vectors], a: Ptr, b: Ptr):
    # sums[r, :] += a[r] * b[:], for one k
    var b_row = Array[V, vectors](fill=V(0))
    comptime for v in range(vectors):
        b_row[v] = b.unsafe_offset(v * W).unsafe_load[width=W]()
    comptime for r in range(MR):
        var a_element = V(a[unsafe_offset=r * LDA])
        comptime for v in range(vectors):
            sums[r * vectors + v] = a_element.fma(b_row[v], sums[r * vectors + v])


@always_inline
def _finish_whole[
    E: Epilogue, vectors: Int, //
](sums: Array[V, MR * vectors], c: Ptr, ldc: Int, row: Int, col: Int, step: Step, epilogue: E):
    comptime for r in range(MR):
        comptime for v in range(vectors):
            _finish[W](sums[r * vectors + v], c.unsafe_offset(r * ldc + v * W), row + r, col + v * W, step, epilogue)


def _finish_part[
    E: Epilogue, //, vectors: Int
](sums: Array[V, MR * vectors], c: Ptr, ldc: Int, row: Int, col: Int, rows: Int, cols: Int, step: Step, epilogue: E,):
    for r in range(rows):
        for v in range(vectors):
            var sum = sums[r * vectors + v]
            var target = c.unsafe_offset(r * ldc + v * W)
            if (v + 1) * W <= cols:
                _finish[W](sum, target, row + r, col + v * W, step, epilogue)
            else:
                for i in range(cols - v * W):
                    _finish[1](sum[i], target.unsafe_offset(i), row + r, col + v * W + i, step, epilogue)


@always_inline
def _finish[E: Epilogue, //, width: Int](sum: SIMD[F32, width], c: Ptr, row: Int, col: Int, step: Step, epilogue: E):
    var value = sum
    if step.adds_to_c:
        value += c.unsafe_load[width=width]()
    if step.is_last:
        value = epilogue.apply[width](row, col, value)
    c.unsafe_store(value)
