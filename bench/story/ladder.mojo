"""One matrix product, written faster and faster: what each idea brings by itself, as one JSON list.

    mojo run -I . bench/story/ladder.mojo

out (256,3072) = x (256,768) @ w^T, w (3072,768): the first layer of an MLP of GPT-2 124M for 4 sequences of 64 tokens, and so,
three times over, a fifth of its step. The weights lie in twelve copies, taken in turn, as the layers of a model are.
"""

from std.sys import exit, simd_width_of, stderr
from std.time import perf_counter_ns

from llm.base.formatting import fixed
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.gemm import Plain, gemm, gemm_workspace_size, row_major
from llm.cpu.gemm.blocking import MR, NR, NR_VECTORS
from llm.cpu.peak import peak_of_one_try
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew, Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime Vec = SIMD[F32, W]
comptime ROWS = 256
comptime K = 768
comptime N = 3072
comptime COPIES = 12
comptime TILE = 4
"""Rows, and columns, of the tile of dot products."""


def main():
    try:
        climb()
    except error:
        print(t"ladder: {error}", file=stderr)
        exit(1)


def climb() raises:
    """Times every rung and compares its result with the first one's."""
    var threads = available_threads()
    var crew = Crew(threads)
    var alone = Crew(1)
    var bench = Bench(threads)
    var peak_of_one = Float64(0)
    var peak_of_all = Float64(0)
    for _ in range(200):
        peak_of_one = max(peak_of_one, peak_of_one_try[F32](alone) / 1e9)
        peak_of_all = max(peak_of_all, peak_of_one_try[F32](crew) / 1e9)
    print(t'{{"threads": {threads}, "lanes": {W}, "tile": [{MR}, {NR}], "M": {ROWS}, "N": {N}, "K": {K},')
    print(t' "peak_gflops": {fixed(peak_of_all, 1)}, "peak_gflops_of_one": {fixed(peak_of_one, 1)}, "rungs": [')
    bench.time["one sum after the other", three_loops](alone, 2)
    bench.time["eight sums at a time", eight_sums](alone, 2)
    bench.time["vectors", vectors](alone, 4)
    bench.time["tiles of dot products in registers", dot_tiles](alone, 8)
    bench.time["panels packed for whole vectors of outputs", panels](alone, 8)
    bench.time["blocks that stay in the caches, lines asked for ahead", blocked](alone, 8)
    bench.time["all threads", blocked](crew, 16, last=True)
    print("]}")


comptime Rung = def(Team, Tensor[F32], Tensor[F32], Tensor[F32], Tensor[F32]) thin -> None
"""Computes out = x @ w^T with some scratch."""


struct Bench(Movable):
    """The operands, and what the first rung made of them."""

    var _arena: Arena
    var _x: Tensor[F32]
    var _w: Tensor[F32]
    var _out: Tensor[F32]
    var _first: Tensor[F32]
    var _scratch: Tensor[F32]
    var _runs: Int

    def __init__(out self, threads: Int) raises:
        var scratch = max(gemm_workspace_size(threads), K * NR)
        self._runs = 0
        self._arena = Arena(
            aligned_bytes[F32](ROWS * K)
            + aligned_bytes[F32](COPIES * N * K)
            + 2 * aligned_bytes[F32](ROWS * N)
            + aligned_bytes[F32](scratch)
        )
        self._x = self._arena.carve[F32](ROWS * K)
        self._w = self._arena.carve[F32](COPIES * N * K)
        self._out = self._arena.carve[F32](ROWS * N)
        self._first = self._arena.carve[F32](ROWS * N)
        self._scratch = self._arena.carve[F32](scratch)
        for i in range(self._x.size):
            self._x[i] = Float32(i * 29 % 101) / 101 - 0.5
        for i in range(self._w.size):
            self._w[i] = Float32(i % (N * K) * 31 % 103) / 103 - 0.5

    def time[name: StaticString, rung: Rung](mut self, crew: Crew, runs: Int, last: Bool = False) raises:
        """Prints the milliseconds of some runs.

        Raises:
            If the result is not the first rung's.
        """
        var times = String()
        for run in range(runs):
            var w = self._w.slice(run % COPIES * N * K, N * K)
            var x, output, scratch = self._x, self._out, self._scratch

            def body(team: Team) {imm}:
                rung(team, x, w, output, scratch)

            var start = perf_counter_ns()
            crew.run(body)
            times += (", " if run else "") + fixed(Float64(perf_counter_ns() - start) / 1e6, 3)
        for i in range(self._out.size):
            if self._runs == 0:
                self._first[i] = self._out[i]
            if not (abs(self._out[i] - self._first[i]) < 1e-3):
                raise Error(t"{name}: expected {self._first[i]} at {i}, got {self._out[i]}")
        self._runs += runs
        print(t'  {{"name": "{name}", "threads": {crew.size}, "ms": [{times}]}}{"" if last else ","}', flush=True)


