"""Elementwise functions on vectors that several kernels share."""

from std.math import exp, tanh, sqrt

comptime GELU_SCALE = 0.7978845608028654
"""Square root of 2 / pi."""
comptime GELU_CUBIC = 0.044715


@always_inline
def gelu[dtype: DType, width: Int](x: SIMD[dtype, width]) -> SIMD[dtype, width]:
    """Computes 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GPT-2's GELU."""
    comptime S = SIMD[dtype, width](GELU_SCALE)
    var inner = S * (x + GELU_CUBIC * x * x * x)
    return 0.5 * x * (1 + tanh(inner))


@always_inline
def gelu_grad[dtype: DType, width: Int](x: SIMD[dtype, width]) -> SIMD[dtype, width]:
    """Computes the derivative of `gelu` at x."""
    comptime S = SIMD[dtype, width](GELU_SCALE)
    var x2 = x * x
    var t = tanh(S * (x + GELU_CUBIC * x2 * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * S * (1 + 3 * GELU_CUBIC * x2)
