"""A strided view of a matrix: what lets one product serve forward, input gradient and weight gradient."""

from llm.base.checks import check_bounds
from llm.base.memory import Tensor


struct Matrix[dtype: DType](TrivialRegisterPassable):
    """Element (i, j) lies at ptr[i * row_stride + j * col_stride]. The caller knows the shape."""

    var ptr: Tensor[Self.dtype].Ptr
    """Element (0, 0)."""
    var row_stride: Int
    """Scalars from one row to the next."""
    var col_stride: Int
    """Scalars from one column to the next."""
    var size: Int
    """Scalars from `ptr` on that belong to it, for checks."""

    @always_inline
    def __init__(out self, ptr: Tensor[Self.dtype].Ptr, row_stride: Int, col_stride: Int, size: Int = Int.MAX):
        """Views what begins at `ptr`; without a size nothing can be checked."""
        self.ptr = ptr
        self.row_stride = row_stride
        self.col_stride = col_stride
        self.size = size

    @always_inline
    def __getitem__(self, i: Int, j: Int) -> Scalar[Self.dtype]:
        """Reads element (i, j)."""
        var place = i * self.row_stride + j * self.col_stride
        check_bounds(place, 1, self.size)
        return self.ptr[unsafe_offset=place]

    @always_inline
    def load[width: Int](self, i: Int, j: Int) -> SIMD[Self.dtype, width]:
        """Reads `width` scalars that lie one behind the other from element (i, j) on."""
        var place = i * self.row_stride + j * self.col_stride
        check_bounds(place, width, self.size)
        return self.ptr.unsafe_offset(place).unsafe_load[width=width]()

    @always_inline
    def at(self, i: Int, j: Int) -> Self:
        """Views the same matrix from element (i, j) on."""
        var place = i * self.row_stride + j * self.col_stride
        return Self(self.ptr.unsafe_offset(place), self.row_stride, self.col_stride, self.size - place)

    @always_inline
    def transposed(self) -> Self:
        """Views the transpose."""
        return Self(self.ptr, self.col_stride, self.row_stride, self.size)


@always_inline
def row_major[dtype: DType](tensor: Tensor[dtype], columns: Int) -> Matrix[dtype]:
    """Views a tensor as rows of `columns` contiguous scalars."""
    return Matrix[dtype](tensor.ptr, columns, 1, tensor.size)
