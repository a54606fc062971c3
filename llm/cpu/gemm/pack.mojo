"""Copies blocks of A and B into the order in which the micro-kernel reads them, and fetches the next ones ahead."""

from std.sys import prefetch, PrefetchOptions

from llm.cpu.transpose import transpose_block
from llm.memory import Tensor

from .blocking import A_STRIDE, MR, NR, W
from .matrix import Matrix

comptime F32 = DType.float32
comptime Ptr = Tensor[F32].Ptr
comptime LINE = 16
"""Float32 in a cache line."""


def pack_b_panel(target: Ptr, b: Matrix[F32], kc: Int, columns: Int):
    """Copies kc x columns of B into target (kc, NR), zeros to the right."""
    if b.col_stride == 1 and columns == NR:
        for p in range(kc):
            comptime for v in range(NR // W):
                var source = b.ptr.unsafe_offset(p * b.row_stride + v * W)
                target.unsafe_offset(p * NR + v * W).unsafe_store(source.unsafe_load[width=W]())
        return
    var p_done = 0
    if b.row_stride == 1 and columns == NR:
        p_done = kc - kc % W
        for p in range(0, p_done, W):
            comptime for v in range(NR // W):
                transpose_block[F32](
                    target.unsafe_offset(p * NR + v * W), NR, b.at(p, v * W).ptr, b.col_stride
                )
    for p in range(p_done, kc):
        for j in range(NR):
            target[unsafe_offset=p * NR + j] = b[p, j] if j < columns else 0


def pack_a_rows(target: Ptr, a: Matrix[F32], rows: Int, kc: Int):
    """Copies rows x kc of A, contiguous along K, into target (rows rounded up to MR, A_STRIDE), zero rows below."""
    var full = kc - kc % W
    for i in range(rows):
        var source = a.at(i, 0).ptr
        var row = target.unsafe_offset(i * A_STRIDE)
        for p in range(0, full, W):
            row.unsafe_offset(p).unsafe_store(source.unsafe_offset(p).unsafe_load[width=W]())
        for p in range(full, kc):
            row[unsafe_offset=p] = source[unsafe_offset=p]
    for i in range(rows, (rows + MR - 1) // MR * MR):
        for p in range(kc):
            target[unsafe_offset=i * A_STRIDE + p] = 0


def pack_a_panels(target: Ptr, a: Matrix[F32], rows: Int, kc: Int):
    """Copies rows x kc of A, any strides, into panels (ceil(rows / MR), kc, MR), zero rows below."""
    var full = rows // MR if a.row_stride == 1 else 0
    for p in range(kc):
        for panel in range(full):
            var source = a.ptr.unsafe_offset(p * a.col_stride + panel * MR)
            target.unsafe_offset((panel * kc + p) * MR).unsafe_store(source.unsafe_load[width=MR]())
    for panel in range(full, (rows + MR - 1) // MR):
        for p in range(kc):
            for i in range(MR):
                var inside = panel * MR + i < rows
                target[unsafe_offset=(panel * kc + p) * MR + i] = a[panel * MR + i, p] if inside else 0


struct Ahead(TrivialRegisterPassable):
    """Asks for the cache lines of a block, a few at a time, while other work goes on."""

    var _ptr: Ptr
    var _stride: Int
    var _lines: Int
    var _rows: Int
    var _row: Int
    var _line: Int

    def __init__(out self, block: Matrix[F32], rows: Int, columns: Int):
        """Plans to fetch rows x columns, of which one dimension is contiguous."""
        var along_rows = block.col_stride == 1
        self._ptr = block.ptr
        self._stride = block.row_stride if along_rows else block.col_stride
        self._rows = rows if along_rows else columns
        self._lines = ((columns if along_rows else rows) + LINE - 1) // LINE
        self._row = 0
        self._line = 0

    def num_lines(self) -> Int:
        return self._rows * self._lines

    @always_inline
    def fetch(mut self, count: Int):
        """Asks for the next `count` lines."""
        for _ in range(count):
            if self._row >= self._rows:
                return
            prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
                self._ptr.unsafe_offset(self._row * self._stride + self._line * LINE)
            )
            self._line += 1
            if self._line == self._lines:
                self._line = 0
                self._row += 1
