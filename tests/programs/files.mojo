"""Shows what the file and data side of llm/ does. Run by the Python tests, one command a call.

    config FILE                     the sizes in a checkpoint
    checkpoint IN OUT               reads a checkpoint and writes it again
    batches PATTERN B T V SHUFFLE RANK PROCESSES COUNT RESET
                                    a line for each batch: place, epoch and tokens; before batch RESET starts over
    manifest PATTERN TOKENIZER V    checks that these belong together
    sha256 FILE                     its hash
    tokenizer FILE                  its sizes, then the bytes of every token
    stream FILE SIZE                the bytes of a file, in pieces of this size, as text
    mt19937 SEED COUNT              draws
    xorshift SEED COUNT             draws, as integers and as fractions
    sample FILE COUNT SEED TEMPERATURE TOP_K TOP_P
                                    draws from the float32 logits in a file
    kept FILE TEMPERATURE TOP_K TOP_P
                                    the tokens that such draws choose from
"""

from std.sys import argv, size_of

from llm.base.files import InputFile
from llm.base.memory import Arena, Tensor
from llm.base.random import Mt19937, Xorshift
from llm.base.sha256 import sha256_of_file
from llm.data.loader import DataLoader
from llm.data.manifest import check_manifests
from llm.infer.sampler import Sampler
from llm.model.checkpoints import read_config, read_parameters, write_checkpoint
from llm.model.tensors import ParameterTensors
from llm.text.tokenizer import TextStream, Tokenizer

comptime F32 = DType.float32
comptime I32 = DType.int32


def main() raises:
    var command = text(1)
    if command == "config":
        show_config(text(2))
    elif command == "checkpoint":
        var config = read_config(text(2))
        var params = ParameterTensors[F32](config)
        read_parameters(text(2), params)
        write_checkpoint(text(3), config, params)
    elif command == "batches":
        show_batches()
    elif command == "manifest":
        check_manifests(text(2), text(3), number(4))
    elif command == "sha256":
        print(sha256_of_file(text(2)))
    elif command == "tokenizer":
        show_tokenizer(text(2))
    elif command == "stream":
        show_stream(text(2), number(3))
    elif command == "mt19937":
        var generator = Mt19937(number(2))
        for _ in range(number(3)):
            print(generator.next_uint32())
    elif command == "xorshift":
        var integers = Xorshift(number(2))
        var fractions = Xorshift(number(2))
        for _ in range(number(3)):
            print(integers.next_uint32(), Float64(fractions.next_float32()))
    elif command == "sample":
        show_samples()
    elif command == "kept":
        show_kept()
    else:
        raise Error(t"no command {command}")


def text(i: Int) -> String:
    return String(argv()[i])


def number(i: Int) raises -> Int:
    return Int(text(i))


def show_config(path: String) raises:
    var config = read_config(path)
    print(config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads, config.channels, end=" ")
    print(config.padded_vocab_size)


def show_batches() raises:
    var B, T = number(3), number(4)
    var loader = DataLoader(
        text(2), B, T, vocab_size=number(5), order=number(6), rank=number(7), num_processes=number(8)
    )
    print(loader.num_tokens, loader.num_batches)
    var arena = Arena(2 * 64 + 8 * B * T)
    var inputs = arena.carve[I32](B * T)
    var targets = arena.carve[I32](B * T)
    for i in range(number(9)):
        if i == number(10):
            loader.reset()
        loader.next_batch(inputs, targets)
        print(loader.current_shard, loader.current_sample, loader.epoch, end="")
        for j in range(B * T):
            print("", inputs[j], end="")
        for j in range(B * T):
            print("", targets[j], end="")
        print()
    _ = arena^


def show_tokenizer(path: String) raises:
    var tokenizer = Tokenizer(path)
    print(tokenizer.vocab_size, tokenizer.end_of_text)
    for token in range(tokenizer.vocab_size):
        for byte in tokenizer.decode(token):
            print(byte, end=" ")
        print()
    for wrong in [-1, tokenizer.vocab_size]:
        try:
            _ = tokenizer.decode(wrong)
        except error:
            print(error)


def show_stream(path: String, size: Int) raises:
    var bytes = open(path, "r").read_bytes()
    var stream = TextStream()
    for start in range(0, len(bytes), size):
        print(stream.push(Span(bytes)[start : min(start + size, len(bytes))]), end="")
    print(stream.finish(), end="", flush=True)


def show_kept() raises:
    var file = InputFile("kept", text(2))
    var arena = Arena(64 + file.size)
    var logits = arena.carve[F32](file.size // size_of[Float32]())
    file.read(0, logits)
    var sampler = Sampler(temperature=Float64(text(3)), top_k=number(4), top_p=Float64(text(5)))
    _ = sampler.weigh(logits)
    for token in range(logits.size):
        if sampler.likelihood(token) > 0:
            print(token)
    _ = arena^


def show_samples() raises:
    var file = InputFile("sample", text(2))
    var arena = Arena(64 + file.size)
    var logits = arena.carve[F32](file.size // size_of[Float32]())
    file.read(0, logits)
    var sampler = Sampler(seed=number(4), temperature=Float64(text(5)), top_k=number(6), top_p=Float64(text(7)))
    for _ in range(number(3)):
        print(sampler.sample(logits))
    _ = arena^
