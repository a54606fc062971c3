"""What happens to a tile of the product while it is still in registers."""

from llm.cpu.gelu import gelu, gelu_and_grad
from llm.memory import Tensor

comptime F32 = DType.float32


trait Epilogue(TrivialRegisterPassable):
    """Maps the finished sums of row `row`, columns `col` .. `col + width - 1`, to what is stored there.

    Called exactly once for each element of C, after the last block of K, by the thread that owns the element.
    """

    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns the values to store."""
        ...


@fieldwise_init
struct Plain(Epilogue):
    """Stores the sum."""

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum."""
        return sum


@fieldwise_init
struct Bias(Epilogue):
    """Adds a bias to each column."""

    var bias: Tensor[F32]
    """Shape (N)."""

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum + bias."""
        return sum + self.bias.load[width](col)


@fieldwise_init
struct BiasResidual(Epilogue):
    """Adds a bias to each column and the residual stream to each element."""

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


@fieldwise_init
struct BiasGelu[dtype: DType](Epilogue):
    """Adds a bias, keeps the result for the backward pass and applies GELU."""

    var bias: Tensor[F32]
    """Shape (N)."""
    var pre: Tensor[Self.dtype]
    """Written: the input of GELU, shape (M, N)."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns gelu(sum + bias)."""
        var x = (sum + self.bias.load[width](col)).cast[Self.dtype]()
        self.pre.store(row * self.N + col, x)
        return gelu(x.cast[F32]())


@fieldwise_init
struct GeluBackward[dtype: DType](Epilogue):
    """Turns the gradient of GELU's output into that of its input, and computes the output once more on the way."""

    var pre: Tensor[Self.dtype]
    """The input of GELU, shape (M, N)."""
    var output: Tensor[Self.dtype]
    """Written: gelu(pre), shape (M, N)."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum * gelu'(pre)."""
        var output, grad = gelu_and_grad(self.pre.load[width](row * self.N + col).cast[F32]())
        self.output.store(row * self.N + col, output.cast[Self.dtype]())
        return sum * grad
