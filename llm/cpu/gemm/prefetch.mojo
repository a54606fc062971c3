"""Which cache lines are prefetched, and when: the micro-kernel finds in its caches what it reads and writes."""

from std.sys import PrefetchOptions, size_of
from std.sys import prefetch as _prefetch

from llm.base.memory import Tensor

from .blocking import F32, NR
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
    """Prefetches the cache lines of a block that will be needed soon, evenly over the calls of `advance` until then.

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
        """Prefetches the next lines."""
        self._credit += self._lines
        while self._credit >= self._calls:
            self._credit -= self._calls
            _prefetch[_INTO_L2](self._line)
            self._line = self._line.unsafe_offset(Self._LINE)
            self._lines_left_in_row -= 1
            if self._lines_left_in_row == 0:
                self._line = self._line.unsafe_offset(self._row_stride - self._lines_in_row * Self._LINE)
                self._lines_left_in_row = self._lines_in_row


struct Loops(TrivialRegisterPassable):
    """Where the loops over blocks are in their rectangle of C, and what they come to next."""

    var row0: Int
    var row1: Int
    var col1: Int
    var K: Int
    var mc: Int
    """Rows of a block of A."""
    var kc: Int
    """Scalars of K in a block."""
    var i0: Int
    var i1: Int
    var p0: Int
    var p1: Int
    var j0: Int
    var j1: Int

    def __init__(out self, row0: Int, row1: Int, col1: Int, K: Int, mc: Int, kc: Int):
        """Before the first block."""
        self.row0 = row0
        self.row1 = row1
        self.col1 = col1
        self.K = K
        self.mc = mc
        self.kc = kc
        self.i0, self.i1, self.p0, self.p1, self.j0, self.j1 = 0, 0, 0, 0, 0, 0

    def enter(mut self, i0: Int, i1: Int, p0: Int, p1: Int, j0: Int, j1: Int):
        """Comes to rows i0 .. i1 - 1 of A, K from p0 to p1 - 1, columns j0 .. j1 - 1 of B."""
        self.i0, self.i1, self.p0, self.p1, self.j0, self.j1 = i0, i1, p0, p1, j0, j1

    def next_p(self) -> Int:
        """Returns where K of the next block of B begins."""
        return self.p1 if self.p1 < self.K else 0

    def next_j(self) -> Int:
        """Returns where the columns of the next block of B begin; `col1` if this is the last."""
        return self.j0 if self.p1 < self.K else self.j1

    def next_k(self) -> Int:
        """Returns how deep the next block of B is."""
        return min(self.kc, self.K - self.next_p())


def plan_block_of_a[dtype: DType, //](a: Matrix[dtype], at: Loops, calls: Int) -> PrefetchPlan:
    """Plans for the block of A that is packed next: further rows, or the first ones for the next block of B."""
    if at.i1 < at.row1:
        return PrefetchPlan(a.at(at.i1, at.p0), min(at.mc, at.row1 - at.i1), at.p1 - at.p0, calls)
    var rows = min(at.mc, at.row1 - at.row0) if at.next_j() < at.col1 else 0
    return PrefetchPlan(a.at(at.row0, at.next_p()), rows, at.next_k(), calls)


def plan_panel_of_b[
    dtype: DType, //
](b: Matrix[dtype], at: Loops, j: Int, panel: Tensor[F32].Ptr, depth: Int, calls: Int) -> PrefetchPlan:
    """Plans for the panel of B that follows the one at column j, packed at `panel`, `depth` units deep."""
    if j + NR < at.j1:
        if at.i0 == at.row0:
            return PrefetchPlan(b.at(at.p0, j + NR), at.p1 - at.p0, min(NR, at.j1 - j - NR), calls)
        # Packed already, but all panels together may not stay in L2.
        return PrefetchPlan(Matrix[F32](panel.unsafe_offset(depth * NR), NR, 1), depth, NR, calls)
    if at.i1 < at.row1:
        return PrefetchPlan(b, 0, 0, calls)
    var cols = max(min(NR, at.col1 - at.next_j()), 0)
    return PrefetchPlan(b.at(at.next_p(), at.next_j()), at.next_k(), cols, calls)
