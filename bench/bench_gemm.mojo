"""Every matrix product of a GPT-2 124M step: ours beside MAX's `linalg.matmul` and the peak, in turn.

    mojo run -I . bench/bench_gemm.mojo [--rows 256] [--rounds 5] [--json]

Medians. The weights (and their gradients) move through 150 MB from run to run, so that they come from memory as in
training. MAX (`pip install -e '.[bench]'`) has no product with a transposed first operand: for the weight gradients it
gets one that is transposed already, for nothing.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from layout import TileTensor, row_major as row_major_layout
from linalg.matmul import matmul

from limits import Limits
from llm.base.formatting import fixed
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cli.arguments import Arguments, Option, parse_arguments
from llm.cpu.gemm import Matrix, Plain, gemm, gemm_workspace_size
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew, Team
from llm.model.activations import HEAD_ROWS
from timing import json_list, let_threads_sleep, median

comptime F32 = DType.float32
comptime C = 768
comptime V = 50304
"""The vocabulary, padded as in the checkpoint: then MAX can take the logits, whose rows lie this far apart."""
comptime MOVES_THROUGH = 40_000_000
"""Scalars that the weights, or their gradients, move through."""


def main():
    try:
        bench()
    except error:
        print(t"bench_gemm: {error}", file=stderr)
        exit(1)


def bench() raises:
    """Times all products."""
    var args = parse_arguments(
        "bench_gemm",
        "Times every matrix product of a GPT-2 124M step beside MAX's.",
        [
            Option("rows", "", "N", "256", "positions in a batch (B*T)", minimum=1),
            Option("rounds", "", "N", "5", "rounds of both contestants for each product", minimum=1),
            Option("only", "", "TEXT", "", "only products whose name contains this"),
            Option(
                "dtype", "", "fp32|bf16", "fp32", "type of the operands; MAX has no products of bf16 to compare with"
            ),
            Option("threads", "", "N", "0", "threads to use (0: one for each core); MAX always takes all cores"),
            Option("json", "", "", "", "print a JSON object for each product"),
        ],
    )
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var rounds = args.int("rounds")
    if args.choice("dtype") == "bf16":
        time_all(Bench[DType.bfloat16](args.int("rows"), threads), args, rounds, threads)
    else:
        time_all(Bench[F32](args.int("rows"), threads), args, rounds, threads)


def time_all[dtype: DType, //](var bench: Bench[dtype], args: Arguments, rounds: Int, threads: Int) raises:
    """Times the products and prints the table."""
    var json = args.bool("json")
    if not json:
        print(
            t"{args.int('rows')} rows, {threads} threads          GFLOP/s    of peak        MAX    of peak  a step has"
        )
    var timings = List[Timing]()
    for ref product in products(args.int("rows")):
        if args.string("only") in product.name:
            timings.append(Timing(product.copy(), List[Float64](), List[Float64](), 0))
    # All products meet the same weather.
    for round in range(rounds):
        for ref timing in timings:
            bench.time(timing, round)
    for ref timing in timings:
        print(timing.json() if json else timing.row())
    if not json:
        print(summary(timings))


@fieldwise_init
struct Product(Copyable, Movable):
    """C (M,N) = A (M,K) @ B (K,N)."""

    var name: String
    var M: Int
    var N: Int
    var K: Int
    var a_transposed: Bool
    """A is stored (K,M)."""
    var b_transposed: Bool
    """B is stored (N,K)."""
    var makes_weights: Bool
    """C is the gradient of weights; otherwise B is the weights."""
    var count: Int
    """How often a step has it."""

    def flops(self) -> Int:
        return 2 * self.M * self.N * self.K


def products(rows: Int) -> List[Product]:
    """Lists the products of a step on so many positions."""
    var list = List[Product]()
    for shape in [("qkv", C, 3 * C), ("attproj", C, C), ("fc", C, 4 * C), ("fcproj", 4 * C, C), ("head", C, V)]:
        var inputs = shape[1]
        var outputs = shape[2]
        var r = min(rows, HEAD_ROWS) if outputs == V else rows
        var count = (rows + HEAD_ROWS - 1) // HEAD_ROWS if outputs == V else 12
        list.append(Product(String(t"{shape[0]} forward"), r, outputs, inputs, False, True, False, count))
        list.append(Product(String(t"{shape[0]} dinp"), r, inputs, outputs, False, False, False, count))
        list.append(Product(String(t"{shape[0]} dweight"), outputs, inputs, r, True, False, True, count))
    return list^


@fieldwise_init
struct Timing(Copyable, Movable):
    """What was measured of one product."""

    var product: Product
    var ours: List[Float64]
    """Seconds of each run."""
    var max: List[Float64]
    var peak: Float64
    """GFLOP/s of multiply-adds meanwhile, the best of many milliseconds."""

    def row(self) -> String:
        """Writes a row of the table."""
        ref p = self.product
        var ours = Float64(p.flops()) / median(self.ours) / 1e9
        var beside = String("-").ascii_rjust(11) + String("-").ascii_rjust(11)
        if len(self.max) > 0:
            var max = Float64(p.flops()) / median(self.max) / 1e9
            beside = fixed(max, 1).ascii_rjust(11) + (fixed(100 * max / self.peak, 1) + "%").ascii_rjust(11)
        return (
            p.name.ascii_ljust(24)
            + fixed(ours, 1).ascii_rjust(10)
            + (fixed(100 * ours / self.peak, 1) + "%").ascii_rjust(11)
            + beside
            + String(p.count).ascii_rjust(12)
        )

    def json(self) -> String:
        """Writes all that was measured."""
        ref p = self.product
        return String(
            t'{{"name": "{p.name}", "M": {p.M}, "N": {p.N}, "K": {p.K}, "count": {p.count}, "gflop":'
            t' {fixed(Float64(p.flops()) / 1e9, 6)}, "ms": {json_list(self.ours)}, "max_ms": {json_list(self.max)},'
            t' "peak_gflops": {fixed(self.peak, 1)}}}'
        )


@fieldwise_init
struct Run[dtype: DType](Movable):
    """The operands of one run."""

    var product: Product
    var a: Matrix[Self.dtype]
    var b: Matrix[Self.dtype]
    var c: Tensor[F32]
    var workspace: Tensor[F32]


struct Bench[dtype: DType](Movable):
    """The threads and the operands."""

    var _crew: Crew
    var _limits: Limits
    var _arena: Arena
    var _weights: Tensor[Self.dtype]
    var _gradients: Tensor[F32]
    var _left: Tensor[Self.dtype]
    var _right: Tensor[Self.dtype]
    var _output: Tensor[F32]
    var _workspace: Tensor[F32]

    def __init__(out self, rows: Int, threads: Int) raises:
        var activations = max(rows * 4 * C, min(rows, HEAD_ROWS) * V)
        var scratch = gemm_workspace_size(threads)
        self._crew = Crew(threads)
        self._limits = Limits()
        self._arena = Arena(
            aligned_bytes[Self.dtype](MOVES_THROUGH)
            + aligned_bytes[F32](MOVES_THROUGH)
            + 2 * aligned_bytes[Self.dtype](activations)
            + aligned_bytes[F32](activations)
            + aligned_bytes[F32](scratch)
        )
        self._weights = self._arena.carve[Self.dtype](MOVES_THROUGH)
        self._gradients = self._arena.carve[F32](MOVES_THROUGH)
        self._left = self._arena.carve[Self.dtype](activations)
        self._right = self._arena.carve[Self.dtype](activations)
        self._output = self._arena.carve[F32](activations)
        self._workspace = self._arena.carve[F32](scratch)
        for tensor in [self._weights, self._left, self._right]:
            for i in range(tensor.size):
                tensor[i] = (Float32((i * 7919) % 1013) / 1013 - 0.5).cast[Self.dtype]()
        self._gradients.fill(0)

    def time(mut self, mut timing: Timing, round: Int) raises:
        """Times a product once more: some runs of ours, then as many of MAX's."""
        ref product = timing.product
        var runs = max(2, min(20, 20_000_000_000 // product.flops()))
        self._limits.flops = timing.peak
        self._limits.measure_flops[Self.dtype](self._crew)
        # The first run of each wakes the threads.
        for i in range(-1, runs):
            var run = self._operands(product, round * runs + i)

            def body(team: Team) {imm}:
                ref p = run.product
                gemm(team, run.workspace, p.M, p.N, p.K, run.a, run.b, run.c, p.N, Plain())

            var begin = perf_counter_ns()
            self._crew.run(body)
            if i >= 0:
                timing.ours.append(Float64(perf_counter_ns() - begin) / 1e9)
                self._limits.measure_flops[Self.dtype](self._crew)
        timing.peak = self._limits.flops
        let_threads_sleep()
        comptime if Self.dtype == F32:
            for i in range(-1, runs):
                var run = self._operands(product, round * runs + i)
                var begin = perf_counter_ns()
                multiply_by_max(rebind[Run[F32]](run))
                if i >= 0:
                    timing.max.append(Float64(perf_counter_ns() - begin) / 1e9)
            let_threads_sleep()

    def _operands(self, product: Product, number: Int) -> Run[Self.dtype]:
        """Puts the weights of each run where those of the runs before were not."""
        ref p = product
        var size = p.M * p.N if p.makes_weights else p.K * p.N
        # A model's tensors start on whole cache lines too.
        var place = (number + 1) * size % (MOVES_THROUGH - size + 1) // 1024 * 1024
        var a = Matrix(self._left.ptr, p.K, 1)
        if p.a_transposed:
            a = Matrix(self._left.ptr, 1, p.M)
        var stored = (self._right if p.makes_weights else self._weights.slice(place, size)).ptr
        var b = Matrix(stored, p.N, 1)
        if p.b_transposed:
            b = Matrix(stored, 1, p.K)
        var c = self._gradients.slice(place, size) if p.makes_weights else self._output
        return Run(product.copy(), a, b, c, self._workspace)


def summary(timings: List[Timing]) -> String:
    """Writes the sums over a step."""
    var flops = Float64(0)
    var ours = Float64(0)
    var max = Float64(0)
    var at_peak = Float64(0)
    for ref t in timings:
        var count = Float64(t.product.count)
        flops += Float64(t.product.flops()) * count
        ours += median(t.ours) * count
        max += median(t.max) * count if len(t.max) > 0 else 0
        at_peak += Float64(t.product.flops()) * count / t.peak / 1e9
    var text = String(
        t"all products of a step, {fixed(flops / 1e9, 1)} GFLOP: {fixed(1000 * ours, 1)} ms,"
        t" {fixed(100 * at_peak / ours, 1)}% of the peak, at which they would take {fixed(1000 * at_peak, 1)} ms"
    )
    if max > 0:
        text += String(t"; MAX {fixed(1000 * max, 1)} ms, {fixed(100 * at_peak / max, 1)}%")
    return text


def multiply_by_max(run: Run) raises:
    """Has MAX compute the product, on all its threads; the first operand is taken as stored (M,K)."""
    ref p = run.product
    var c = TileTensor(run.c.ptr, row_major_layout(p.M, p.N))
    var a = TileTensor(run.a.ptr, row_major_layout(p.M, p.K))
    if p.b_transposed:
        matmul[transpose_b=True](c, a, TileTensor(run.b.ptr, row_major_layout(p.N, p.K)), None)
    else:
        matmul(c, a, TileTensor(run.b.ptr, row_major_layout(p.K, p.N)), None)
