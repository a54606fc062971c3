"""The operations that only move memory, beside the machine's own speed at that: AdamW and the layernorms.

    mojo run -I . bench/bench_memory.mojo [--rounds 5] [--json]

Every array is far larger than the caches. AdamW is measured against a pass that reads and writes the same arrays and
computes next to nothing, layernorms against a copy. Medians.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from limits import Limits
from llm.base.formatting import fixed
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cli.arguments import Option, parse_arguments
from llm.cpu.adamw import AdamWSettings, adamw_update
from llm.cpu.global_norm import num_norm_blocks
from llm.cpu.layernorm import layernorm_backward, layernorm_forward
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew, Team
from timing import json_list, median

comptime F32 = DType.float32
comptime C = 768
comptime ROWS = 50304
comptime SIZE = ROWS * C
"""That of the largest tensor, wte: 155 MB."""


def main():
    try:
        bench()
    except error:
        print(t"bench_memory: {error}", file=stderr)
        exit(1)


def bench() raises:
    """Times the operations."""
    var args = parse_arguments(
        "bench_memory",
        "Times AdamW and the layernorms beside the memory.",
        [
            Option("rounds", "", "N", "5", "rounds over all operations"),
            Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
            Option("json", "", "", "", "print a JSON object for each operation"),
        ],
    )
    var crew = Crew(args.int("threads") if args.int("threads") > 0 else available_threads())
    var limits = Limits()
    var memory = Memory()
    var timings: List[Timing] = [
        Timing("adamw_update", 28),
        Timing("layernorm_forward", 8),
        Timing("layernorm_backward", 16),
    ]

    def adamw(team: Team) {imm}:
        ref m = memory
        adamw_update(team, m.a, m.a, m.b, m.c, m.d, m.sums, AdamWSettings(1e-4, 0.9, 0.999, 1e-8, 0), 1)

    def forward(team: Team) {imm}:
        ref m = memory
        layernorm_forward(team, m.c, m.mean, m.rstd, m.a, m.weight, m.dbias, ROWS, C)

    def backward(team: Team) {imm}:
        ref m = memory
        layernorm_backward(
            team, m.d, m.d, m.dweight, m.dbias, m.b, m.a, m.mean, m.rstd, m.weight, ROWS, C, accumulate=False
        )

    # The first round touches the memory.
    for round in range(-1, args.int("rounds")):
        timings[0].measure(crew, limits, adamw, keep=round >= 0)
        timings[1].measure(crew, limits, forward, keep=round >= 0)
        timings[2].measure(crew, limits, backward, keep=round >= 0)
    if not args.bool("json"):
        print(t"{crew.size} threads             GB/s  of limit")
    for ref timing in timings:
        if args.bool("json"):
            print(
                t'{{"name": "{timing.name}", "gigabytes": {fixed(Float64(timing.bytes * SIZE) / 1e9, 6)}, "ms":'
                t' {json_list(timing.seconds)}, "limits_gbs": [{timing.limits_text()}]}}'
            )
        else:
            var speed = Float64(timing.bytes * SIZE) / median(timing.seconds) / 1e9
            var shares = List[Float64]()
            for i in range(len(timing.seconds)):
                shares.append(Float64(timing.bytes * SIZE) / timing.seconds[i] / 1e9 / timing.limits[i])
            print(
                timing.name.ascii_ljust(20)
                + fixed(speed, 1).ascii_rjust(10)
                + (fixed(100 * median(shares), 1) + "%").ascii_rjust(10)
            )
    _ = memory^


struct Timing(Copyable, Movable):
    """An operation and its runs."""

    var name: String
    var bytes: Int
    """Read and written for each element, at the least."""
    var seconds: List[Float64]
    var limits: List[Float64]
    """GB/s of a plain pass over as many arrays, beside each run."""

    def __init__(out self, name: String, bytes: Int):
        self.name = name
        self.bytes = bytes
        self.seconds = List[Float64]()
        self.limits = List[Float64]()

    def measure[Body: def(Team) -> None](mut self, crew: Crew, mut limits: Limits, body: Body, *, keep: Bool) raises:
        """Runs the operation once more and notes the time, if it is to be kept."""
        # What the memory gives now: the best of some earlier minute says nothing of this one.
        limits.adamw = limits.copy = 0
        limits.measure(crew)
        var begin = perf_counter_ns()
        crew.run(body)
        if keep:
            self.seconds.append(Float64(perf_counter_ns() - begin) / 1e9)
            self.limits.append(limits.adamw if self.bytes == 28 else limits.copy)

    def limits_text(self) -> String:
        """Returns the limits, separated by commas."""
        var text = String()
        for limit in self.limits:
            text += (", " if text else "") + fixed(limit, 2)
        return text


struct Memory(Movable):
    """Four large arrays, which stand for what each operation needs, and small ones."""

    var arena: Arena
    var a: Tensor[F32]
    var b: Tensor[F32]
    var c: Tensor[F32]
    var d: Tensor[F32]
    var sums: Tensor[F32]
    var mean: Tensor[F32]
    var rstd: Tensor[F32]
    var weight: Tensor[F32]
    var dweight: Tensor[F32]
    var dbias: Tensor[F32]

    def __init__(out self) raises:
        var small = num_norm_blocks(SIZE) + 2 * ROWS + 3 * C
        self.arena = Arena(4 * aligned_bytes[F32](SIZE + 1024) + aligned_bytes[F32](small) + 1024)
        # Arrays that are read side by side should not start in the same cache sets.
        self.a = self.arena.carve[F32](SIZE + 16)
        self.b = self.arena.carve[F32](SIZE + 32)
        self.c = self.arena.carve[F32](SIZE + 48)
        self.d = self.arena.carve[F32](SIZE)
        self.a.size = self.b.size = self.c.size = SIZE
        self.sums = self.arena.carve[F32](num_norm_blocks(SIZE))
        self.mean = self.arena.carve[F32](ROWS)
        self.rstd = self.arena.carve[F32](ROWS)
        self.weight = self.arena.carve[F32](C)
        self.dweight = self.arena.carve[F32](C)
        self.dbias = self.arena.carve[F32](C)
        for tensor in [self.a, self.b]:
            for i in range(tensor.size):
                tensor[i] = Float32((i * 7919) % 1013) / 1013 - 0.5
