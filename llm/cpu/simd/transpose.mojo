"""Transposition of W x W blocks in registers."""

from std.sys import simd_width_of

from llm.base.memory import Tensor

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime V = SIMD[F32, W]
comptime Ptr = Tensor[F32].Ptr


@always_inline
def transpose(mut rows: Array[V, W]):
    """Exchanges rows and columns.

    Interleaving row i with row i + W/2, for all i, is one step of a perfect shuffle of the block's W^2 elements; log2(W)
    such steps exchange rows and columns.
    """
    comptime for _ in range(_log2(W)):
        var shuffled = Array[V, W](fill=V(0))
        comptime for r in range(W // 2):
            var pair = rows[r].interleave(rows[r + W // 2])
            shuffled[2 * r] = pair.slice[W]()
            shuffled[2 * r + 1] = pair.slice[W, offset=W]()
        rows = shuffled^


@always_inline
def transpose_block[dtype: DType](target: Ptr, target_stride: Int, source: Tensor[dtype].Ptr, source_stride: Int):
    """Writes target[c, r] = source[r, c] for r, c in 0 .. W - 1."""
    var rows = Array[V, W](fill=V(0))
    comptime for r in range(W):
        rows[r] = source.unsafe_offset(r * source_stride).unsafe_load[width=W]().cast[F32]()
    transpose(rows)
    comptime for c in range(W):
        target.unsafe_offset(c * target_stride).unsafe_store(rows[c])


def _log2(n: Int) -> Int:
    return 0 if n == 1 else 1 + _log2(n // 2)
