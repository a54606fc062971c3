"""2^x against the standard library's in float64."""

from std.math import exp2 as exact_exp2, isnan, nan
from std.testing import TestSuite

from llm.cpu.simd.vector_math import exp2

comptime F32 = DType.float32


def test_exp2() raises:
    var x = Float32(-140)
    while x < 127:
        var expected = exact_exp2(max(x, -125).cast[DType.float64]())
        var ours = exp2(SIMD[F32, 4](x))[0].cast[DType.float64]()
        if not (abs(ours / expected - 1) < 2e-7):
            raise Error(t"exp2({x}) = {ours}, not {expected}")
        x += 0.0078
    if not isnan(exp2(SIMD[F32, 4](nan[F32]()))[0]):
        raise Error("exp2 loses a NaN")


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
