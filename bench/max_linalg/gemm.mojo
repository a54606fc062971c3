"""The matrix product by MAX's `linalg.matmul`: takes the place of llm/cpu/gemm/gemm.mojo in one contestant of the bench.

Each member of the team has MAX compute its own rows of C on its one thread. MAX takes whole rows only, so padding is
multiplied along (of the vocabulary, where it is zero), and has no product with a transposed first operand, so weight
gradients transpose it first, as everyone does who builds on it. Epilogues are a second pass over the member's rows.
"""

from std.os import abort
from std.sys import simd_width_of

from layout import TileTensor, row_major as row_major_layout
from linalg.matmul.cpu.impl import matmul

from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

from .epilogue import Epilogue
from .matrix import Matrix

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime BLOCK = 16
"""Rows and columns that are transposed at a time: a cache line each way."""
comptime ROOM = 40_000_000
"""Scalars for a transposed operand, and for a product that is to be added: enough for 124M. What is not touched costs nothing."""


def gemm_workspace_size(threads: Int) -> Int:
    """Counts the float32 of scratch that `gemm` needs on this many threads."""
    return 2 * ROOM * threads


def gemm[
    dtype: DType, output: DType, E: Epilogue, //
](
    team: Team,
    workspace: Tensor[F32],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    c: Tensor[output],
    ldc: Int,
    epilogue: E,
    accumulate: Bool = False,
):
    """Computes C = epilogue(A @ B), or epilogue(A @ B + C) with `accumulate`, as the gemm that it replaces."""
    comptime if dtype == F32 and output == F32:
        var a32 = rebind[Matrix[F32]](a)
        var b32 = rebind[Matrix[F32]](b)
        var c32 = rebind[Tensor[F32]](c)

        def rows(member: Int) {imm}:
            var lo, hi = share(M, team.size, member)
            if lo == hi:
                return
            var scratch = workspace.slice(2 * ROOM * member, 2 * ROOM)
            var product = scratch.ptr.unsafe_offset(ROOM) if accumulate else c32.ptr.unsafe_offset(lo * ldc)
            try:
                multiply(product, scratch, hi - lo, ldc, K, a32.at(lo, 0), b32)
            except error:
                abort(String(error))
            for i in range(lo, hi):
                var sums = product.unsafe_offset((i - lo) * ldc)
                var out_i = c32.ptr.unsafe_offset(i * ldc)
                var full = N // W * W
                for j in range(0, full, W):
                    finish[W](epilogue, i, j, sums, out_i, accumulate)
                for j in range(full, N):
                    finish[1](epilogue, i, j, sums, out_i, accumulate)

        team.run(rows, E.NAME, flops=2 * M * N * K)
    else:
        abort("this build of the bench has products in float32 only")


@always_inline
def finish[
    width: Int, E: Epilogue
](epilogue: E, i: Int, j: Int, sums: Tensor[F32].Ptr, out_i: Tensor[F32].Ptr, accumulate: Bool):
    """Stores elements (i, j .. j + width - 1)."""
    var sum = sums.unsafe_offset(j).unsafe_load[width=width]()
    if accumulate:
        sum += out_i.unsafe_offset(j).unsafe_load[width=width]()
    out_i.unsafe_offset(j).unsafe_store(epilogue.apply[width](i, j, sum))


def multiply(c: Tensor[F32].Ptr, scratch: Tensor[F32], M: Int, N: Int, K: Int, a: Matrix[F32], b: Matrix[F32]) raises:
    """Has MAX compute C (M,N) = A (M,K) @ B (K,N); only A may be in columns, and rows of A may be padded."""
    var depth = K
    var first = a.ptr
    if a.row_stride == 1:
        transpose(scratch, a, M, K)
        first = scratch.ptr
    else:
        depth = a.row_stride
    var product = TileTensor(c, row_major_layout(M, N))
    var left = TileTensor(first, row_major_layout(M, depth))
    if b.row_stride == 1:
        var right = TileTensor(b.ptr, row_major_layout(N, depth))
        matmul[transpose_b=True](product, left, right, 0, num_threads=1)
    else:
        var right = TileTensor(b.ptr, row_major_layout(depth, N))
        matmul(product, left, right, 0, num_threads=1)


def transpose(target: Tensor[F32], a: Matrix[F32], M: Int, K: Int):
    """Writes A, which is in columns, in rows."""
    for i0 in range(0, M, BLOCK):
        for k0 in range(0, K, BLOCK):
            for i in range(i0, min(i0 + BLOCK, M)):
                for k in range(k0, min(k0 + BLOCK, K)):
                    target[i * K + k] = a[i, k]
