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
from llm.cpu.cached_attention import (
    CachedText,
    Pages,
    add_tile_values,
    append_position,
    cache_positions,
    cached_attention,
    cached_attention_workspace_size,
    softmax_numerators,
    tile_scores,
)
from llm.cpu.simd.tile import BLOCK, padded
from llm.cpu.threads.crew import Team

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


comptime NH = 3


def a_row(mut memory: Framed, HS: Int, spread: Float32) raises -> Tensor[F32]:
    """Makes queries, keys and values of one position, (3,NH,HS), whose queries are `spread` times as large."""
    var row = memory.numbers(3 * NH * HS)
    for i in range(NH * HS):
        row[i] *= spread
    return row


struct Text(Copyable, Movable):
    """A text: rows of its prompt, which is cached at once, and of what is appended to it position by position."""

    var rows: List[Tensor[F32]]
    var prompt: Int
    """How many of the rows are the prompt's."""
    var qkv: Tensor[F32]
    """The prompt's rows one after another."""

    def __init__(out self, mut memory: Framed, prompt: Int, length: Int, HS: Int, spread: Float32) raises:
        self.rows = List[Tensor[F32]]()
        self.prompt = prompt
        for _ in range(length):
            self.rows.append(a_row(memory, HS, spread))
        self.qkv = memory.blank(prompt * 3 * NH * HS)
        for i in range(prompt):
            for j in range(3 * NH * HS):
                self.qkv[i * 3 * NH * HS + j] = self.rows[i][j]


def attended(mut memory: Framed, cases: List[Text], HS: Int, threads: Int) raises -> List[Tensor[F32]]:
    """Returns what the last position of each text makes of the positions up to it, (NH,HS), all texts side by side.

    A text whose rows are used up is left out of the later steps, as texts that have ended are.
    """
    comptime LAYERS = 2
    comptime LAYER = 1
    var C = NH * HS
    var texts = List[CachedText]()
    var longest = 0
    for ref text in cases:
        var pages = Pages.count(len(text.rows)) + 1
        var room = memory.blank(Pages.size(pages, layers=LAYERS, heads=NH, HS=HS))
        var prompt = Pages(room, layers=LAYERS, heads=NH, HS=HS)
        texts.append(CachedText(prompt, text.prompt, prompt.after(text.prompt), 0))
        longest = max(longest, len(text.rows))
        if text.prompt > 0:

            def cache(team: Team) {imm}:
                cache_positions(team, prompt, text.qkv, LAYER, text.prompt, C, NH)

            side_by_side(threads, cache)
    var workspace = memory.blank(cached_attention_workspace_size(longest, HS, threads))
    var results = List[Tensor[F32]]()
    for _ in cases:
        results.append(memory.blank(C))
    for step in range(longest):
        var active = List[Int]()
        var views = List[CachedText]()
        for i, ref text in enumerate(cases):
            if text.prompt + step < len(text.rows):
                active.append(i)
                views.append(texts[i])
        if len(active) == 0:
            break
        var qkv = memory.blank(len(active) * 3 * C)
        var output = memory.blank(len(active) * C)
        for row, i in enumerate(active):
            for j in range(3 * C):
                qkv[row * 3 * C + j] = cases[i].rows[cases[i].prompt + step][j]

        def attend(team: Team) {imm}:
            cached_attention(team, workspace, output, qkv, views, LAYER, C, NH)

        side_by_side(threads, attend)
        assert_frame_is_whole(output, String(t"{threads} threads"))
        for row, i in enumerate(active):
            texts[i].own_length += 1
            for j in range(C):
                results[i][j] = output[row * C + j]
    return results^


def check_text(text: Text, got: Tensor[F32], HS: Int, what: String) raises:
    """Compares with softmax attention in float64."""
    var length = len(text.rows)
    ref last = text.rows[length - 1]
    for h in range(NH):
        var exact = List[Float64]()
        var highest, score_error = Float64(-1e30), Float64(0)
        for i in range(length):
            var sum, magnitude = Float64(0), Float64(0)
            for c in range(HS):
                var product = last[h * HS + c].cast[F64]() * text.rows[i][(NH + h) * HS + c].cast[F64]()
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
                var product = exact[i] / denominator * text.rows[i][(2 * NH + h) * HS + c].cast[F64]()
                sum += product
                magnitude += abs(product)
            # Numerators and their sum have the error of e^score; both sums have roundings of their own.
            var roundings = 2 * (2 * score_error + EXP_ERROR + Float64(length)) + 2
            assert_near(got[h * HS + c], sum, roundings, magnitude, String(t"{what}, head {h}, channel {c}"))


def check_texts(HS: Int, spread: Float32) raises:
    var memory = Framed()
    var cases = List[Text]()
    # Prompts and continuations that are empty, of whole pages and a little more or less.
    for prompt, own in [(0, 1), (0, BLOCK + 1), (1, 1), (BLOCK - 1, 3), (BLOCK, BLOCK), (BLOCK + 1, 2), (130, 7)]:
        cases.append(Text(memory, prompt, prompt + own, HS, spread))
    var together = attended(memory, cases, HS, 1)
    for i, ref text in enumerate(cases):
        check_text(text, together[i], HS, String(t"HS={HS}, text {i}"))
    for threads in [2, 3, 5]:
        var again = attended(memory, cases, HS, threads)
        for i in range(len(cases)):
            assert_same_bits(again[i], together[i], String(t"HS={HS}, text {i}, {threads} threads"))
    for i in range(len(cases)):
        var one = List[Text]()
        one.append(cases[i].copy())
        var alone = attended(memory, one, HS, 1)
        assert_same_bits(alone[0], together[i], String(t"HS={HS}, text {i} alone"))
    _ = memory^


def test_texts_of_different_lengths() raises:
    for HS in [1, W - 1, W + 1, 64]:
        check_texts(HS, spread=1)
        check_texts(HS, spread=20)


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
