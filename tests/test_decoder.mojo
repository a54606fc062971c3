"""Texts side by side in one decoder: each as it is alone, whenever others join, leave or share its beginning.

What a text alone should be is tested against PyTorch in test_decode.py.
"""

from std.memory import bitcast
from std.testing import TestSuite, assert_equal, assert_raises, assert_true

from llm.base.memory import Tensor
from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.decoder import Decoder
from llm.model.initialize import initialize_parameters
from llm.model.tensors import NUM_TENSORS, ParameterTensors

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime V = 61
comptime CONTEXT = 150


def small() raises -> GPT2Config:
    return GPT2Config(max_seq_len=CONTEXT, vocab_size=V, num_layers=3, num_heads=3, channels=24)


def parameters[dtype: DType](config: GPT2Config) raises -> ParameterTensors[dtype]:
    """Parameters large enough that every position matters."""
    var wide = ParameterTensors[F32](config)
    initialize_parameters(Team(1), wide, config, seed=3)
    var params = ParameterTensors[dtype](config)
    for i in range(NUM_TENSORS):
        for j in range(wide[i].size):
            wide[i][j] *= 8
        convert(Team(1), params[i], wide[i])
    return params^


@fieldwise_init
struct Text(Copyable, Movable):
    """What a text is made of, and when it comes."""

    var prompt: List[Int32]
    var continuation: List[Int32]
    var joins: Int
    """The step at which it begins."""


def tokens(count: Int, seed: Int) -> List[Int32]:
    var list = List[Int32](capacity=count)
    for i in range(count):
        list.append(Int32((i * i * 7 + i * seed + 3 * seed) % V))
    return list^


def some_texts() -> List[Text]:
    """Beginnings that are empty, short, of whole pages and longer; some end before others begin."""
    var texts = List[Text]()
    for i, length in enumerate([0, 1, 8, 9, 63, 64, 65, 130]):
        texts.append(Text(tokens(length, i + 1), tokens(3 + 2 * i, 40 - i), joins=(3 * i) % 7))
    return texts^


def bits(logits: Tensor[F32]) -> List[UInt32]:
    var list = List[UInt32](capacity=logits.size)
    for i in range(logits.size):
        list.append(bitcast[DType.uint32](logits[i]))
    return list^


def alone[dtype: DType](params: ParameterTensors[dtype], text: Text) raises -> List[List[UInt32]]:
    """Returns the logits after each token of the continuation."""
    var decoder = Decoder[dtype](small(), params, 1, texts=1, context=CONTEXT)
    decoder.begin(0, text.prompt)
    var logits = List[List[UInt32]]()
    for token in text.continuation:
        decoder.step([token], [0])
        logits.append(bits(decoder.logits))
    return logits^


def check_side_by_side[dtype: DType](threads: Int) raises:
    var params = parameters[dtype](small())
    var texts = some_texts()
    var decoder = Decoder[dtype](small(), params, threads, texts=len(texts), context=CONTEXT)
    var expected = List[List[List[UInt32]]]()
    for ref text in texts:
        expected.append(alone(params, text))
    # Each text has another's place, so that no result can come from its number.
    var checked = 0
    for step in range(40):
        var active = List[Int]()
        var places = List[Int]()
        var next = List[Int32]()
        for i, ref text in enumerate(texts):
            var place = (i * 3 + 1) % len(texts)
            if step == text.joins:
                decoder.begin(place, text.prompt)
            var done = step - text.joins
            if done == len(text.continuation):
                decoder.end(place)
            if 0 <= done and done < len(text.continuation):
                active.append(i)
                places.append(place)
                next.append(text.continuation[done])
        if len(active) == 0:
            continue
        decoder.step(next, places)
        for row, i in enumerate(active):
            assert_equal(decoder.length(places[row]), len(texts[i].prompt) + step - texts[i].joins + 1)
            var got = bits(decoder.logits.slice(row * V, V))
            assert_true(got == expected[i][step - texts[i].joins], String(t"text {i}, step {step}, {threads} threads"))
            checked += 1
    assert_equal(checked, 80)
    _ = params^


def test_texts_of_different_lengths() raises:
    for threads in [1, 2, 5]:
        check_side_by_side[F32](threads)
    check_side_by_side[BF16](3)


def test_sharing_a_beginning_changes_nothing() raises:
    var params = parameters[F32](small())
    for length in [1, 64, 70]:
        var decoder = Decoder[F32](small(), params, 2, texts=3, context=CONTEXT)
        decoder.begin(1, tokens(length, 5))
        decoder.share(0, 1)
        decoder.share(2, 0)
        for place in [0, 1, 2]:
            var text = Text(tokens(length, 5), tokens(9, place), joins=0)
            var expected = alone(params, text)
            for i, token in enumerate(text.continuation):
                decoder.step([token], [place])
                assert_true(bits(decoder.logits) == expected[i], String(t"place {place}, step {i}, {length} shared"))
    _ = params^


def test_room_that_others_need() raises:
    var params = parameters[F32](small())
    var decoder = Decoder[F32](small(), params, 1, texts=2, context=CONTEXT)
    decoder.begin(0, tokens(5, 1))
    decoder.share(1, 0)
    with assert_raises(contains="text 1 goes on from the prompt of text 0"):
        decoder.begin(0, tokens(3, 2))
    # An ended owner keeps the beginning for the others.
    decoder.end(0)
    var expected = alone(params, Text(tokens(5, 1), tokens(1, 9), joins=0))
    decoder.step([tokens(1, 9)[0]], [1])
    assert_true(bits(decoder.logits) == expected[0])
    decoder.end(1)
    decoder.begin(0, tokens(3, 2))
    assert_equal(decoder.length(0), 3)
    _ = params^


def test_what_makes_no_sense() raises:
    var params = parameters[F32](small())
    var decoder = Decoder[F32](small(), params, 1, texts=2, context=8)
    with assert_raises(contains="expected a text from 0 to 1, got 2"):
        decoder.begin(2, tokens(3, 1))
    with assert_raises(contains="9 tokens do not fit into a context of 8"):
        decoder.begin(0, tokens(9, 1))
    with assert_raises(contains="token 61 is not in this model's vocabulary of 61"):
        decoder.begin(0, [Int32(V)])
    decoder.begin(0, tokens(8, 1))
    with assert_raises(contains="the context of 8 tokens is full"):
        decoder.step([1], [0])
    with assert_raises(contains="named twice"):
        decoder.step([1, 2], [1, 1])
    with assert_raises(contains="expected a token for each"):
        decoder.step([1, 2], [1])
    with assert_raises(contains="expected at least one text and a context of 1 to 150, got 1 and 151"):
        _ = Decoder[F32](small(), params, 1, texts=1, context=CONTEXT + 1)
    _ = params^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
