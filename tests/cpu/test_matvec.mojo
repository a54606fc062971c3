"""Products of a weight matrix with a few vectors against their definition in float64."""

from std.testing import TestSuite
from std.sys import simd_width_of

from framed import F32, F64, Framed, assert_frame_is_whole, assert_near, assert_same_bits
from side_by_side import side_by_side

from llm.cpu.gemm import Bias, BiasResidual, Plain
from llm.cpu.matvec import matvec
from llm.cpu.threads.crew import Team

comptime BF16 = DType.bfloat16
comptime W = simd_width_of[F32]()


def check[dtype: DType](mut memory: Framed, S: Int, C: Int, OC: Int) raises:
    """Compares the three epilogues of inference without GELU with sums in float64."""
    var inp, weight = memory.numbers(S * C), memory.numbers[dtype](OC * C)
    var bias, residual = memory.numbers(OC), memory.numbers(S * OC)
    var plain, biased, added = memory.blank(S * OC), memory.blank(S * OC), memory.blank(S * OC)
    matvec(Team(2), plain, inp, weight, S, C, OC, Plain())
    matvec(Team(2), biased, inp, weight, S, C, OC, Bias(bias))
    matvec(Team(2), added, inp, weight, S, C, OC, BiasResidual(bias, residual, OC))
    for s in range(S):
        for o in range(OC):
            var sum, magnitude = Float64(0), Float64(0)
            for c in range(C):
                var product = inp[s * C + c].cast[F64]() * weight[o * C + c].cast[F64]()
                sum += product
                magnitude += abs(product)
            var i = s * OC + o
            var b, r = bias[o].cast[F64](), residual[i].cast[F64]()
            var roundings = Float64(C + 2)
            var what = String(t"{dtype} ({S},{C},{OC}) at {s}, {o}")
            assert_near(plain[i], sum, roundings, magnitude, what)
            assert_near(biased[i], sum + b, roundings, magnitude + abs(b), what)
            assert_near(added[i], sum + b + r, roundings, magnitude + abs(b) + abs(r), what)
    for output in [plain, biased, added]:
        assert_frame_is_whole(output, String(t"{dtype} ({S},{C},{OC})"))


def check_sizes[dtype: DType]() raises:
    var memory = Framed()
    for S in [1, 3, 4, 5, 9]:
        for C in [1, W - 1, W, W + 1, 4 * W - 1, 4 * W, 4 * W + 1, 9 * W + 3, 500]:
            for OC in [1, 2, 7]:
                check[dtype](memory, S, C, OC)
    _ = memory^


def test_float32() raises:
    check_sizes[F32]()


def test_bfloat16() raises:
    check_sizes[BF16]()


def check_bits[dtype: DType]() raises:
    var memory = Framed()
    var S, C, OC = 6, 9 * W + 3, 23
    var inp, weight = memory.numbers(S * C), memory.numbers[dtype](OC * C)
    var expected = memory.blank(S * OC)
    matvec(Team(1), expected, inp, weight, S, C, OC, Plain())
    for threads in [2, 3, 5]:
        var output = memory.blank(S * OC)

        def body(team: Team) {imm}:
            matvec(team, output, inp, weight, S, C, OC, Plain())

        side_by_side(threads, body)
        assert_same_bits(output, expected, String(t"{threads} threads"))
        assert_frame_is_whole(output, String(t"{threads} threads"))
    for s in range(S):
        var alone = memory.blank(OC)
        matvec(Team(1), alone, inp.slice(s * C, C), weight, 1, C, OC, Plain())
        assert_same_bits(alone, expected.slice(s * OC, OC), String(t"vector {s} alone"))
    _ = memory^


def test_same_bits_for_any_number_of_threads_and_vectors() raises:
    check_bits[F32]()
    check_bits[BF16]()


def test_more_threads_than_rows() raises:
    var memory = Framed()
    var inp, weight, output = memory.numbers(W), memory.numbers(2 * W), memory.blank(2)
    var expected = memory.blank(2)
    matvec(Team(1), expected, inp, weight, 1, W, 2, Plain())

    def body(team: Team) {imm}:
        matvec(team, output, inp, weight, 1, W, 2, Plain())

    side_by_side(5, body)
    assert_same_bits(output, expected)
    _ = memory^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
