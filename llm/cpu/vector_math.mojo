"""Elementwise float32 functions that several kernels need: the same bits for any vector width."""

from std.memory import bitcast

comptime F32 = DType.float32


@always_inline
def exp[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[F32, width]:
    """Computes e^x to 2 ulp over -87 .. 88; beyond that the ends' values, and NaN for NaN.

    x = n ln 2 + r with |r| <= ln(2)/2; e^r by the degree-5 minimax polynomial of Cephes (expf.c, S. Moshier); 2^n is
    put together from its bits.
    """
    comptime V = SIMD[F32, width]
    # Adding this makes the last mantissa bit worth 1: rounding to an integer, and the integer's bits, for one addition.
    comptime ROUNDER = V(12582912.0)
    # Comparisons, unlike min and max, let a NaN through.
    var clamped = x.lt(V(-87.0)).select(V(-87.0), x)
    clamped = clamped.gt(V(88.0)).select(V(88.0), clamped)
    var shifted = clamped.fma(V(1.4426950408889634), ROUNDER)
    var n = shifted - ROUNDER
    var r = n.fma(V(-0.693359375), clamped)
    r = n.fma(V(2.12194440e-4), r)
    var p = V(1.9875691500e-4)
    p = p.fma(r, V(1.3981999507e-3))
    p = p.fma(r, V(8.3334519073e-3))
    p = p.fma(r, V(4.1665795894e-2))
    p = p.fma(r, V(1.6666665459e-1))
    p = p.fma(r, V(5.0000001201e-1))
    var exp_r = p.fma(r * r, r) + 1
    var exponent = (bitcast[DType.int32, width](shifted) << 23) + (127 << 23)
    return exp_r * bitcast[F32, width](exponent)
