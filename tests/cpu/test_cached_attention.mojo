"""Attention of one position over tiles, piece by piece and whole, against softmax attention in float64.

What a cache has not written yet is NaN here: no result may depend on it.
"""

from std.math import exp, sqrt
from std.sys import simd_width_of
from std.testing import TestSuite, assert_equal, assert_true
from std.utils.numerics import isnan, neg_inf

from framed import F32, F64, Framed, assert_frame_is_whole, assert_near, assert_same_bits
from side_by_side import side_by_side

from llm.base.memory import Tensor
from llm.cpu.cached_attention import add_tile_values, append_position, softmax_numerators, tile_scores
from llm.cpu.simd.tile import BLOCK, padded
from llm.cpu.threads.crew import Team, share

comptime W = simd_width_of[F32]()
comptime EXP_ERROR = Float64(5)
"""Roundings that make up the error of `exp`, 2 ulp, and of the difference it is taken of."""


def head_sizes() -> List[Int]:
    return [1, W - 1, W, W + 1, 2 * W + 3, 64, 5 * W + 1]


def test_append_position() raises:
    var memory = Framed()
    for HS in head_sizes():
        var HSp = padded(HS)
        for slot in [0, 1, BLOCK - 1]:
            var keys, values = memory.blank(HSp * BLOCK), memory.blank(BLOCK * HSp)
            var key, value = memory.numbers(HS), memory.numbers(HS)
            append_position(keys, values, slot, key, value)
            for c in range(HSp):
                for i in range(BLOCK):
                    var what = String(t"HS={HS}, slot {slot}, at {c}, {i}")
                    if i == slot and c < HS:
                        assert_equal(keys[c * BLOCK + i], key[c], what)
                        assert_equal(values[i * HSp + c], value[c], what)
                    else:
                        assert_true(isnan(keys[c * BLOCK + i]) and isnan(values[i * HSp + c]), what)
            assert_frame_is_whole(keys, String(t"keys, HS={HS}"))
            assert_frame_is_whole(values, String(t"values, HS={HS}"))
    _ = memory^


def filled_tiles(mut memory: Framed, HS: Int, count: Int) raises -> Tuple[Tensor[F32], Tensor[F32]]:
    """Makes a tile of keys and one of values, of which `count` positions are numbers and all else is NaN."""
    var keys, values = memory.blank(padded(HS) * BLOCK), memory.blank(BLOCK * padded(HS))
    for i in range(count):
        for c in range(HS):
            keys[c * BLOCK + i] = memory.random()
            values[i * padded(HS) + c] = memory.random()
    return keys, values


def test_tile_scores() raises:
    var memory = Framed()
    for HS in head_sizes():
        for visible in [1, W - 1, W, W + 1, BLOCK - 1, BLOCK, BLOCK + 9]:
            var keys, _ = filled_tiles(memory, HS, min(visible, BLOCK))
            var query, scores = memory.numbers(HS), memory.blank(BLOCK)
            tile_scores(scores, query, keys, visible)
            for i in range(BLOCK):
                var what = String(t"HS={HS}, {visible} visible, at {i}")
                if i >= visible:
                    assert_equal(scores[i], neg_inf[F32](), what)
                    continue
                var sum, magnitude = Float64(0), Float64(0)
                for c in range(HS):
                    var product = query[c].cast[F64]() * keys[c * BLOCK + i].cast[F64]()
                    sum += product
                    magnitude += abs(product)
                var scale = 1 / sqrt(Float64(HS))
                # The root, its inverse and the product with it are rounded too.
                assert_near(scores[i], sum * scale, Float64(HS + 3), magnitude * scale, what)
            assert_frame_is_whole(scores, String(t"HS={HS}, {visible} visible"))
    _ = memory^


