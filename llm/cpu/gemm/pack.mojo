"""Copies of blocks of A and B with rows that are contiguous and close together, whatever the strides of the source."""

from std.sys import PrefetchOptions, prefetch

from llm.cpu.transpose import transpose_block
from llm.memory import Tensor

from .blocking import F32, LINE, W
from .matrix import Matrix

comptime Ptr = Tensor[F32].Ptr
comptime _INTO_L2 = PrefetchOptions().for_read().medium_locality().to_data_cache()


def pack(target: Ptr, ld: Int, source: Matrix[F32], rows: Int, cols: Int, padded_rows: Int, padded_cols: Int):
    """Copies source (rows,cols) into rows of `target` that lie `ld` apart, with zeros up to (padded_rows,padded_cols).
    """
    if source.col_stride == 1:
        _copy(target, ld, source, rows, cols)
    elif source.row_stride == 1:
        _copy_transposed(target, ld, source, rows, cols)
    else:
        _copy_elements(target, ld, source, 0, rows, 0, cols)
    for r in range(padded_rows):
        var zeros_from = cols if r < rows else 0
        for c in range(zeros_from, padded_cols):
            target[unsafe_offset=r * ld + c] = 0


def _copy(target: Ptr, ld: Int, source: Matrix[F32], rows: Int, cols: Int):
    var full = cols - cols % W
    for r in range(rows):
        var from_row = source.at(r, 0).ptr
        var to_row = target.unsafe_offset(r * ld)
        for c in range(0, full, W):
            to_row.unsafe_offset(c).unsafe_store(from_row.unsafe_offset(c).unsafe_load[width=W]())
    _copy_elements(target, ld, source, 0, rows, full, cols)


def _copy_transposed(target: Ptr, ld: Int, source: Matrix[F32], rows: Int, cols: Int):
    # The source is contiguous along its rows' index: W x W squares are loaded by columns and turned in registers.
    var full_rows = rows - rows % W
    var full_cols = cols - cols % W
    for c in range(0, full_cols, W):
        for r in range(0, full_rows, W):
            transpose_block[F32](target.unsafe_offset(r * ld + c), ld, source.at(r, c).ptr, source.col_stride)
    _copy_elements(target, ld, source, full_rows, rows, 0, full_cols)
    _copy_elements(target, ld, source, 0, rows, full_cols, cols)


def _copy_elements(target: Ptr, ld: Int, source: Matrix[F32], row0: Int, row1: Int, col0: Int, col1: Int):
    for r in range(row0, row1):
        for c in range(col0, col1):
            target[unsafe_offset=r * ld + c] = source[r, c]


struct Ahead(TrivialRegisterPassable):
    """Asks for the cache lines of a block that will be packed soon, evenly over the calls of `fetch` until then.

    A core can wait for only some two dozen lines at once. Asked for in one burst, lines from memory would hold up all
    others that the micro-kernel wants from L2.
    """

    var _line: Ptr
    var _row_stride: Int
    var _lines_in_row: Int
    var _lines_left_in_row: Int
    var _lines: Int
    var _fetches: Int
    var _credit: Int

    def __init__(out self, block: Matrix[F32], rows: Int, cols: Int, fetches: Int):
        """Plans to have asked for block (rows,cols) after so many fetches; with rows or cols 0, for nothing."""
        var by_rows = block.col_stride == 1
        var length = cols if by_rows else rows
        self._line = block.ptr
        self._row_stride = block.row_stride if by_rows else block.col_stride
        self._lines_in_row = (length + LINE - 1) // LINE
        self._lines_left_in_row = self._lines_in_row
        self._lines = self._lines_in_row * (rows if by_rows else cols)
        self._fetches = fetches
        self._credit = 0

    @always_inline
    def fetch(mut self):
        """Asks for the next lines."""
        self._credit += self._lines
        while self._credit >= self._fetches:
            self._credit -= self._fetches
            prefetch[_INTO_L2](self._line)
            self._line = self._line.unsafe_offset(LINE)
            self._lines_left_in_row -= 1
            if self._lines_left_in_row == 0:
                self._line = self._line.unsafe_offset(self._row_stride - self._lines_in_row * LINE)
                self._lines_left_in_row = self._lines_in_row
