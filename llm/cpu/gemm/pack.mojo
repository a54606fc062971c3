"""Copies of blocks of A and B with rows that are contiguous and close together, whatever the strides of the source."""

from std.sys import PrefetchOptions, prefetch

from llm.cpu.parallel import share
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


@always_inline
def prefetch_part(source: Matrix[F32], rows: Int, cols: Int, part: Int, parts: Int):
    """Asks for one of `parts` equal shares of the cache lines of source (rows,cols), so that `pack` finds them in L2.
    """
    var lines = source if source.col_stride == 1 else source.transposed()
    var outer = rows if source.col_stride == 1 else cols
    var inner = cols if source.col_stride == 1 else rows
    var per_row = (inner + LINE - 1) // LINE
    var begin, end = share(outer * per_row, parts, part)
    var r = begin // per_row
    var i = begin % per_row
    for _ in range(begin, end):
        prefetch[_INTO_L2](lines.at(r, i * LINE).ptr)
        i += 1
        if i == per_row:
            i = 0
            r += 1
