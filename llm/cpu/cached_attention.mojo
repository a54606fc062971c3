"""Attention of new positions over keys and values that are kept in pages, and how these get there.

A page holds BLOCK positions of one text: for each layer and head the keys as a tile (HSp,BLOCK) and the values as a tile
(BLOCK,HSp), HSp being the head's channels padded to whole vectors: what attention multiplies is contiguous, and memory is
touched only as far as a text reaches.
"""

from std.math import iota, sqrt
from std.sys import simd_width_of
from std.utils.numerics import neg_inf

from llm.base.memory import Tensor
from llm.cpu.simd.tile import BLOCK, load_tile, load_tile_transposed, padded
from llm.cpu.simd.vector_math import exp
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _MINUS_INFINITY = SIMD[F32, W](neg_inf[F32]())


struct Pages(Copyable, TrivialRegisterPassable):
    """Room for the positions of one text, in all layers and heads."""

    var _tiles: Tensor[F32]
    var _layers: Int
    var _heads: Int
    var _tile_size: Int

    def __init__(out self, memory: Tensor[F32], *, layers: Int, heads: Int, HS: Int):
        """Divides memory into tiles."""
        self._tiles = memory
        self._layers = layers
        self._heads = heads
        self._tile_size = padded(HS) * BLOCK

    @staticmethod
    def count(positions: Int) -> Int:
        """Counts the pages that so many positions take."""
        return (positions + BLOCK - 1) // BLOCK

    @staticmethod
    def size(pages: Int, *, layers: Int, heads: Int, HS: Int) -> Int:
        """Counts the scalars of so many pages."""
        return pages * layers * heads * 2 * padded(HS) * BLOCK

    def after(self, positions: Int) -> Self:
        """Views the pages after those that so many positions take."""
        var skipped = Self.count(positions) * self._layers * self._heads * 2 * self._tile_size
        var rest = self
        rest._tiles = self._tiles.slice(skipped, self._tiles.size - skipped)
        return rest

    @always_inline
    def keys(self, page: Int, layer: Int, head: Int) -> Tensor[F32]:
        """Views a tile of keys: (HSp,BLOCK)."""
        var i = ((page * self._layers + layer) * self._heads + head) * 2
        return self._tiles.slice(i * self._tile_size, self._tile_size)

    @always_inline
    def values(self, page: Int, layer: Int, head: Int) -> Tensor[F32]:
        """Views a tile of values: (BLOCK,HSp)."""
        var i = ((page * self._layers + layer) * self._heads + head) * 2 + 1
        return self._tiles.slice(i * self._tile_size, self._tile_size)


@fieldwise_init
struct CachedText(Copyable, TrivialRegisterPassable):
    """The positions that a text has so far: those of its prompt, which other texts may share, and its own."""

    var prompt: Pages
    var prompt_length: Int
    var own: Pages
    """Begins with a page of its own: what follows the prompt has the same bits whoever shares it."""
    var own_length: Int

    def length(self) -> Int:
        """Counts the positions."""
        return self.prompt_length + self.own_length


def cached_attention_workspace_size(context: Int, HS: Int, threads: Int) -> Int:
    """Float32 scratch that `cached_attention` needs for texts of at most `context` positions."""
    return threads * _head_size(context, HS)


def _head_size(context: Int, HS: Int) -> Int:
    # A head's output, and scores for two runs of whole pages.
    return padded(HS) + (Pages.count(context) + 1) * BLOCK


def cached_attention(
    team: Team,
    workspace: Tensor[F32],
    output: Tensor[F32],
    qkv: Tensor[F32],
    texts: List[CachedText],
    layer: Int,
    C: Int,
    NH: Int,
):
    """Appends the new position of each text to its own pages and computes softmax(q K^T / sqrt(HS)) V for each head.

    qkv (S,3C) and output (S,C) have a row for each of the S texts. A text's result depends on nothing but that text.
    """
    var HS = C // NH
    var HSp = padded(HS)
    var part = workspace.size // team.size

    def body(member: Int) {imm}:
        var lo, hi = share(len(texts) * NH, team.size, member)
        var scratch = workspace.slice(member * part, part)
        for item in range(lo, hi):
            var row, h = divmod(item, NH)
            var text = texts[row]
            var query = qkv.slice(row * 3 * C + h * HS, HS)
            var key = qkv.slice(row * 3 * C + C + h * HS, HS)
            var value = qkv.slice(row * 3 * C + 2 * C + h * HS, HS)
            var page, slot = divmod(text.own_length, BLOCK)
            append_position(text.own.keys(page, layer, h), text.own.values(page, layer, h), slot, key, value)

            var sums = scratch.slice(0, HSp)
            var scores = scratch.slice(HSp, scratch.size - HSp)
            var used = _scores(scores, query, text.prompt, text.prompt_length, layer, h)
            var rest = scores.slice(used, scores.size - used)
            var used_own = _scores(rest, query, text.own, text.own_length + 1, layer, h)
            var denominator = softmax_numerators(scores.slice(0, used + used_own))
            sums.fill(0)
            _add_values(sums, scores, text.prompt, text.prompt_length, layer, h)
            _add_values(sums, rest, text.own, text.own_length + 1, layer, h)
            for c in range(HS):
                output[row * C + h * HS + c] = sums[c] / denominator

    team.run(body, "cached_attention")


def cache_positions[dtype: DType](team: Team, pages: Pages, qkv: Tensor[dtype], layer: Int, rows: Int, C: Int, NH: Int):
    """Copies the keys and values of a text's first positions, qkv (rows,3C), into its pages."""
    var HS = C // NH
    var num_pages = Pages.count(rows)

    def body(member: Int) {imm}:
        var lo, hi = share(num_pages * NH, team.size, member)
        for item in range(lo, hi):
            var page, h = divmod(item, NH)
            var first = page * BLOCK
            var count = min(BLOCK, rows - first)
            var extent = (count - 1) * 3 * C + HS
            var keys = qkv.slice(first * 3 * C + C + h * HS, extent)
            var values = qkv.slice(first * 3 * C + 2 * C + h * HS, extent)
            load_tile_transposed(pages.keys(page, layer, h), BLOCK, keys, 3 * C, count, HS)
            load_tile(pages.values(page, layer, h), values, 3 * C, count, HS)

    team.run(body, "cache_positions")


def _scores(scores: Tensor[F32], query: Tensor[F32], pages: Pages, length: Int, layer: Int, h: Int) -> Int:
    """Computes the scores of a text's first positions, whole pages of them, and returns how many places they take."""
    for first in range(0, length, BLOCK):
        tile_scores(scores.slice(first, BLOCK), query, pages.keys(first // BLOCK, layer, h), length - first)
    return Pages.count(length) * BLOCK


def _add_values(sums: Tensor[F32], weights: Tensor[F32], pages: Pages, length: Int, layer: Int, h: Int):
    """Adds the values of a text's first positions, weighted."""
    for first in range(0, length, BLOCK):
        var visible = min(BLOCK, length - first)
        add_tile_values(sums, weights.slice(first, visible), pages.values(first // BLOCK, layer, h), visible)


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
