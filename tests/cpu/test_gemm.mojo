"""The matrix product against its definition in float64: ragged sizes, strides, epilogues, and the same bits always.

Everything runs on float32 and on bfloat16 operands, whose products are exact in the reference.
"""

from std.testing import TestSuite, assert_equal, assert_raises, assert_true
from std.utils.numerics import isnan, nan

from framed import assert_same_bits
from side_by_side import side_by_side

from llm.base.memory import Arena, Tensor
from llm.cpu.gelu import gelu
from llm.cpu.gemm import (
    Bias,
    BiasGelu,
    BiasResidual,
    Epilogue,
    GeluBackward,
    Matrix,
    Plain,
    check_product,
    gemm,
    gemm_workspace_size,
    largest_depth,
    per_unit,
)
from llm.cpu.gemm.blocking import KC, MC, MR, NC, NR, W
from llm.cpu.gemm.reference import gemm_reference
from llm.cpu.threads.crew import Team

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime MAX_THREADS = 5
comptime GUARD = 5
"""Columns and rows of NaN around every matrix."""


def tolerance(K: Int) -> Float32:
    """Rounding of a sum of K products of numbers up to 0.5 in magnitude, and of what an epilogue does with it."""
    return 1.2e-7 * 0.25 * Float32(K + 32)


struct Operands(Movable):
    """Matrices of numbers in -0.5 .. 0.5, each inside a frame of NaN."""

    var arena: Arena
    var workspace: Tensor[F32]
    var seed: UInt32

    def __init__(out self) raises:
        self.arena = Arena(400_000_000)
        self.workspace = self.arena.carve[F32](gemm_workspace_size(MAX_THREADS))
        self.workspace.fill(nan[F32]())
        self.seed = 1

    def random(mut self) -> Float32:
        self.seed = self.seed * 1664525 + 1013904223
        return Float32(self.seed >> 8) / Float32(1 << 24) - 0.5

    def vector(mut self, size: Int) raises -> Tensor[F32]:
        var tensor = self.arena.carve[F32](size)
        for i in range(size):
            tensor[i] = self.random()
        return tensor

    def matrix[
        dtype: DType = F32
    ](mut self, rows: Int, cols: Int, transposed: Bool = False, spread: Int = 1) raises -> Matrix[dtype]:
        """Makes a matrix stored by rows or by columns, of which neighbours lie `spread` apart."""
        var matrix = self._empty[dtype](rows, cols, transposed, spread)
        for i in range(rows):
            for j in range(cols):
                matrix.at(i, j).ptr[unsafe_offset=0] = self.random().cast[dtype]()
        return matrix

    def copy[
        dtype: DType, //
    ](mut self, source: Matrix[dtype], rows: Int, cols: Int, transposed: Bool) raises -> Matrix[dtype]:
        """Makes a matrix of the same numbers, stored by rows or by columns."""
        var matrix = self._empty[dtype](rows, cols, transposed, 1)
        for i in range(rows):
            for j in range(cols):
                matrix.at(i, j).ptr[unsafe_offset=0] = source[i, j]
        return matrix

    def _empty[dtype: DType](mut self, rows: Int, cols: Int, transposed: Bool, spread: Int) raises -> Matrix[dtype]:
        var outer = cols if transposed else rows
        var inner = rows if transposed else cols
        var ld = inner * spread + GUARD
        var all = self.arena.carve[dtype]((outer + 2) * ld)
        all.fill(nan[dtype]())
        var matrix = Matrix[dtype](all.ptr.unsafe_offset(ld), ld, spread, all.size - ld)
        return matrix.transposed() if transposed else matrix

    def output[dtype: DType](mut self, M: Int, N: Int, accumulate: Bool) raises -> Tensor[dtype]:
        """Makes a C with its frame: numbers if something is to be added to it, otherwise NaN."""
        var ldc = N + GUARD
        var all = self.arena.carve[dtype]((M + 2) * ldc)
        all.fill(nan[dtype]())
        if accumulate:
            for i in range(M):
                for j in range(N):
                    all[(i + 1) * ldc + j] = self.random().cast[dtype]()
        return all


