"""Attention of one new position over keys and values that a cache keeps in tiles (see llm/cpu/tile.mojo)."""

from std.math import iota, sqrt
from std.sys import simd_width_of
from std.utils.numerics import neg_inf

from llm.base.memory import Tensor
from llm.cpu.simd.tile import BLOCK, padded
from llm.cpu.simd.vector_math import exp

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _MINUS_INFINITY = SIMD[F32, W](neg_inf[F32]())


def append_position(keys: Tensor[F32], values: Tensor[F32], slot: Int, key: Tensor[F32], value: Tensor[F32]):
    """Puts key and value (HS) at place `slot` of the tiles keys (HSp,BLOCK) and values (BLOCK,HSp)."""
    var HSp = padded(key.size)
    for c in range(key.size):
        keys[c * BLOCK + slot] = key[c]
        values[slot * HSp + c] = value[c]


def tile_scores(scores: Tensor[F32], query: Tensor[F32], keys: Tensor[F32], visible: Int):
    """Computes scores = query @ keys / sqrt(HS), minus infinity from `visible` on.

    query (HS), keys (HSp,BLOCK), scores (BLOCK).
    """
    comptime VECTORS = BLOCK // W
    var sums = Array[SIMD[F32, W], VECTORS](fill=SIMD[F32, W](0))
    for c in range(query.size):
        var q = SIMD[F32, W](query[c])
        comptime for v in range(VECTORS):
            sums[v] = q.fma(keys.load[W](c * BLOCK + v * W), sums[v])
    var scale = 1 / sqrt(Float32(query.size))
    comptime for v in range(VECTORS):
        var is_visible = iota[DType.int32, W](Int32(v * W)).lt(Int32(visible))
        scores.store(v * W, is_visible.select(sums[v] * scale, _MINUS_INFINITY))


def softmax_numerators(scores: Tensor[F32]) -> Float32:
    """Replaces scores, whole vectors, by e^(score - largest) and returns their sum."""
    var largest = _MINUS_INFINITY
    for i in range(0, scores.size, W):
        largest = max(largest, scores.load[W](i))
    var highest = SIMD[F32, W](largest.reduce_max())
    var sum = SIMD[F32, W](0)
    for i in range(0, scores.size, W):
        var score = scores.load[W](i)
        var e = score.eq(_MINUS_INFINITY).select(SIMD[F32, W](0), exp(score - highest))
        scores.store(i, e)
        sum += e
    return sum.reduce_add()


def add_tile_values(output: Tensor[F32], weights: Tensor[F32], values: Tensor[F32], visible: Int):
    """Adds weights @ values to the output: weights (visible), values (BLOCK,HSp), output (HSp)."""
    comptime VECTORS = 4
    var HSp = output.size
    var unrolled = HSp - HSp % (VECTORS * W)
    for c in range(0, unrolled, VECTORS * W):
        _add_columns[VECTORS](output, weights, values, c, visible)
    for c in range(unrolled, HSp, W):
        _add_columns[1](output, weights, values, c, visible)


@always_inline
def _add_columns[vectors: Int](output: Tensor[F32], weights: Tensor[F32], values: Tensor[F32], c: Int, visible: Int):
    var sums = Array[SIMD[F32, W], vectors](fill=SIMD[F32, W](0))
    comptime for v in range(vectors):
        sums[v] = output.load[W](c + v * W)
    for i in range(visible):
        var weight = SIMD[F32, W](weights[i])
        comptime for v in range(vectors):
            sums[v] = weight.fma(values.load[W](i * output.size + c + v * W), sums[v])
    comptime for v in range(vectors):
        output.store(c + v * W, sums[v])