def check_numerators(mut memory: Framed, size: Int, visible: Int, spread: Float32) raises:
    var scores, before = memory.blank(size), memory.blank(size)
    var highest = Float64(-1e30)
    for i in range(size):
        before[i] = memory.random() * spread if i < visible else neg_inf[F32]()
        scores[i] = before[i]
        highest = max(highest, before[i].cast[F64]())
    var sum = softmax_numerators(scores)
    var total = Float64(0)
    for i in range(size):
        var what = String(t"{visible} of {size}, spread {spread}, at {i}")
        if i >= visible:
            assert_equal(scores[i], 0, what)
            continue
        var difference = before[i].cast[F64]() - highest
        # The difference is rounded once, which changes e^difference by so many roundings as the difference is large.
        assert_near(scores[i], exp(difference), EXP_ERROR + abs(difference), exp(difference), what)
        total += scores[i].cast[F64]()
    assert_near(sum, total, Float64(size // W + W), total, String(t"sum of {visible} of {size}"))
    assert_frame_is_whole(scores, String(t"{visible} of {size}"))


def test_softmax_numerators() raises:
    var memory = Framed()
    for size in [W, BLOCK, 3 * BLOCK]:
        for visible in [1, W - 1, W, size - 1, size]:
            for spread in [Float32(0), 1, 40, 80]:
                check_numerators(memory, size, max(visible, 1), spread)
    _ = memory^


def test_scores_far_below_the_largest_count_for_nothing() raises:
    var memory = Framed()
    var scores = memory.blank(BLOCK)
    scores.fill(-1e4)
    scores[W + 1] = 1e4
    assert_equal(softmax_numerators(scores), 1)
    for i in range(BLOCK):
        assert_true(scores[i] == 1 if i == W + 1 else scores[i] < 1e-37, String(t"at {i}: {scores[i]}"))
    _ = memory^


def test_add_tile_values() raises:
    var memory = Framed()
    for HS in head_sizes():
        var HSp = padded(HS)
        for visible in [0, 1, W + 1, BLOCK - 1, BLOCK]:
            var _, values = filled_tiles(memory, HS, visible)
            var weights, output, before = memory.numbers(visible), memory.numbers(HSp), memory.blank(HSp)
            for c in range(HSp):
                before[c] = output[c]
            add_tile_values(output, weights, values, visible)
            for c in range(HS):
                var sum = before[c].cast[F64]()
                var magnitude = abs(sum)
                for i in range(visible):
                    var product = weights[i].cast[F64]() * values[i * HSp + c].cast[F64]()
                    sum += product
                    magnitude += abs(product)
                assert_near(output[c], sum, Float64(visible + 1), magnitude, String(t"HS={HS}, {visible} visible, {c}"))
            assert_frame_is_whole(output, String(t"HS={HS}, {visible} visible"))
    _ = memory^


# ----- whole: some heads, each over tiles of its own


@fieldwise_init
struct Heads:
    """Attention of one query per head over `length` positions, put together as a step of generation does it."""

    var output: Tensor[F32]
    """Shape (heads,HSp)."""
    var scores: Tensor[F32]
    """Shape (heads,tiles,BLOCK)."""
    var queries: Tensor[F32]
    """Shape (heads,HS)."""
    var keys: Tensor[F32]
    """Shape (heads,tiles,HSp,BLOCK)."""
    var values: Tensor[F32]
    """Shape (heads,tiles,BLOCK,HSp)."""
    var heads: Int
    var length: Int
    var HS: Int

    def tiles(self) -> Int:
        return (self.length + BLOCK - 1) // BLOCK

    def tile(self, all: Tensor[F32], h: Int, t: Int) -> Tensor[F32]:
        """Views tile t of head h."""
        var size = BLOCK * padded(self.HS)
        return all.slice((h * self.tiles() + t) * size, size)

    def attend(self, team: Team):
        var HSp = padded(self.HS)
        var tiles = self.tiles()

        def body(member: Int) {imm}:
            var lo, hi = share(self.heads, team.size, member)
            for h in range(lo, hi):
                var query = self.queries.slice(h * self.HS, self.HS)
                var scores = self.scores.slice(h * tiles * BLOCK, tiles * BLOCK)
                var sums = self.output.slice(h * HSp, HSp)
                for t in range(tiles):
                    tile_scores(
                        scores.slice(t * BLOCK, BLOCK), query, self.tile(self.keys, h, t), self.length - t * BLOCK
                    )
                var denominator = softmax_numerators(scores)
                sums.fill(0)
                for t in range(tiles):
                    var visible = min(BLOCK, self.length - t * BLOCK)
                    add_tile_values(sums, scores.slice(t * BLOCK, visible), self.tile(self.values, h, t), visible)
                for c in range(self.HS):
                    sums[c] = sums[c] / denominator

        team.run(body)


def check_attention(mut memory: Framed, length: Int, HS: Int, spread: Float32) raises:
    var heads, HSp = 7, padded(HS)
    var tiles = (length + BLOCK - 1) // BLOCK
    # A head's keys and values as plain rows, which `append_position` spreads over the tiles.
    var k, v = memory.numbers(heads * length * HS), memory.numbers(heads * length * HS)
    var queries = memory.numbers(heads * HS)
    for i in range(queries.size):
        queries[i] *= spread
    var tile_size = tiles * BLOCK * HSp
    var keys, values = memory.blank(heads * tile_size), memory.blank(heads * tile_size)
    var output, scores = memory.blank(heads * HSp), memory.blank(heads * tiles * BLOCK)
    var step = Heads(output, scores, queries, keys, values, heads, length, HS)
    for h in range(heads):
        for i in range(length):
            var row = (h * length + i) * HS
            var tile, slot = divmod(i, BLOCK)
            append_position(
                step.tile(keys, h, tile), step.tile(values, h, tile), slot, k.slice(row, HS), v.slice(row, HS)
            )

    def alone(team: Team) {imm}:
        step.attend(team)

    side_by_side(1, alone)

    for h in range(heads):
        var exact = List[Float64]()
        var highest, score_error = Float64(-1e30), Float64(0)
        for i in range(length):
            var sum, magnitude = Float64(0), Float64(0)
            for c in range(HS):
                var product = queries[h * HS + c].cast[F64]() * k[(h * length + i) * HS + c].cast[F64]()
                sum += product
                magnitude += abs(product)
            exact.append(sum / sqrt(Float64(HS)))
            highest = max(highest, exact[i])
            # A score's absolute error is the relative error of e^score; the difference from the largest has both.
            score_error = max(score_error, Float64(HS + 4) * magnitude / sqrt(Float64(HS)))
        var denominator = Float64(0)
        for i in range(length):
            exact[i] = exp(exact[i] - highest)
            denominator += exact[i]
        for c in range(HS):
            var sum, magnitude = Float64(0), Float64(0)
            for i in range(length):
                var product = exact[i] / denominator * v[(h * length + i) * HS + c].cast[F64]()
                sum += product
                magnitude += abs(product)
            # Numerators and their sum have the error of e^score; both sums have roundings of their own.
            var roundings = 2 * (2 * score_error + EXP_ERROR + Float64(length)) + 2
            assert_near(
                output[h * HSp + c], sum, roundings, magnitude, String(t"{length} positions, HS={HS}, {h}, {c}")
            )

    for threads in [2, 3, 5]:
        var again = memory.blank(output.size)
        var more_scores = memory.blank(scores.size)
        var step_again = Heads(again, more_scores, queries, keys, values, heads, length, HS)

        def together(team: Team) {imm}:
            step_again.attend(team)

        side_by_side(threads, together)
        for h in range(heads):
            var what = String(t"head {h}, {threads} threads")
            assert_same_bits(again.slice(h * HSp, HS), output.slice(h * HSp, HS), what)
        assert_frame_is_whole(again, String(t"{threads} threads"))


def test_attention() raises:
    var memory = Framed()
    for length in [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3, 300]:
        for HS in [1, W - 1, W + 1, 64]:
            check_attention(memory, length, HS, spread=1)
            check_attention(memory, length, HS, spread=20)
    _ = memory^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