def three_loops(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """The definition: every multiply-add waits for the one before it."""
    for i in range(ROWS):
        for j in range(N):
            var sum = Float32(0)
            for k in range(K):
                sum += x[i * K + k] * w[j * K + k]
            output[i * N + j] = sum


def eight_sums(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """The basic trainer's loop: eight sums that do not wait for each other."""
    for i in range(ROWS):
        for j in range(N):
            var sums = Array[Float32, 8](fill=0)
            for k in range(0, K, 8):
                comptime for lane in range(8):
                    sums[lane] += x[i * K + k + lane] * w[j * K + k + lane]
            output[i * N + j] = (sums[0] + sums[4]) + (sums[1] + sums[5]) + (sums[2] + sums[6]) + (sums[3] + sums[7])


def vectors(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """Four vectors of sums: each load feeds half a multiply-add."""
    for i in range(ROWS):
        for j in range(N):
            var sums = Array[Vec, 4](fill=Vec(0))
            for k in range(0, K, 4 * W):
                comptime for v in range(4):
                    sums[v] = x.load[W](i * K + k + v * W).fma(w.load[W](j * K + k + v * W), sums[v])
            output[i * N + j] = ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add()


def dot_tiles(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """Two rows of x with four of w at once: six loads feed eight multiply-adds."""
    for i in range(0, ROWS, TILE // 2):
        for j in range(0, N, TILE):
            var sums = Array[Vec, TILE // 2 * TILE](fill=Vec(0))
            for k in range(0, K, W):
                var row = Array[Vec, TILE](fill=Vec(0))
                comptime for c in range(TILE):
                    row[c] = w.load[W]((j + c) * K + k)
                comptime for r in range(TILE // 2):
                    var x_r = x.load[W]((i + r) * K + k)
                    comptime for c in range(TILE):
                        sums[r * TILE + c] = x_r.fma(row[c], sums[r * TILE + c])
            comptime for r in range(TILE // 2):
                comptime for c in range(TILE):
                    output[(i + r) * N + j + c] = sums[r * TILE + c].reduce_add()


def panels(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """NR rows of w turned into a panel, column by column of them; MR x NR sums in registers and none to add up across lanes.
    """
    for j in range(0, N, NR):
        for c in range(NR):
            for k in range(K):
                scratch[k * NR + c] = w[(j + c) * K + k]
        for i in range(0, ROWS, MR):
            var sums = Array[Vec, MR * NR_VECTORS](fill=Vec(0))
            for k in range(K):
                var row = Array[Vec, NR_VECTORS](fill=Vec(0))
                comptime for v in range(NR_VECTORS):
                    row[v] = scratch.load[W](k * NR + v * W)
                comptime for r in range(MR):
                    var x_r = Vec(x[(i + r) * K + k])
                    comptime for v in range(NR_VECTORS):
                        sums[r * NR_VECTORS + v] = x_r.fma(row[v], sums[r * NR_VECTORS + v])
            comptime for r in range(MR):
                comptime for v in range(NR_VECTORS):
                    output.store((i + r) * N + j + v * W, sums[r * NR_VECTORS + v])


def blocked(team: Team, x: Tensor[F32], w: Tensor[F32], output: Tensor[F32], scratch: Tensor[F32]):
    """What a step calls."""
    gemm(team, scratch, ROWS, N, K, row_major(x, K), row_major(w, K).transposed(), output, N, Plain())
