"""How fast a GPT-2 reads a prompt and continues it, greedily, and how near that is to what the memory allows.

    mojo run -I . bench/bench_generate.mojo [--init d12 | --init FILE] [--dtype bf16] [--prompt 1023] [--tokens 128]
        [--texts 1] [--rounds 3] [--json]

A step of one text reads every weight once. Beside the steps a plain sum over the same bytes is timed in a few ways, on
the same threads; the best of them is the bandwidth that steps are measured against. Prompts are arbitrary tokens, those
of `llm_mojo.bench.torch_generate`; what follows should be the same too.
"""

from std.os.path import exists
from std.sys import exit, simd_width_of, size_of, stderr
from std.time import perf_counter_ns

from llm.base.formatting import fixed, grouped
from llm.base.memory import Arena, Tensor
from llm.cli.arguments import Arguments, Option, parse_arguments
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew, Team, share
from llm.infer.generator import Generator
from llm.infer.sampler import Sampler
from llm.model.checkpoints import read_config, read_parameters
from llm.model.config import named_config
from llm.model.decoder import Decoder
from llm.model.initialize import initialize_parameters
from llm.model.tensors import WPE, WTE, ParameterTensors, num_parameters
from timing import median

comptime F32 = DType.float32
comptime SHORT = 16
"""Tokens of the prompt that is continued."""
comptime WARM_UP = 4
"""Tokens that are written before a round is timed."""


def main():
    try:
        var args = parse_arguments(
            "bench_generate",
            "Times reading a prompt and continuing one, beside the memory's bandwidth.",
            [
                Option("init", "e", "MODEL|FILE", "d12", "checkpoint, or sizes of a random model (d6, d12 ...)"),
                Option("dtype", "", "fp32|bf16", "fp32", "type of the weights"),
                Option("prompt", "p", "N", "1023", "tokens of the prompt that is read", minimum=1),
                Option("tokens", "x", "N", "128", "tokens to write after a prompt of 16", minimum=1),
                Option("texts", "", "N", "1", "texts side by side", minimum=1),
                Option("rounds", "", "N", "3", "rounds of both", minimum=1),
                Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
                Option("json", "", "", "", "print a JSON object for each round"),
            ],
        )
        if args.choice("dtype") == "bf16":
            bench[DType.bfloat16](args)
        else:
            bench[F32](args)
    except error:
        print(t"bench_generate: {error}", file=stderr)
        exit(1)


def bench[dtype: DType](args: Arguments) raises:
    """Times all rounds and prints them, or their medians."""
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var init = args.string("init")
    var config = read_config(init) if exists(init) else named_config(init)
    var params = ParameterTensors[dtype](config)
    if exists(init):
        read_parameters(init, params)
    else:
        initialize_parameters(Team(threads), params, config, 1)
    var texts = args.int("texts")
    var samplers = List[Sampler]()
    for text in range(texts):
        samplers.append(Sampler(seed=text, temperature=0))
    var decoder = Decoder[dtype](config, params, threads, texts=texts, context=config.max_seq_len)
    var generator = Generator(decoder^, samplers^)
    var memory = Memory[dtype](params, threads)
    var prompt = args.int("prompt")
    var count = args.int("tokens")
    var reading = List[Float64]()
    var writing = List[Float64]()
    for _ in range(args.int("rounds")):
        # Not timed: the first touches memory.
        _ = write(generator, SHORT, WARM_UP)
        memory.measure()
        var read = write(generator, prompt, 0)
        var written = write(generator, SHORT, count)
        memory.measure()
        reading.append(Float64(prompt) / read.reading)
        writing.append(Float64(texts * count) / written.writing)
        if args.bool("json"):
            print(
                (
                    t'{{"prompt": {fixed(reading[len(reading) - 1], 2)}, "continue":'
                    t' {fixed(writing[len(writing) - 1], 3)}, "sum_gbs": {fixed(memory.best, 2)}, "tokens":'
                    t" [{written.tokens}]}}"
                ),
                flush=True,
            )
    if not args.bool("json"):
        print(t"{grouped(num_parameters(config))} parameters in {args.string('dtype')}, {threads} threads")
        print(t"prompt    {prompt} tokens at {fixed(median(reading), 1)} tok/s")
        print(t"text      {count} tokens at {fixed(median(writing), 1)} tok/s, {texts} side by side")
        # Positions and padding are not multiplied with.
        var unused = params[WPE].size + (config.padded_vocab_size - config.vocab_size) * config.channels
        var bytes = Float64(size_of[Scalar[dtype]]() * (num_parameters(config) - unused))
        var used = bytes * median(writing) / Float64(texts) / 1e9
        print(
            t"memory    a step reads {fixed(used, 1)} GB/s of weights, a plain sum {fixed(memory.best, 1)} at best:"
            t" {fixed(100 * used / memory.best, 1)}%"
        )
    _ = params^


