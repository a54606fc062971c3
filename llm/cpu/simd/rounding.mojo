"""Float32 to a narrower type, rounded to nearest even: what a kernel does with a result before it stores it."""

from std.memory import bitcast
from std.sys import CompilationTarget

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime _IN_HARDWARE = CompilationTarget._has_feature["avx512bf16"]() or not CompilationTarget.is_x86()


@always_inline
def round_to[width: SIMDLength, //, to: DType](x: SIMD[F32, width]) -> SIMD[to, width]:
    """Rounds x to the nearest of the type, a tie to the even one."""
    comptime if to == BF16 and not _IN_HARDWARE:
        return rebind[SIMD[to, width]](rounded_to_bf16(x))
    else:
        return x.cast[to]()


@always_inline
def rounded_to_bf16[width: SIMDLength, //](x: SIMD[F32, width]) -> SIMD[BF16, width]:
    """Rounds x to bfloat16 by its bits; NaN stays NaN. Without an instruction for it, the compiler calls a function for
    each number, which costs as much as dozens of multiply-adds.
    """
    comptime Bits = SIMD[DType.uint32, width]
    var bits = bitcast[DType.uint32, width](x)
    # Half a last place more, or a little less where that makes ties even, carries into the upper half.
    var upper = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    upper = x.eq(x).select(upper, (bits >> 16) | Bits(0x40))
    return bitcast[BF16, width](upper.cast[DType.uint16]())
