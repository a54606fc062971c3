"""How fast a model reads a prompt and continues it, and how near that is to what the memory allows.

    mojo run -I . bench/bench_generate.mojo [--init d12 | --checkpoint FILE] [--dtype bf16] [--prompt 8] [--steps 64]

A step reads every weight once. Beside it, in turn and on the same threads, a plain sum over the same bytes is timed in
a few ways; the best of them is the bandwidth that steps are measured against.
"""

from std.sys import simd_width_of, size_of
from std.time import perf_counter_ns

from llm.arguments import Arguments, Option, parse_arguments
from llm.checkpoint import read_config, read_parameters
from llm.config import GPT2Config, named_config
from llm.cpu.parallel import Crew, Team, available_threads, share
from llm.decode import Decoder
from llm.initialize import initialize_parameters
from llm.memory import Arena, Tensor
from llm.report import fixed, grouped
from llm.tensors import WPE, WTE, ParameterTensors

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime ROUNDS = 8


def main() raises:
    var args = parse_arguments(
        "bench_generate",
        "Times prompts and steps of generation, beside the memory's bandwidth.",
        [
            Option("init", "e", "MODEL", "d12", "sizes of a random model (d6, d12 ...)"),
            Option("checkpoint", "", "FILE", "", "a model in its place"),
            Option("dtype", "", "fp32|bf16", "fp32", "type of the weights"),
            Option("prompt", "p", "N", "8", "tokens of the prompt"),
            Option("steps", "x", "N", "64", "steps that are timed"),
            Option("texts", "", "N", "1", "texts side by side"),
            Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
        ],
    )
    if args.choice("dtype") == "bf16":
        bench[BF16](args)
    else:
        bench[F32](args)


def bench[dtype: DType](args: Arguments) raises:
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var prompt, steps, texts = args.int("prompt"), args.int("steps", minimum=ROUNDS), args.int("texts", minimum=1)
    var given = args.given("checkpoint")
    var config = read_config(args.string("checkpoint")) if given else named_config(args.string("init"))
    var params = ParameterTensors[dtype](config)
    var start = Int(perf_counter_ns())
    if given:
        read_parameters(args.string("checkpoint"), params)
    else:
        initialize_parameters(Team(threads), params, config, 1)
    print(t"{grouped(config.num_parameters())} parameters in {args.string('dtype')}, {threads} threads;", end=" ")
    print(t"loaded or drawn in {fixed(seconds_since(start), 3)} s")
    start = Int(perf_counter_ns())
    var decoder = Decoder[dtype](config, params, threads, texts=texts, context=config.max_seq_len)
    print(t"decoder made in {fixed(seconds_since(start), 3)} s")

    var tokens = List[Int32]()
    for i in range(prompt):
        tokens.append(Int32(i * 7919 % config.vocab_size))
    var all = List[Int]()
    for i in range(texts):
        all.append(i)
    var memory = Memory[dtype](params, threads)
    var times = List[Float64]()
    # Each round reads the prompt, sums the weights and takes some steps: all meet the same weather.
    for round in range(ROUNDS):
        memory.measure()
        if round < 3:
            start = Int(perf_counter_ns())
            decoder.read(tokens)
            var seconds = seconds_since(start)
            print(t"prompt    {prompt} tokens in {fixed(seconds, 4)} s, {fixed(Float64(prompt) / seconds, 1)} tok/s")
        for i in range(steps // ROUNDS):
            start = Int(perf_counter_ns())
            decoder.step(List[Int32](length=texts, fill=Int32(i)), all)
            times.append(seconds_since(start))
    memory.measure()
    sort(times)
    var step = times[len(times) // 2]
    # Positions are looked up, not multiplied with.
    var bytes = Float64(size_of[Scalar[dtype]]() * (config.num_parameters() - params[WPE].size))
    bytes -= Float64(size_of[Scalar[dtype]]() * (config.padded_vocab_size - config.vocab_size) * config.channels)
    var used = bytes / step / 1e9
    print(t"step      {fixed(step * 1e3, 2)} ms (median; best {fixed(times[0] * 1e3, 2)} ms),", end=" ")
    print(t"{fixed(Float64(texts) / step, 1)} tok/s")
    print(
        t"memory    a step reads {fixed(used, 1)} GB/s of weights, a plain sum {fixed(memory.best, 1)} at best:",
        end=" ",
    )
    print(t"{fixed(100 * used / memory.best, 1)}%")
    _ = params^


def seconds_since(start: Int) -> Float64:
    return Float64(Int(perf_counter_ns()) - start) / 1e9


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

    def measure(mut self):
        self._time(_sum[1, Self.dtype])
        self._time(_sum[4, Self.dtype])
        self._time(_sum[8, Self.dtype])

    def _time(mut self, job: def(Int, Team) thin -> None):
        var start = Int(perf_counter_ns())
        self._crew.run(job, Int(Pointer(to=self)))
        self.best = max(self.best, Float64(4 * self._weights.size) / Float64(Int(perf_counter_ns()) - start))


def _sum[streams: Int, dtype: DType](context: Int, team: Team):
    """Sums the weights; each thread reads its share as so many streams side by side."""
    ref memory = Pointer[Memory[dtype], MutUntrackedOrigin](unsafe_from_address=context)[]
    comptime W = simd_width_of[F32]()
    comptime CHAINS = 8

    def body(member: Int) {imm}:
        var lo, hi = share(memory._weights.size, team.size, member, CHAINS * W)
        var length = (hi - lo) // streams // (CHAINS * W) * (CHAINS * W)
        var sums = Array[SIMD[F32, W], CHAINS](fill=SIMD[F32, W](0))
        for i in range(0, length, CHAINS // streams * W):
            comptime for stream in range(streams):
                comptime for c in range(CHAINS // streams):
                    sums[stream * (CHAINS // streams) + c] += memory._weights.load[W](lo + stream * length + i + c * W)
        var total = SIMD[F32, W](0)
        comptime for c in range(CHAINS):
            total += sums[c]
        memory._sums[member * 64] = total.reduce_add()

    team.run(body)
