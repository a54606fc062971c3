"""C = epilogue(A @ B [+ C]), any sizes and strides, in parallel, the same bits for any number of threads."""

from llm.cpu.parallel import Team, share
from llm.memory import Tensor

from .epilogue import Epilogue
from .matrix import Matrix


def gemm_workspace_size[dtype: DType](threads: Int) -> Int:
    """Scalars of scratch that `gemm` needs on this many threads."""
    return 0


def gemm[
    dtype: DType, E: Epilogue
](
    team: Team,
    workspace: Tensor[dtype],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    c: Tensor[dtype],
    ldc: Int,
    epilogue: E,
    accumulate: Bool = False,
):
    """Computes C = epilogue(A @ B), or epilogue(A @ B + C) with `accumulate`.

    a (M,K) and b (K,N) with any strides, c (M,N) in rows ldc apart; sums in float32. M, N, K >= 1; nothing is read or
    written outside these extents. c may not overlap a or b.
    """

    def rows(member: Int) {imm}:
        var lo, hi = share(M, team.size, member)
        for i in range(lo, hi):
            for j in range(N):
                var sum = c[i * ldc + j].cast[DType.float32]() if accumulate else Float32(0)
                for p in range(K):
                    sum += a[i, p].cast[DType.float32]() * b[p, j].cast[DType.float32]()
                c[i * ldc + j] = epilogue.apply[1](i, j, sum).cast[dtype]()

    team.run(rows)
