"""Causal attention of GPT-2 124M (12 heads of 64) over the context length, beside the multiply-add peak.

    mojo run -I . bench/bench_attention.mojo [--rounds 5] [--json]

4,096 positions at every T. Counted are the products below the diagonal: two forward, four backward (it computes the
scores once more, which counts as time but not as work). Medians.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from limits import Limits
from llm.base.formatting import fixed
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cli.arguments import Option, parse_arguments
from llm.cpu.attention import attention_backward, attention_forward, attention_workspace_size
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew, Team
from timing import json_list, median

comptime F32 = DType.float32
comptime C = 768
comptime NH = 12
comptime POSITIONS = 4096


def main():
    try:
        bench()
    except error:
        print(t"bench_attention: {error}", file=stderr)
        exit(1)


def bench() raises:
    """Times both passes at every context length."""
    var args = parse_arguments(
        "bench_attention",
        "Times causal attention over the context length.",
        [
            Option("rounds", "", "N", "5", "rounds over all context lengths", minimum=1),
            Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
            Option("json", "", "", "", "print a JSON object for each context length"),
        ],
    )
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var lengths: List[Int] = [64, 128, 256, 512, 1024, 2048, 4096]
    var crew = Crew(threads)
    var limits = Limits()
    var memory = Memory(lengths[len(lengths) - 1], threads)
    var forward = List[List[Float64]](length=len(lengths), fill=List[Float64]())
    var backward = List[List[Float64]](length=len(lengths), fill=List[Float64]())
    # The first round touches the memory.
    for round in range(-1, args.int("rounds")):
        for i in range(len(lengths)):
            limits.measure_flops(crew)
            var T = lengths[i]

            def forward_pass(team: Team) {imm}:
                ref m = memory
                attention_forward(team, m.workspace, m.output, m.logsumexp, m.qkv, POSITIONS // T, T, C, NH)

            def backward_pass(team: Team) {imm}:
                ref m = memory
                attention_backward(
                    team, m.workspace, m.dqkv, m.doutput, m.qkv, m.output, m.logsumexp, POSITIONS // T, T, C, NH
                )

            var forward_seconds = seconds(crew, forward_pass)
            var backward_seconds = seconds(crew, backward_pass)
            if round >= 0:
                forward[i].append(forward_seconds)
                backward[i].append(backward_seconds)
    if not args.bool("json"):
        print(t"T, {threads} threads    forward   of peak   backward   of peak")
    for i in range(len(lengths)):
        var gflop = Float64(2 * C * lengths[i] * POSITIONS) / 1e9
        if args.bool("json"):
            print(
                t'{{"T": {lengths[i]}, "gflop": {fixed(gflop, 6)}, "ms": {json_list(forward[i])}, "backward_gflop":'
                t' {fixed(2 * gflop, 6)}, "backward_ms": {json_list(backward[i])}, "peak_gflops":'
                t" {fixed(limits.flops, 1)}}}"
            )
        else:
            print(
                String(lengths[i]).ascii_rjust(12)
                + _speed(gflop / median(forward[i]), limits.flops)
                + _speed(2 * gflop / median(backward[i]), limits.flops)
            )
    _ = memory^


def _speed(gflops: Float64, peak: Float64) -> String:
    return fixed(gflops, 1).ascii_rjust(10) + (fixed(100 * gflops / peak, 1) + "%").ascii_rjust(10)


struct Memory(Movable):
    """The operands of both passes."""

    var arena: Arena
    var workspace: Tensor[F32]
    var qkv: Tensor[F32]
    var output: Tensor[F32]
    var logsumexp: Tensor[F32]
    var dqkv: Tensor[F32]
    var doutput: Tensor[F32]

    def __init__(out self, longest: Int, threads: Int) raises:
        var scratch = attention_workspace_size(longest, C // NH, threads)
        self.arena = Arena(aligned_bytes[F32](scratch) + aligned_bytes[F32](POSITIONS * (8 * C + NH)) + 1024)
        self.workspace = self.arena.carve[F32](scratch)
        self.qkv = self.arena.carve[F32](POSITIONS * 3 * C)
        self.output = self.arena.carve[F32](POSITIONS * C)
        self.logsumexp = self.arena.carve[F32](POSITIONS * NH)
        self.dqkv = self.arena.carve[F32](POSITIONS * 3 * C)
        self.doutput = self.arena.carve[F32](POSITIONS * C)
        for tensor in [self.qkv, self.doutput]:
            for i in range(tensor.size):
                tensor[i] = Float32((i * 7919) % 1013) / 1013 - 0.5


def seconds[Body: def(Team) -> None](crew: Crew, body: Body) raises -> Float64:
    """Times one pass."""
    var begin = perf_counter_ns()
    crew.run(body)
    return Float64(perf_counter_ns() - begin) / 1e9
