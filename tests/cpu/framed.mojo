"""Tensors inside frames of NaN, for tests of single kernels: what is read or written outside them shows."""

from std.memory import bitcast
from std.testing import assert_equal, assert_true
from std.utils.numerics import nan

from llm.base.memory import Arena, Tensor

comptime F32 = DType.float32
comptime F64 = DType.float64
comptime FRAME = 67
"""Elements of NaN before and after a tensor: more than any vector, and an odd number, so that no tensor is aligned."""
comptime ROUNDING = 1 / Float64(1 << 24)
"""Largest relative error of one float32 operation."""


struct Framed(Movable):
    """Owner of the tensors of a test. They end with it, so a test's last line names it."""

    var _arena: Arena
    var _seed: UInt32

    def __init__(out self) raises:
        self._arena = Arena(1 << 28)
        self._seed = 1

    def random(mut self) -> Float32:
        """Draws a number from -0.5 .. 0.5."""
        self._seed = self._seed * 1664525 + 1013904223
        return Float32(self._seed >> 8) / Float32(1 << 24) - 0.5

    def blank[dtype: DType = F32](mut self, size: Int) raises -> Tensor[dtype]:
        """Makes a tensor of NaN, for what a kernel computes."""
        var tensor = self._arena.carve[dtype](size + 2 * FRAME).slice(FRAME, size)
        tensor.fill(nan[dtype]())
        for i in range(FRAME):
            tensor[-1 - i] = _frame[dtype](i)
            tensor[size + i] = _frame[dtype](i)
        return tensor

    def numbers[dtype: DType = F32](mut self, size: Int) raises -> Tensor[dtype]:
        """Makes a tensor of random numbers from -0.5 .. 0.5."""
        var tensor = self.blank[dtype](size)
        for i in range(size):
            tensor[i] = self.random().cast[dtype]()
        return tensor


def _bits_of[dtype: DType](x: Scalar[dtype]) -> UInt32:
    comptime if dtype == DType.bfloat16:
        return bitcast[DType.uint16](x).cast[DType.uint32]()
    else:
        return bitcast[DType.uint32](x)


def _frame[dtype: DType](i: Int) -> Scalar[dtype]:
    """Returns a NaN that tells where it lies: one that a kernel computes and writes there is another."""
    comptime if dtype == DType.bfloat16:
        return bitcast[dtype](UInt16(0x7FC0 + i % 63 + 1))
    else:
        return bitcast[dtype](UInt32(0x7FC00000 + i + 1))


def assert_frame_is_whole[dtype: DType](tensor: Tensor[dtype], what: String) raises:
    """Fails if something was written beside a tensor of `Framed`."""
    for i in range(FRAME):
        var expected = _bits_of(_frame[dtype](i))
        assert_equal(_bits_of(tensor[-1 - i]), expected, String(t"{what}: written {i + 1} elements before the tensor"))
        assert_equal(
            _bits_of(tensor[tensor.size + i]), expected, String(t"{what}: written {i} elements behind the tensor")
        )


def assert_same_bits[dtype: DType](got: Tensor[dtype], expected: Tensor[dtype], what: String = "") raises:
    """Compares all elements, bit by bit."""
    assert_equal(got.size, expected.size, what)
    for i in range(expected.size):
        assert_equal(_bits_of(got[i]), _bits_of(expected[i]), String(t"{what}, element {i}"))


def assert_near(got: Float32, expected: Float64, roundings: Float64, magnitude: Float64, what: String) raises:
    """Compares with a sum in float64. `roundings` is how many an addend passes through at most, `magnitude` the sum of
    the addends' magnitudes: their product bounds the error of a sum in float32, in whatever order.
    """
    var allowed = roundings * ROUNDING * magnitude
    var error = abs(got.cast[F64]() - expected)
    assert_true(error <= allowed, String(t"{what}: {got}, expected {expected}; error {error}, allowed {allowed}"))
