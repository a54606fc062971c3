"""A strided view of a matrix: what lets one product serve forward, input gradient and weight gradient."""

from llm.base.memory import Tensor


@fieldwise_init
struct Matrix[dtype: DType](TrivialRegisterPassable):
    """Element (i, j) lies at ptr[i * row_stride + j * col_stride]. The caller knows the extents."""

    var ptr: Tensor[Self.dtype].Ptr
    """Element (0, 0)."""
    var row_stride: Int
    """Scalars from one row to the next."""
    var col_stride: Int
    """Scalars from one column to the next."""

    @always_inline
    def __getitem__(self, i: Int, j: Int) -> Scalar[Self.dtype]:
        """Reads element (i, j), unchecked."""
        return self.ptr[unsafe_offset=i * self.row_stride + j * self.col_stride]

    @always_inline
    def at(self, i: Int, j: Int) -> Self:
        """Views the same matrix from element (i, j) on."""
        return Self(self.ptr.unsafe_offset(i * self.row_stride + j * self.col_stride), self.row_stride, self.col_stride)

    @always_inline
    def transposed(self) -> Self:
        """Views the transpose."""
        return Self(self.ptr, self.col_stride, self.row_stride)


@always_inline
def row_major[dtype: DType](tensor: Tensor[dtype], columns: Int) -> Matrix[dtype]:
    """Views a tensor as rows of `columns` contiguous scalars."""
    return Matrix[dtype](tensor.ptr, columns, 1)
