"""Products of a weight matrix with a few vectors: what a step of generation does, bound by reading the weights once.

A gemm would pack the weights first. Here each thread reads its rows from front to back, as one stream that the
processor fetches ahead by itself, and multiplies every line with some vectors while it is in registers.
"""

from std.sys import PrefetchOptions, prefetch, simd_width_of, size_of

from llm.base.checks import check_that
from llm.base.memory import Tensor
from llm.cpu.gemm import Epilogue
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _CHAINS = 4
"""Independent sums of a product, enough to hide the latency of an addition."""
comptime _VECTORS = 4
"""Vectors that a row is multiplied with at once: their sums and the row fit into registers."""
comptime _BLOCK = 128 * 1024
"""Bytes of weights that are multiplied with all vectors before the next ones."""
comptime _LINE = 64
comptime _AHEAD = 4096
"""Bytes that narrow weights are asked for ahead: a core's window of instructions holds too few loads of them."""
comptime _INTO_L1 = PrefetchOptions().for_read().high_locality().to_data_cache()


def matvec[
    dtype: DType, E: Epilogue
](team: Team, output: Tensor[F32], inp: Tensor[F32], weight: Tensor[dtype], S: Int, C: Int, OC: Int, epilogue: E,):
    """Computes output = epilogue(inp @ weight^T) for few rows. inp (S,C), weight (OC,C), output (S,OC); sums in float32.

    The order of each sum depends on C alone: a vector's result depends neither on S nor on the number of threads.
    """
    check_that(S * C <= inp.size, "matvec: the input is too small")

    def body(member: Int) {imm}:
        var lo, hi = share(OC, team.size, member)
        # Rows come from memory once, and from the L2 cache for the vectors after the first few, which stay in L1.
        var block = max(_BLOCK // (size_of[Scalar[dtype]]() * C), 1)
        for begin in range(lo, hi, block):
            var end = min(begin + block, hi)
            var s = 0
            while s + _VECTORS <= S:
                for o in range(begin, end):
                    _dot[_VECTORS](output, inp, weight.slice(o * C, C).ptr, s, o, C, OC, epilogue)
                s += _VECTORS
            while s < S:
                for o in range(begin, end):
                    _dot[1](output, inp, weight.slice(o * C, C).ptr, s, o, C, OC, epilogue)
                s += 1

    team.run(body, "matvec", bytes=size_of[Scalar[dtype]]() * OC * C)


@always_inline
def _dot[
    vectors: Int, dtype: DType, E: Epilogue
](output: Tensor[F32], inp: Tensor[F32], row: Tensor[dtype].Ptr, s: Int, o: Int, C: Int, OC: Int, epilogue: E):
    """Computes column o of rows s .. s + vectors - 1 of the output."""
    var x = inp.ptr.unsafe_offset(s * C)
    var sums = Array[SIMD[F32, W], vectors * _CHAINS](fill=SIMD[F32, W](0))
    var full = C - C % W
    var unrolled = C - C % (_CHAINS * W)
    for c in range(0, unrolled, _CHAINS * W):
        comptime if dtype != F32:
            comptime SIZE = size_of[Scalar[dtype]]()
            comptime for byte in range(0, _CHAINS * W * SIZE, _LINE):
                prefetch[_INTO_L1](row.unsafe_offset(c + (byte + _AHEAD) // SIZE))
        comptime for chain in range(_CHAINS):
            _add_products[vectors, chain](sums, x, row, c + chain * W, C)
    for c in range(unrolled, full, W):
        _add_products[vectors, 0](sums, x, row, c, C)
    comptime for v in range(vectors):
        var sum = sums[v * _CHAINS]
        comptime for chain in range(1, _CHAINS):
            sum += sums[v * _CHAINS + chain]
        var total = sum.reduce_add()
        for c in range(full, C):
            total += row[unsafe_offset=c].cast[F32]() * x[unsafe_offset=v * C + c]
        output[(s + v) * OC + o] = epilogue.apply[1](s + v, o, total)


@always_inline
def _add_products[
    vectors: Int, chain: Int, dtype: DType
](mut sums: Array[SIMD[F32, W], vectors * _CHAINS], x: Tensor[F32].Ptr, row: Tensor[dtype].Ptr, c: Int, C: Int,):
    var weights = row.unsafe_offset(c).unsafe_load[width=W]().cast[F32]()
    comptime for v in range(vectors):
        var i = v * _CHAINS + chain
        sums[i] = weights.fma(x.unsafe_offset(v * C + c).unsafe_load[width=W](), sums[i])
