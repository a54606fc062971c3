"""Where a training step's time goes: each operation's share, its speed, and how near that is to the machine's limits.

    mojo run -I . -D TRACE bench/bench_step.mojo [-b 4] [-t 64] [--init d12] [--steps 5] [--dtype bf16] [--json]

The limits, measured in the same run on the same threads: fused multiply-adds in registers, and a pass like AdamW's over
memory. The floor is the arithmetic at the first plus AdamW's bytes at the second.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from limits import Limits
from llm.base.formatting import fixed, grouped
from llm.base.memory import Arena, aligned_bytes
from llm.cli.arguments import Option, parse_arguments
from llm.cpu.adamw import AdamWSettings
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import TRACING, Crew
from llm.model.config import GPT2Config, named_config
from llm.model.gpt2 import GPT2
from llm.model.tensors import num_parameters
from llm.optim.adamw import AdamW
from timing import json_list, let_threads_sleep

comptime F32 = DType.float32


def main():
    try:
        bench()
    except error:
        print(t"bench_step: {error}", file=stderr)
        exit(1)


def bench() raises:
    """Reads the flags and times the steps."""
    comptime if not TRACING:
        raise Error("build it with -D TRACE, which makes the threads note what they do")
    var args = parse_arguments(
        "bench_step",
        "Times every operation of a training step.",
        [
            Option("batch-size", "b", "N", "4", "sequences per step (B)", minimum=1),
            Option("seq-len", "t", "N", "64", "tokens per sequence (T)", minimum=1),
            Option("init", "e", "MODEL", "d12", "sizes of the model (d6, d12 ...)"),
            Option("n-layer", "", "N", "0", "layers, if not those of the named model"),
            Option("n-head", "", "N", "0", "attention heads"),
            Option("n-embd", "", "N", "0", "width"),
            Option("vocab-size", "", "N", "0", "vocabulary"),
            Option("steps", "x", "N", "5", "steps that are timed, after two to warm up", minimum=1),
            Option("dtype", "", "fp32|bf16", "fp32", "type of the operands of matrix products"),
            Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
            Option("json", "", "", "", "print a JSON object"),
        ],
    )
    var B, T = args.int("batch-size"), args.int("seq-len")
    var steps = args.int("steps")
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var named = named_config(args.string("init"))
    var config = GPT2Config(
        max_seq_len=max(named.max_seq_len, T),
        vocab_size=args.int("vocab-size") if args.given("vocab-size") else named.vocab_size,
        num_layers=args.int("n-layer") if args.given("n-layer") else named.num_layers,
        num_heads=args.int("n-head") if args.given("n-head") else named.num_heads,
        channels=args.int("n-embd") if args.given("n-embd") else named.channels,
    )

    if args.choice("dtype") == "bf16":
        run[DType.bfloat16](config, B, T, threads, steps, args.bool("json"))
    else:
        run[F32](config, B, T, threads, steps, args.bool("json"))


def run[dtype: DType](config: GPT2Config, B: Int, T: Int, threads: Int, steps: Int, json: Bool) raises:
    """Times the steps and prints the table, or all of it as JSON."""
    var model = GPT2[dtype](config.copy(), threads, B, T)
    model.initialize(1)
    var arena = Arena(2 * aligned_bytes[DType.int32](B * T))
    var inputs = arena.carve[DType.int32](B * T)
    var targets = arena.carve[DType.int32](B * T)
    for i in range(B * T):
        inputs[i] = Int32(i * 7919 % config.vocab_size)
        targets[i] = Int32((i + 1) * 7919 % config.vocab_size)

    var table = Table()
    var limits = Limits()
    var crew = Crew(threads)
    var times = List[Float64]()
    var optimizer = AdamW(config, AdamWSettings(1e-4, 0.9, 0.999, 1e-8, 0))
    for step in range(steps + 2):
        limits.measure[dtype](crew)
        let_threads_sleep()
        for member in range(threads):
            _ = model.take_events(member)
        var start = perf_counter_ns()
        model.forward(inputs, B, T)
        _ = model.backward(targets)
        optimizer.prepare(step=step + 1, learning_rate=1e-4)
        _ = model.update(optimizer)
        var took = Float64(perf_counter_ns() - start)
        if step >= 2:
            times.append(took / 1e9)
            table.add(model, Int(start) + Int(took), threads)
    _ = arena^
    if json:
        print(
            t'{{"B": {B}, "T": {T}, "dtype": "{"fp32" if dtype == F32 else "bf16"}", "ms": {json_list(times)},'
            t' "peak_gflops": {fixed(limits.flops, 1)}, "adamw_gbs": {fixed(limits.adamw, 2)},'
            t' "rows": [{table.json(steps)}]}}'
        )
        return

    print(t"{grouped(num_parameters(config))} parameters, B={B}, T={T}, {threads} threads")
    print(t"limits    {fixed(limits.flops, 1)} GFLOP/s of products, {fixed(limits.adamw, 1)} GB/s of AdamW's traffic\n")
    table.show(limits, steps)
    var arithmetic = Float64(config.flops_per_token(T) * B * T) / limits.flops
    var update = Float64(28 * num_parameters(config)) / limits.adamw
    var floor = arithmetic + update
    sort(times)
    var best = 1e9 * times[0]
    print(
        t"\nbest step {fixed(best / 1e6, 1)} ms; the floor is {fixed(floor / 1e6, 1)} ms"
        t" ({fixed(arithmetic / 1e6, 1)} arithmetic + {fixed(update / 1e6, 1)} AdamW's bytes):"
        t" {fixed(100 * floor / best, 1)}% of it reached; {fixed(100 * arithmetic / best, 1)}% of the peak of products"
    )


@fieldwise_init
struct Row(Copyable, Movable):
    """One operation, summed over its calls with the same amount of work."""

    var operation: StaticString
    var flops: Int
    var bytes: Int
    var calls: Int
    var wall: Int
    """Nanoseconds from its begin to the begin of what follows."""
    var idle: Int
    """Nanoseconds that threads waited for the slowest, averaged over them."""


struct Table:
    """Rows in order of first appearance."""

    var rows: List[Row]

    def __init__(out self):
        self.rows = List[Row]()

    def add[dtype: DType, //](mut self, model: GPT2[dtype], end: Int, threads: Int):
        """Adds the events of one step, which ended at `end`."""
        var all = List[List[Int]]()
        var events = model.take_events(0)
        for member in range(1, threads):
            var ends = List[Int]()
            for ref event in model.take_events(member):
                ends.append(event.end)
            all.append(ends^)
        for i in range(len(events)):
            ref event = events[i]
            var finish = events[i + 1].begin if i + 1 < len(events) else end
            var idle = finish - event.end
            for ref ends in all:
                idle += finish - ends[i]
            self._add(event.operation, event.flops, event.bytes, finish - event.begin, idle // threads)

    def _add(mut self, operation: StaticString, flops: Int, bytes: Int, wall: Int, idle: Int):
        for ref row in self.rows:
            # Small tensors and large ones of one pass over memory belong together; products differ by their shape.
            if row.operation == operation and (row.flops == flops or flops == 0):
                row.calls += 1
                row.wall += wall
                row.idle += idle
                row.bytes += bytes
                return
        self.rows.append(Row(operation, flops, bytes, 1, wall, idle))

    def json(self, steps: Int) -> String:
        """Writes the rows, per step, as JSON objects."""
        var text = String()
        for ref row in self.rows:
            text += ", " if text else ""
            text += String(
                t'{{"operation": "{row.operation}", "calls": {row.calls // steps},'
                t' "ms": {fixed(Float64(row.wall) / 1e6 / Float64(steps), 4)},'
                t' "waiting_ms": {fixed(Float64(row.idle) / 1e6 / Float64(steps), 4)},'
                t' "gflop": {fixed(Float64(row.flops * row.calls) / 1e9 / Float64(steps), 6)},'
                t' "mb": {fixed(Float64(row.bytes) / 1e6 / Float64(steps), 3)}}}'
            )
        return text

    def show(self, limits: Limits, steps: Int):
        """Prints milliseconds per step and the speed of every row."""
        print("operation                       calls   ms/step      speed          of limit   waiting")
        var total = Float64(0)
        for ref row in self.rows:
            var wall = Float64(row.wall)
            total += wall
            var speed = String()
            var share_of_limit = String()
            if row.flops > 0:
                var rate = Float64(row.flops * row.calls) / wall
                speed = fixed(rate, 1) + " GFLOP/s"
                share_of_limit = fixed(100 * rate / limits.flops, 1) + "%"
            elif row.bytes > 0:
                var rate = Float64(row.bytes) / wall
                speed = fixed(rate, 1) + " GB/s"
                share_of_limit = fixed(100 * rate / limits.adamw, 1) + "%"
            var name = String(row.operation)
            if row.flops > 0:
                name += String(t" {fixed(Float64(row.flops) / 1e9, 2)} GFLOP")
            print(
                name.ascii_ljust(32)
                + String(row.calls // steps).ascii_rjust(5)
                + fixed(wall / 1e6 / Float64(steps), 2).ascii_rjust(10)
                + speed.ascii_rjust(17)
                + share_of_limit.ascii_rjust(10)
                + (fixed(100 * Float64(row.idle) / wall, 1) + "%").ascii_rjust(10)
            )
        print("sum".ascii_ljust(37) + fixed(total / 1e6 / Float64(steps), 2).ascii_rjust(10))
