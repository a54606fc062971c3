"""How fast a GPT-2 reads a prompt and continues it, one text, greedily, as one JSON object: for `python -m llm_mojo bench`.

    mojo run -I . bench/time_generation.mojo -e gpt2_124M.bin [--dtype bf16] [--prompt 1023] [--tokens 128] [--rounds 3]

The prompt is arbitrary tokens, the same as those of `llm_mojo.bench.torch_generate`, and so should be what follows.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from llm.arguments import Arguments, Option, parse_arguments
from llm.checkpoint import read_config, read_parameters
from llm.cpu.parallel import available_threads
from llm.decode import Decoder
from llm.generate import Generator
from llm.report import fixed
from llm.sampler import Sampler
from llm.tensors import ParameterTensors

comptime SHORT = 16
"""Tokens of the prompt that is continued."""


def main():
    try:
        var args = parse_arguments(
            "time_generation",
            "Times reading a prompt and continuing one.",
            [
                Option("init", "e", "FILE", "gpt2_124M.bin", "checkpoint"),
                Option("prompt", "", "N", "1023", "tokens of the prompt that is read"),
                Option("tokens", "", "N", "128", "tokens to write"),
                Option("rounds", "", "N", "3", "rounds of both"),
                Option("dtype", "", "fp32|bf16", "fp32", "weights in memory"),
                Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
            ],
        )
        if args.choice("dtype") == "bf16":
            bench[DType.bfloat16](args)
        else:
            bench[DType.float32](args)
    except error:
        print(t"time_generation: {error}", file=stderr)
        exit(1)


def bench[dtype: DType](args: Arguments) raises:
    """Times all rounds, after one to warm up, and prints tokens per second of each."""
    var config = read_config(args.string("init"))
    var params = ParameterTensors[dtype](config)
    read_parameters(args.string("init"), params)
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var decoder = Decoder[dtype](config, params, threads, texts=1, context=config.max_seq_len)
    var greedy = Sampler(seed=1, temperature=0)
    var generator = Generator(decoder^, [greedy^])
    var count = args.int("tokens", minimum=1)
    var reading = String()
    var writing = String()
    var tokens = String()
    for round in range(args.int("rounds", minimum=1) + 1):
        var prompt = arbitrary_tokens(args.int("prompt", minimum=1), config.vocab_size)
        var start = perf_counter_ns()
        generator.decoder.read(prompt)
        var seconds = Float64(perf_counter_ns() - start) / 1e9
        generator.begin(arbitrary_tokens(SHORT, config.vocab_size))
        # The first token comes from the prompt; the others take a step each.
        tokens = String(generator.next()[0])
        start = perf_counter_ns()
        for _ in range(count):
            tokens += String(t", {generator.next()[0]}")
        var pace = Float64(count) / (Float64(perf_counter_ns() - start) / 1e9)
        if round > 0:
            reading += (", " if round > 1 else "") + fixed(Float64(len(prompt)) / seconds, 2)
            writing += (", " if round > 1 else "") + fixed(pace, 3)
    print(t'{{"prompt": [{reading}], "continue": [{writing}], "tokens": [{tokens}]}}')
    _ = params^


def arbitrary_tokens(count: Int, vocab_size: Int) -> List[Int32]:
    """Returns tokens i * 7919 modulo the vocabulary."""
    var tokens = List[Int32]()
    for i in range(count):
        tokens.append(Int32(i * 7919 % vocab_size))
    return tokens^
