"""Conversions against their definition in integers: to bfloat16 rounded to nearest, ties to even; from it exactly."""

from std.memory import bitcast
from std.sys import simd_width_of
from std.testing import TestSuite, assert_equal, assert_true
from std.utils.numerics import isnan

from framed import F32, Framed, assert_frame_is_whole, assert_same_bits
from side_by_side import side_by_side

from llm.base.memory import Tensor
from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Team

comptime BF16 = DType.bfloat16
comptime W = simd_width_of[F32]()


def convert_side_by_side[to: DType, dtype: DType, //](threads: Int, target: Tensor[to], source: Tensor[dtype]) raises:
    def body(team: Team) {imm}:
        convert(team, target, source)

    side_by_side(threads, body)


def rounded(x: Float32) -> UInt16:
    """Returns the bits of the bfloat16 nearest to a number that is not NaN."""
    var bits = bitcast[DType.uint32](x)
    var last = (bits >> 16) & 1
    return UInt16((bits + 0x7FFF + last) >> 16)


def any_number(mut memory: Framed) -> Float32:
    """Draws from all normal float32 numbers."""
    while True:
        var bits = UInt32(0)
        for _ in range(2):
            bits = bits << 16 | UInt32((memory.random() + 0.5) * 65536)
        var exponent = (bits >> 23) & 255
        if exponent != 0 and exponent != 255:
            return bitcast[F32](bits)


def sizes() -> List[Int]:
    return [1, W - 1, W, W + 1, 2 * W, 5 * W + 3, 1000]


def test_float32_to_bfloat16() raises:
    var memory = Framed()
    for size in sizes():
        var source, target = memory.blank(size), memory.blank[BF16](size)
        for i in range(size):
            source[i] = any_number(memory)
        convert(Team(2), target, source)
        for i in range(size):
            assert_equal(bitcast[DType.uint16](target[i]), rounded(source[i]), String(t"{source[i]}, {i} of {size}"))
        assert_frame_is_whole(target, String(t"size {size}"))
    _ = memory^


def test_ties_and_ends() raises:
    """The same numbers in a vector and in what is left over."""
    var cases: List[UInt32] = [
        0x00000000,
        0x80000000,
        0x3F808000,  # halfway, the even neighbour is below
        0x3F818000,  # halfway, the even neighbour is above
        0x3F808001,
        0x3F807FFF,
        0xBF808000,
        0xBF818000,
        0x3FFF8000,  # up to the next power of two
        0x7F7F7FFF,  # the largest number that stays finite
        0x7F7F8000,
        0x7F7FFFFF,
        0xFF7FFFFF,
        0x7F800000,
        0xFF800000,
        0x00800000,  # the smallest normal number
    ]
    var memory = Framed()
    for bits in cases:
        var source, target = memory.blank(2 * W - 1), memory.blank[BF16](2 * W - 1)
        source.fill(bitcast[F32](bits))
        convert(Team(1), target, source)
        for i in range(target.size):
            assert_equal(bitcast[DType.uint16](target[i]), rounded(source[i]), String(t"bits {bits}, element {i}"))
    var lost = memory.numbers[BF16](2 * W - 1)
    convert(Team(1), lost, memory.blank(2 * W - 1))
    for i in range(lost.size):
        assert_true(isnan(lost[i]), String(t"NaN became {lost[i]}, element {i}"))
    _ = memory^


def test_bfloat16_to_float32() raises:
    var memory = Framed()
    for size in sizes():
        var source, target = memory.numbers[BF16](size), memory.blank(size)
        convert(Team(2), target, source)
        for i in range(size):
            var bits = UInt32(bitcast[DType.uint16](source[i])) << 16
            assert_equal(bitcast[DType.uint32](target[i]), bits, String(t"{source[i]}, {i} of {size}"))
        assert_frame_is_whole(target, String(t"size {size}"))
    _ = memory^


def test_to_the_same_type() raises:
    var memory = Framed()
    for size in sizes():
        var source, target = memory.numbers(size), memory.blank(size)
        convert(Team(2), target, source)
        assert_same_bits(target, source, String(t"size {size}"))
        assert_frame_is_whole(target, String(t"size {size}"))
    _ = memory^


def test_same_bits_for_any_number_of_threads() raises:
    var memory = Framed()
    for size in [1, W - 1, 3 * W + 1, 1003]:
        var source = memory.numbers(size)
        var narrow, wide = memory.blank[BF16](size), memory.blank(size)
        convert_side_by_side(1, narrow, source)
        convert_side_by_side(1, wide, narrow)
        for threads in [2, 3, 5]:
            var narrow_again, wide_again = memory.blank[BF16](size), memory.blank(size)
            convert_side_by_side(threads, narrow_again, source)
            convert_side_by_side(threads, wide_again, narrow)
            var what = String(t"size {size}, {threads} threads")
            assert_same_bits(narrow_again, narrow, what)
            assert_same_bits(wide_again, wide, what)
            assert_frame_is_whole(narrow_again, what)
            assert_frame_is_whole(wide_again, what)
    _ = memory^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