@fieldwise_init
struct Written(Movable):
    """What became of a prompt."""

    var reading: Float64
    """Seconds to the first token."""
    var writing: Float64
    """Seconds for those that follow."""
    var tokens: String
    """All of the first text, separated by commas."""


def write(mut generator: Generator, prompt: Int, count: Int) raises -> Written:
    """Reads a prompt of arbitrary tokens, draws a token from it and then `count` more."""
    var tokens = List[Int32]()
    for i in range(prompt):
        tokens.append(Int32(i * 7919 % generator.decoder.config.vocab_size))
    var start = perf_counter_ns()
    generator.begin(tokens)
    var written = String(generator.next()[0])
    var first = perf_counter_ns()
    for _ in range(count):
        written += String(t", {generator.next()[0]}")
    return Written(Float64(first - start) / 1e9, Float64(perf_counter_ns() - first) / 1e9, written)


struct Memory[dtype: DType]:
    """The best bandwidth, in GB/s, with which sums over the weights have read them."""

    var best: Float64
    var _crew: Crew
    var _weights: Tensor[F32]
    var _sums: Tensor[F32]
    var _arena: Arena

    def __init__(out self, params: ParameterTensors[Self.dtype], threads: Int) raises:
        """Views all that lies from the first weight to the last, as float32."""
        self.best = 0
        self._crew = Crew(threads)
        var last = params[len(params.specs) - 1]
        var bytes = Int(last.ptr) - Int(params[WTE].ptr)
        self._weights = Tensor[F32](Tensor[F32].Ptr(unsafe_from_address=Int(params[WTE].ptr)), bytes // 4)
        self._arena = Arena(threads * 64 * size_of[Float32]())
        self._sums = self._arena.carve[F32](threads * 64)

    def measure(mut self) raises:
        self._time[1]()
        self._time[4]()
        self._time[8]()

    def _time[streams: Int](mut self) raises:
        var weights = self._weights
        var sums = self._sums

        def body(team: Team) {imm}:
            _sum[streams](team, weights, sums)

        var start = Int(perf_counter_ns())
        self._crew.run(body)
        self.best = max(self.best, Float64(4 * self._weights.size) / Float64(Int(perf_counter_ns()) - start))


def _sum[streams: Int](team: Team, weights: Tensor[F32], results: Tensor[F32]):
    """Sums the weights; each thread reads its share as so many streams side by side."""
    comptime W = simd_width_of[F32]()
    comptime CHAINS = 8

    def body(member: Int) {imm}:
        var lo, hi = share(weights.size, team.size, member, CHAINS * W)
        var length = (hi - lo) // streams // (CHAINS * W) * (CHAINS * W)
        var sums = Array[SIMD[F32, W], CHAINS](fill=SIMD[F32, W](0))
        for i in range(0, length, CHAINS // streams * W):
            comptime for stream in range(streams):
                comptime for c in range(CHAINS // streams):
                    sums[stream * (CHAINS // streams) + c] += weights.load[W](lo + stream * length + i + c * W)
        var total = SIMD[F32, W](0)
        comptime for c in range(CHAINS):
            total += sums[c]
        results[member * 64] = total.reduce_add()

    team.run(body)
