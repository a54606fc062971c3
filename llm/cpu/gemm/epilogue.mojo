"""What happens to a tile of the product while it is still in registers."""

from std.sys import PrefetchOptions, prefetch

from llm.cpu.gelu import gelu, gelu_and_grad
from llm.memory import Tensor

comptime F32 = DType.float32
comptime _TO_READ = PrefetchOptions().for_read().high_locality().to_data_cache()
comptime _TO_WRITE = PrefetchOptions().for_write().high_locality().to_data_cache()


trait Epilogue(TrivialRegisterPassable):
    """Maps the finished sums of row `row`, columns `col` .. `col + width - 1`, to what is stored there.

    Called exactly once for each element of C, after the last block of K, by the thread that owns the element.
    """

    comptime NAME: StaticString
    """What traces call a product with this epilogue."""

    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns the values to store."""
        ...

    def announce(self, row: Int, col: Int):
        """Asks for the cache lines that `apply` will read or write besides C at (row, col), some time before."""
        ...


@fieldwise_init
struct Plain(Epilogue):
    """Stores the sum."""

    comptime NAME: StaticString = "gemm"

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns sum."""
        return sum

    @always_inline
    def announce(self, row: Int, col: Int):
        """Asks for nothing."""
        pass


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

    @always_inline
    def announce(self, row: Int, col: Int):
        """Asks for nothing: the bias stays in the nearest cache."""
        pass


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

    @always_inline
    def announce(self, row: Int, col: Int):
        """Asks for the residual stream."""
        prefetch[_TO_READ](self.residual.ptr.unsafe_offset(row * self.N + col))


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
        var x = (sum + self.bias.load[width](col)).cast[Self.dtype]()
        self.pre.store(row * self.N + col, x)
        return gelu(x.cast[F32]())

    @always_inline
    def announce(self, row: Int, col: Int):
        """Asks for where the input of GELU goes."""
        prefetch[_TO_WRITE](self.pre.ptr.unsafe_offset(row * self.N + col))


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
        self.output.store(row * self.N + col, output.cast[Self.dtype]())
        return sum * grad

    @always_inline
    def announce(self, row: Int, col: Int):
        """Asks for the input of GELU and where its output goes."""
        prefetch[_TO_READ](self.pre.ptr.unsafe_offset(row * self.N + col))
        prefetch[_TO_WRITE](self.output.ptr.unsafe_offset(row * self.N + col))
