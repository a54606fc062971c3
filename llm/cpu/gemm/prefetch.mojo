"""Which cache lines are prefetched, and when: the micro-kernel finds in its caches what it reads and writes."""

from std.sys import PrefetchOptions, size_of
from std.sys import prefetch as _prefetch

from llm.base.memory import Tensor

from .blocking import F32
from .matrix import Matrix

comptime _INTO_L2 = PrefetchOptions().for_read().medium_locality().to_data_cache()


struct CacheLines(TrivialRegisterPassable):
    """Where a matrix of C's shape lies: as much as prefetching its cache lines takes."""

    var _address: Int
    """0 for no matrix."""
    var _row_bytes: Int
    var _bytes: Int
    """Of an element."""

    def __init__(out self):
        """No matrix."""
        self._address = 0
        self._row_bytes = 0
        self._bytes = 0

    def __init__[dtype: DType, //](out self, ptr: Tensor[dtype].Ptr, row_stride: Int):
        """The matrix at `ptr` whose rows lie `row_stride` scalars apart."""
        self._address = Int(ptr)
        self._bytes = size_of[dtype]()
        self._row_bytes = row_stride * self._bytes

    @always_inline
    def prefetch[options: PrefetchOptions](self, row: Int, col: Int):
        """Prefetches the line of element (row, col)."""
        if self._address != 0:
            var address = self._address + row * self._row_bytes + col * self._bytes
            _prefetch[options](Pointer[UInt8, MutUntrackedOrigin](unsafe_from_address=address))


struct PrefetchPlan(TrivialRegisterPassable):
    """Precalls the cache lines of a block that will be needed soon, evenly over the calls of `advance` until then.

    A core can wait for only some two dozen lines at once. Prefetched in one burst, lines from memory would hold up all
    others that the micro-kernel wants from L2.
    """

    comptime _LINE = 64

    var _line: Pointer[UInt8, MutUntrackedOrigin]
    var _row_stride: Int
    """Bytes."""
    var _lines_in_row: Int
    var _lines_left_in_row: Int
    var _lines: Int
    var _calls: Int
    var _credit: Int

    def __init__[dtype: DType, //](out self, block: Matrix[dtype], rows: Int, cols: Int, calls: Int):
        """Plans to have prefetched block (rows,cols) after so many calls; with rows or cols 0, for nothing."""
        comptime BYTES = size_of[dtype]()
        var by_rows = block.col_stride == 1
        var length = BYTES * (cols if by_rows else rows)
        self._line = Pointer[UInt8, MutUntrackedOrigin](unsafe_from_address=Int(block.ptr))
        self._row_stride = BYTES * (block.row_stride if by_rows else block.col_stride)
        self._lines_in_row = (length + Self._LINE - 1) // Self._LINE
        self._lines_left_in_row = self._lines_in_row
        self._lines = self._lines_in_row * (rows if by_rows else cols)
        self._calls = calls
        self._credit = 0

    @always_inline
    def advance(mut self):
        """Precalls the next lines."""
        self._credit += self._lines
        while self._credit >= self._calls:
            self._credit -= self._calls
            _prefetch[_INTO_L2](self._line)
            self._line = self._line.unsafe_offset(Self._LINE)
            self._lines_left_in_row -= 1
            if self._lines_left_in_row == 0:
                self._line = self._line.unsafe_offset(self._row_stride - self._lines_in_row * Self._LINE)
                self._lines_left_in_row = self._lines_in_row
