"""What happens to a tile of the product while it is still in registers."""

from llm.base.memory import Tensor
from llm.cpu.gelu import gelu, gelu_and_grad
from llm.cpu.simd.rounding import round_to

from .prefetch import CacheLines

comptime F32 = DType.float32


trait Epilogue(TrivialRegisterPassable):
    """Maps the finished sums of row `row`, columns `col` .. `col + width - 1`, to what is stored there.

    Called exactly once for each element of C, after the last block of K, by the thread that owns the element.
    """

    comptime NAME: StaticString
    """What traces call a product with this epilogue."""
    comptime STORES_SUMS: Bool = False
    """Nothing happens to the sums."""

    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns the values to store."""
        ...

    def reads(self) -> CacheLines:
        """Returns what `apply` reads that is as large as C."""
        return CacheLines()

    def writes(self) -> CacheLines:
        """Returns what `apply` writes besides C."""
        return CacheLines()


@fieldwise_init
struct Plain(Epilogue):
    """Stores the sum."""

    comptime NAME: StaticString = "gemm"
    comptime STORES_SUMS = True

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum."""
        return sum


@fieldwise_init
struct Bias(Epilogue):
    """Adds a bias to each column."""

    comptime NAME: StaticString = "gemm + bias"

    var bias: Tensor[F32]
    """Shape (N)."""

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum + bias."""
        return sum + self.bias.load[width](col)


@fieldwise_init
struct BiasResidual(Epilogue):
    """Adds a bias to each column and the residual stream to each element."""

    comptime NAME: StaticString = "gemm + residual"

    var bias: Tensor[F32]
    """Shape (N)."""
    var residual: Tensor[F32]
    """Shape (M, N)."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns residual + (sum + bias)."""
        var biased = sum + self.bias.load[width](col)
        return self.residual.load[width](row * self.N + col) + biased

    def reads(self) -> CacheLines:
        """Returns the residual stream."""
        return CacheLines(self.residual.ptr, self.N)


@fieldwise_init
struct BiasGelu[dtype: DType](Epilogue):
    """Adds a bias, keeps the result for the backward pass and applies GELU."""

    comptime NAME: StaticString = "gemm + gelu"

    var bias: Tensor[F32]
    """Shape (N)."""
    var pre: Tensor[Self.dtype]
    """Written: the input of GELU, shape (M, N)."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns gelu(sum + bias)."""
        var x = round_to[Self.dtype](sum + self.bias.load[width](col))
        self.pre.store(row * self.N + col, x)
        return gelu(x.cast[F32]())

    def writes(self) -> CacheLines:
        """Returns where the input of GELU goes."""
        return CacheLines(self.pre.ptr, self.N)


@fieldwise_init
struct GeluBackward[dtype: DType](Epilogue):
    """Turns the gradient of GELU's output into that of its input, and computes the output once more on the way."""

    comptime NAME: StaticString = "gemm + gelu backward"

    var pre: Tensor[Self.dtype]
    """The input of GELU, shape (M, N)."""
    var output: Tensor[Self.dtype]
    """Written: gelu(pre), shape (M, N)."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum * gelu'(pre)."""
        var output, grad = gelu_and_grad(self.pre.load[width](row * self.N + col).cast[F32]())
        self.output.store(row * self.N + col, round_to[Self.dtype](output))
        return sum * grad

    def reads(self) -> CacheLines:
        """Returns the input of GELU."""
        return CacheLines(self.pre.ptr, self.N)

    def writes(self) -> CacheLines:
        """Returns where GELU's output goes."""
        return CacheLines(self.output.ptr, self.N)
