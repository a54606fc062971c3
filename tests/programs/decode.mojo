"""Logits and choices of llm/decode.mojo. Run by tests/test_decode.py.

    logits CHECKPOINT TOKENS DTYPE THREADS CONTEXT READ TEXTS OUT    reads the first READ tokens at once and steps through
                                                                     the rest, in TEXTS texts side by side; OUT holds the
                                                                     logits of every step, (steps, TEXTS, V)
    greedy CHECKPOINT TOKENS DTYPE THREADS CONTEXT COUNT             the COUNT tokens that most likely follow

TOKENS is a file of int32.
"""

from std.sys import argv, size_of

from llm.base.files import InputFile
from llm.base.memory import Arena
from llm.base.written_files import AtomicFile
from llm.infer.generator import Generator
from llm.infer.sampler import Sampler
from llm.model.checkpoints import read_config, read_parameters
from llm.model.decoder import Decoder
from llm.model.tensors import ParameterTensors

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16


def main() raises:
    if text(1) == "greedy":
        show_greedy()
    elif text(4) == "bf16":
        write_logits[BF16]()
    else:
        write_logits[F32]()


def show_greedy() raises:
    var config = read_config(text(2))
    var params = ParameterTensors[F32](config)
    read_parameters(text(2), params)
    var decoder = Decoder[F32](config, params, number(5), texts=1, context=number(6))
    var generator = Generator(decoder^, [Sampler(temperature=0)])
    generator.begin(read_tokens(text(3)))
    for _ in range(number(7)):
        print(generator.next()[0])
    _ = params^


def write_logits[dtype: DType]() raises:
    var config = read_config(text(2))
    var params = ParameterTensors[dtype](config)
    read_parameters(text(2), params)
    var tokens = read_tokens(text(3))
    var count, texts = number(7), number(8)
    var decoder = Decoder[dtype](config, params, number(5), texts=texts, context=number(6))
    decoder.begin(0, List(tokens[:count]))
    for i in range(1, texts):
        decoder.share(i, 0)
    var file = AtomicFile("decode", text(9))
    var all = List[Int]()
    for i in range(texts):
        all.append(i)
    for i in range(count, len(tokens)):
        decoder.step(List[Int32](length=texts, fill=tokens[i]), all)
        file.write(decoder.logits)
    file.commit()
    _ = params^


def read_tokens(path: String) raises -> List[Int32]:
    var file = InputFile("decode", path)
    var arena = Arena(64 + file.size)
    var tokens = arena.carve[DType.int32](file.size // size_of[Int32]())
    file.read(0, tokens)
    var list = List[Int32](capacity=tokens.size)
    for i in range(tokens.size):
        list.append(tokens[i])
    _ = arena^
    return list^


def text(i: Int) -> String:
    return String(argv()[i])


def number(i: Int) raises -> Int:
    return Int(text(i))
