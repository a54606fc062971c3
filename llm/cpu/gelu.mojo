"""GPT-2's GELU: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). The products apply it to their tiles by epilogues."""

from llm.cpu.simd.vector_math import exp

comptime F32 = DType.float32

comptime SCALE = 0.7978845608028654
"""Square root of 2 / pi."""
comptime CUBIC = 0.044715


@always_inline
def gelu[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[F32, width]:
    """Computes GELU at x."""
    return x / (1 + _decay(x))


@always_inline
def gelu_and_grad[width: SIMDLength, //](x: SIMD[F32, width]) -> Tuple[SIMD[F32, width], SIMD[F32, width]]:
    """Computes GELU at x, with the bits that `gelu` gives, and its derivative there."""
    comptime Vec = SIMD[F32, width]
    var e = _decay(x)
    var s = 1 / (1 + e)
    var slope_2u = (x * x).fma(Vec(6 * SCALE * CUBIC), Vec(2 * SCALE))
    return x / (1 + e), (x * (e * s) * s).fma(slope_2u, s)


@always_inline
def _decay[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[F32, width]:
    # e^(-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): (1 + tanh(u)) / 2 = 1 / (1 + e^(-2u)), without cancellation
    comptime Vec = SIMD[F32, width]
    return exp(x * (x * x).fma(Vec(-2 * SCALE * CUBIC), Vec(-2 * SCALE)))
