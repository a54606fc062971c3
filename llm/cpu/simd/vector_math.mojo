"""Elementwise float32 functions that several kernels need: the same bits for any vector width."""

from std.memory import bitcast

comptime F32 = DType.float32


@always_inline
def exp[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[F32, width]:
    """Computes e^x to 2 ulp over -87 .. 88; beyond that the ends' values, and NaN for NaN.

    x = n ln 2 + r with |r| <= ln(2)/2; e^r by the degree-5 minimax polynomial of Cephes (expf.c, S. Moshier); 2^n is
    put together from its bits.
    """
    comptime Vec = SIMD[F32, width]
    # Adding this makes the last mantissa bit worth 1: rounding to an integer, and the integer's bits, for one addition.
    comptime ROUNDER = Vec(12582912.0)
    # Comparisons, unlike min and max, let a NaN through.
    var clamped = x.lt(Vec(-87.0)).select(Vec(-87.0), x)
    clamped = clamped.gt(Vec(88.0)).select(Vec(88.0), clamped)
    var shifted = clamped.fma(Vec(1.4426950408889634), ROUNDER)
    var n = shifted - ROUNDER
    var r = n.fma(Vec(-0.693359375), clamped)
    r = n.fma(Vec(2.12194440e-4), r)
    var p = Vec(1.9875691500e-4)
    p = p.fma(r, Vec(1.3981999507e-3))
    p = p.fma(r, Vec(8.3334519073e-3))
    p = p.fma(r, Vec(4.1665795894e-2))
    p = p.fma(r, Vec(1.6666665459e-1))
    p = p.fma(r, Vec(5.0000001201e-1))
    var exp_r = p.fma(r * r, r) + 1
    var exponent = (bitcast[DType.int32, width](shifted) << 23) + (127 << 23)
    return exp_r * bitcast[F32, width](exponent)


@always_inline
def exp2[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[F32, width]:
    """Computes 2^x to 2.1 ulp for x up to 127, 2^-125 below that, and NaN for NaN.

    x = n + r with |r| <= 1/2; 2^r by a degree-5 polynomial with the least relative error that is exact at 0.
    """
    comptime Vec = SIMD[F32, width]
    comptime ROUNDER = Vec(12582912.0)
    var clamped = x.lt(Vec(-125.0)).select(Vec(-125.0), x)
    var shifted = clamped + ROUNDER
    var r = clamped - (shifted - ROUNDER)
    var p = Vec(1.326472730e-3)
    p = p.fma(r, Vec(9.671512991e-3))
    p = p.fma(r, Vec(5.550733581e-2))
    p = p.fma(r, Vec(2.402224243e-1))
    p = p.fma(r, Vec(6.931470037e-1))
    p = p.fma(r, Vec(1.0))
    # p lies in 0.7 .. 1.42: adding n to its exponent multiplies it by 2^n.
    return bitcast[F32, width](bitcast[DType.int32, width](p) + (bitcast[DType.int32, width](shifted) << 23))
