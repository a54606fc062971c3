"""The gradient's norm against sums of squares in float64, block by block."""

from std.math import sqrt
from std.sys import simd_width_of
from std.testing import TestSuite, assert_equal

from framed import F32, F64, Framed, assert_frame_is_whole, assert_near, assert_same_bits
from side_by_side import side_by_side

from llm.base.memory import Tensor
from llm.cpu.global_norm import NORM_BLOCK, norm_of_blocks, num_norm_blocks, sum_squares
from llm.cpu.threads.crew import Team

comptime BF16 = DType.bfloat16
comptime W = simd_width_of[F32]()


def sizes() -> List[Int]:
    return [1, W - 1, W, W + 1, 100, NORM_BLOCK - 1, NORM_BLOCK, NORM_BLOCK + 1, 3 * NORM_BLOCK + W + 1]


def check[dtype: DType](mut memory: Framed, grads: Tensor[dtype], exactly: Bool) raises:
    var blocks = num_norm_blocks(grads.size)
    var sums = memory.blank(blocks)
    sum_squares(Team(2), grads, sums)
    var total = Float64(0)
    for block in range(blocks):
        var lo = block * NORM_BLOCK
        var hi = min(lo + NORM_BLOCK, grads.size)
        var expected = Float64(0)
        for i in range(lo, hi):
            expected += grads[i].cast[F64]() * grads[i].cast[F64]()
        # Squares are summed in W lanes, those over the rest, and the lanes.
        var roundings = Float64(0 if exactly else (hi - lo) // W + 2 * W)
        assert_near(sums[block], expected, roundings, expected, String(t"{dtype}, size {grads.size}, block {block}"))
        total += expected
    assert_frame_is_whole(sums, String(t"{dtype}, size {grads.size}"))
    # The root halves a relative error, and is rounded.
    var roundings = Float64(1 if exactly else NORM_BLOCK // W // 2 + W + 1)
    assert_near(norm_of_blocks(sums), sqrt(total), roundings, sqrt(total), String(t"norm of {grads.size}"))


def check_sizes[dtype: DType]() raises:
    var memory = Framed()
    for size in sizes():
        check(memory, memory.numbers[dtype](size), exactly=False)
        # All sums of these squares are below 2^24: not one of them may be missing or be there twice.
        var integers = memory.blank[dtype](size)
        for i in range(size):
            integers[i] = Scalar[dtype](i * 7 % 11 - 5 if i * 7 % 11 != 5 else 6)
        check(memory, integers, exactly=True)
    _ = memory^


def test_float32() raises:
    check_sizes[F32]()


def test_bfloat16() raises:
    check_sizes[BF16]()


def test_number_of_blocks() raises:
    for blocks in range(1, 4):
        assert_equal(num_norm_blocks((blocks - 1) * NORM_BLOCK + 1), blocks)
        assert_equal(num_norm_blocks(blocks * NORM_BLOCK), blocks)


def check_bits[dtype: DType]() raises:
    var memory = Framed()
    var grads = memory.numbers[dtype](7 * NORM_BLOCK + W + 3)
    var expected = memory.blank(8)
    sum_squares(Team(1), grads, expected)
    for threads in [2, 3, 5]:
        var sums = memory.blank(8)

        def body(team: Team) {imm}:
            sum_squares(team, grads, sums)

        side_by_side(threads, body)
        assert_same_bits(sums, expected, String(t"{dtype}, {threads} threads"))
        assert_frame_is_whole(sums, String(t"{dtype}, {threads} threads"))
    _ = memory^


def test_same_bits_for_any_number_of_threads() raises:
    check_bits[F32]()
    check_bits[BF16]()


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