def check[
    dtype: DType, E: Epilogue, //, output: DType = F32
](
    mut operands: Operands,
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    epilogue: E,
    accumulate: Bool,
) raises:
    """Compares `gemm` with the reference."""
    var before = operands.output[output](M, N, accumulate)
    var expected = reference(operands, before, M, N, K, a, b, epilogue, accumulate)
    check_against(expected, operands, before, M, N, K, a, b, epilogue, accumulate)


def reference[
    dtype: DType, output: DType, E: Epilogue, //
](
    mut operands: Operands,
    before: Tensor[output],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    epilogue: E,
    accumulate: Bool,
) raises -> Tensor[output]:
    """Computes what a C and its frame should be."""
    var ldc = N + GUARD
    var c = copy_of(operands, before)
    gemm_reference(M, N, K, a, b, c.slice(ldc, M * ldc), ldc, epilogue, accumulate)
    return c


def copy_of[dtype: DType, //](mut operands: Operands, source: Tensor[dtype]) raises -> Tensor[dtype]:
    var copy = operands.arena.carve[dtype](source.size)
    for i in range(source.size):
        copy[i] = source[i]
    return copy


def check_against[
    dtype: DType, output: DType, E: Epilogue, //
](
    expected: Tensor[output],
    mut operands: Operands,
    before: Tensor[output],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    epilogue: E,
    accumulate: Bool,
) raises:
    """Compares `gemm` with the expected inside C, and C's frame with what it was."""
    var ldc = N + GUARD
    var c = copy_of(operands, before)
    gemm(Team(2), operands.workspace, M, N, K, a, b, c.slice(ldc, M * ldc), ldc, epilogue, accumulate)
    for i in range(c.size):
        if isnan(expected[i]):
            assert_true(isnan(c[i]), String(t"({M},{N},{K}): wrote outside C, at {i // ldc - 1}, {i % ldc}"))
        else:
            var number = expected[i].cast[F32]()
            var error = abs(c[i].cast[F32]() - number)
            # Two numbers that are nearly the same may be rounded to bfloat16 in two ways.
            var allowed = tolerance(K) + (0 if output == F32 else abs(number) / 128)
            assert_true(
                error <= allowed,
                String(t"({M},{N},{K}) at {i // ldc - 1}, {i % ldc}: {c[i]}, expected {expected[i]}"),
            )


def check_all_layouts(M: Int, N: Int, K: Int) raises:
    check_layouts_of[F32, F32](M, N, K)
    check_layouts_of[BF16, F32](M, N, K)
    check_layouts_of[BF16, BF16](M, N, K)


def check_layouts_of[dtype: DType, output: DType](M: Int, N: Int, K: Int) raises:
    """The same product of operands by rows and by columns: most of a test's time goes to the reference."""
    var operands = Operands()
    var a, b = operands.matrix[dtype](M, K), operands.matrix[dtype](K, N, transposed=True)
    for accumulate in [False, True]:
        var before = operands.output[output](M, N, accumulate)
        var expected = reference(operands, before, M, N, K, a, b, Plain(), accumulate)
        for layout in range(4):
            var a_stored = operands.copy(a, M, K, transposed=layout % 2 == 1)
            var b_stored = operands.copy(b, K, N, transposed=layout // 2 == 1)
            check_against(expected, operands, before, M, N, K, a_stored, b_stored, Plain(), accumulate)


def test_ragged_sizes() raises:
    for M in [1, MR - 1, MR, 2 * MR + 1]:
        for N in [1, W - 1, W, W + 1, NR - 1, NR, 2 * NR + W + 3]:
            for K in [1, 2, W - 1, 2 * W + 1]:
                check_all_layouts(M, N, K)


def test_several_blocks_of_k() raises:
    for K in [KC - 1, KC, KC + 1, 2 * KC + 7, 4 * KC + 9]:
        check_all_layouts(MR + 3, NR + 5, K)


def test_several_blocks_of_rows() raises:
    check_all_layouts(2 * MC + 3, NR + 1, W + 1)


def test_several_blocks_of_columns() raises:
    check_all_layouts(MR + 1, 2 * NC + W + 1, W + 1)


def test_several_blocks_of_everything() raises:
    check_all_layouts(MC + MR + 1, NC + NR + 1, KC + W + 1)


def test_any_strides() raises:
    var operands = Operands()
    var a = operands.matrix(MR + 3, KC + 3, spread=2)
    var b = operands.matrix(KC + 3, NR + W + 1, transposed=True, spread=3)
    check(operands, MR + 3, NR + W + 1, KC + 3, a, b, Plain(), accumulate=False)


def test_bfloat16_with_more_rows_than_a_block_of_all_k() raises:
    """All of K is one block if C is bfloat16; then the blocks of rows and columns are smaller."""
    check_layouts_of[BF16, BF16](MC + 3, 2 * NR + 5, 5 * KC + 3)
    check_layouts_of[BF16, BF16](MR + 3, NC // 2 + NR + 1, 5 * KC + 3)


def test_bfloat16_with_the_deepest_sums_that_can_be_packed() raises:
    comptime K = largest_depth[BF16, BF16]()
    check_product[BF16, BF16](K)
    check_product[BF16, F32](2 * K)
    with assert_raises(contains="gemm: expected at most"):
        check_product[BF16, BF16](K + 1)
    # A float32 is a unit by itself, a bfloat16 half of one where the processor multiplies pairs.
    with assert_raises(contains="gemm: expected at most"):
        check_product[F32, BF16](K // per_unit[BF16]() + 1)
    var operands = Operands()
    for thick in [False, True]:
        # Rows and columns that no longer fit into one block of such a depth.
        var M = MR + 1 if thick else 2
        var N = 2 * NR + 3 if thick else 1
        var a = operands.matrix[BF16](M, K)
        var b = operands.matrix[BF16](K, N)
        check[BF16](operands, M, N, K, a, b, Plain(), accumulate=False)


def test_bfloat16_any_strides() raises:
    var operands = Operands()
    var a = operands.matrix[BF16](MR + 3, KC + 3, spread=2)
    var b = operands.matrix[BF16](KC + 3, NR + W + 1, transposed=True, spread=3)
    check[BF16](operands, MR + 3, NR + W + 1, KC + 3, a, b, Plain(), accumulate=False)


def test_bfloat16_epilogues() raises:
    """What a tile stores is rounded once; the input of GELU is what GELU saw."""
    var operands = Operands()
    var M, N, K = MR + 3, NR + W + 3, 2 * KC + 1
    var a = operands.matrix[BF16](M, K)
    var b = operands.matrix[BF16](K, N, transposed=True)
    var bias = operands.vector(N)
    check(operands, M, N, K, a, b, BiasResidual(bias, operands.vector(M * N), N), accumulate=False)
    check[BF16](operands, M, N, K, a, b, Bias(bias), accumulate=False)
    var pre, c, biased = operands.arena.carve[BF16](M * N), operands.arena.carve[BF16](M * N), operands.vector(M * N)
    # Where all of K is one block, sums have the same order for either type of C.
    comptime ONE_BLOCK = KC - 1
    gemm(Team(2), operands.workspace, M, N, ONE_BLOCK, a, b, c, N, BiasGelu(bias, pre, N))
    gemm(Team(2), operands.workspace, M, N, ONE_BLOCK, a, b, biased, N, Bias(bias))
    for i in range(M * N):
        assert_equal(pre[i], biased[i].cast[BF16]())
        assert_equal(c[i], gelu(pre[i].cast[F32]()).cast[BF16]())
    _ = operands^


def test_epilogues() raises:
    var operands = Operands()
    for sizes in [(MR + 3, NR + W + 3, 2 * KC + 1), (2 * MR, 2 * NR, W), (1, 1, 1)]:
        var M = sizes[0]
        var N = sizes[1]
        var K = sizes[2]
        var a = operands.matrix(M, K)
        var b = operands.matrix(K, N, transposed=True)
        var bias = operands.vector(N)
        var other = operands.vector(M * N)
        var again = operands.vector(M * N)
        for accumulate in [False, True]:
            check(operands, M, N, K, a, b, Bias(bias), accumulate)
            check(operands, M, N, K, a, b, BiasResidual(bias, other, N), accumulate)
            check(operands, M, N, K, a, b, GeluBackward(other, again, N), accumulate)
        # The input of GELU is an output too: it must be the biased sum, once.
        var pre = operands.vector(M * N)
        check(operands, M, N, K, a, b, BiasGelu(bias, pre, N), accumulate=False)
        var expected = operands.vector(M * N)
        var c = operands.vector(M * N)
        gemm(Team(2), operands.workspace, M, N, K, a, b, c, N, BiasGelu(bias, pre, N))
        gemm(Team(2), operands.workspace, M, N, K, a, b, expected, N, Bias(bias))
        assert_same_bits(pre, expected)
        # And the backward pass must find GELU's output as the forward pass left it.
        gemm(Team(2), operands.workspace, M, N, K, a, b, expected, N, GeluBackward(pre, again, N))
        assert_same_bits(again, c)


def test_same_bits_for_any_number_of_threads() raises:
    var operands = Operands()
    for sizes in [(3 * MR + 1, 4 * NR + W + 2, 2 * KC + 9), (MC + 5, NR - 1, W), (1, 5 * NR, KC + 1), (1, 1, 3)]:
        var M = sizes[0]
        var N = sizes[1]
        var K = sizes[2]
        var a = operands.matrix(M, K)
        var b = operands.matrix(K, N, transposed=True)
        var expected = operands.vector(M * N)
        gemm(Team(1), operands.workspace, M, N, K, a, b, expected, N, Plain())
        for threads in [2, 3, MAX_THREADS]:
            var c = operands.vector(M * N)
            gemm(Team(threads), operands.workspace, M, N, K, a, b, c, N, Plain())
            assert_same_bits(c, expected)
            var together = operands.vector(M * N)

            def body(team: Team) {imm}:
                gemm(team, operands.workspace, M, N, K, a, b, together, N, Plain())

            side_by_side(threads, body)
            assert_same_bits(together, expected)


def test_same_bits_in_any_tile() raises:
    """The bits of an element follow from its row of A and column of B, wherever it lies in C and however A is stored.
    """
    var operands = Operands()
    var M = MC + MR + 1
    var N = 2 * NR + 2
    var K = 2 * KC + 3
    var a = operands.matrix(M, K)
    var b = operands.matrix(K, N)
    var whole = operands.vector(M * N)
    gemm(Team(1), operands.workspace, M, N, K, a, b, whole, N, Plain())
    var by_columns = operands.matrix(M, K, transposed=True)
    for i in range(M):
        for p in range(K):
            by_columns.at(i, p).ptr[unsafe_offset=0] = a[i, p]
    for origin in [(1, 1), (MR - 1, W), (M - 1, N - 1), (MC, NR)]:
        var row = origin[0]
        var col = origin[1]
        var rows = M - row
        var cols = N - col
        var part = operands.vector(rows * cols)
        gemm(Team(2), operands.workspace, rows, cols, K, by_columns.at(row, 0), b.at(0, col), part, cols, Plain())
        for i in range(rows):
            assert_same_bits(part.slice(i * cols, cols), whole.slice((row + i) * N + col, cols))


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
