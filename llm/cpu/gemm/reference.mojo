"""The product as its definition says it: slow, plain, and what the fast one is tested against."""

from llm.base.memory import Tensor

from .epilogue import Epilogue
from .matrix import Matrix


def gemm_reference[
    dtype: DType, output: DType, E: Epilogue, //
](
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
    """Has the contract of `gemm`, on one thread and summed in float64."""
    for i in range(M):
        for j in range(N):
            var sum = c[i * ldc + j].cast[DType.float64]() if accumulate else Float64(0)
            for p in range(K):
                sum += a[i, p].cast[DType.float64]() * b[p, j].cast[DType.float64]()
            c[i * ldc + j] = epilogue.apply[1](i, j, sum.cast[DType.float32]()).cast[output]()
