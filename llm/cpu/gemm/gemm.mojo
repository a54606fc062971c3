"""C = epilogue(A @ B [+ C]), any sizes and strides, in parallel, the same bits for any number of threads.

Each member of the team computes its own rectangle of C with the five loops of Goto and van de Geijn ("Anatomy of
High-Performance Matrix Multiplication", 2008) as BLIS arranges them: nothing is shared, so nothing waits.
"""

from llm.base.checks import check_that
from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

from .blocking import CHUNK, F32, KC, LDA, LINE, MC, MR, NC, NR, NR_VECTORS, W, largest_depth, per_unit
from .epilogue import Epilogue
from .kernel import Destination, Outlet, KBlock, update_tile
from .matrix import Matrix
from .pack import Ptr, pack
from .prefetch import Loops, PrefetchPlan, plan_block_of_a, plan_panel_of_b

comptime _PACKED_A = MC * LDA
comptime _PACKED_B = KC * NC


def gemm_workspace_size(threads: Int) -> Int:
    """Counts the float32 of scratch that `gemm` needs on this many threads."""
    return threads * (_PACKED_A + _PACKED_B)


def gemm[
    dtype: DType, output: DType, E: Epilogue, //
](
    team: Team,
    workspace: Tensor[F32],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    c: Tensor[output],
    ldc: Int,
    epilogue: E,
    accumulate: Bool = False,
):
    """Computes C = epilogue(A @ B), or epilogue(A @ B + C) with `accumulate`.

    a (M,K) and b (K,N), float32 or bfloat16, with any strides; c (M,N) of either type in rows ldc apart; sums in
    float32. M, N, K >= 1, and K up to `largest_depth`, which `check_product` checks; nothing is read or written outside
    these extents. c may not overlap a or b.
    """
    comptime assert dtype == F32 or dtype == DType.bfloat16, "gemm: float32 or bfloat16"
    check_that(M >= 1 and N >= 1 and K >= 1, "gemm: a size is not positive")
    check_that(K <= largest_depth[dtype, output](), "gemm: K is beyond what it can pack")
    check_that((M - 1) * a.row_stride + (K - 1) * a.col_stride < a.size, "gemm: A is too small")
    check_that((K - 1) * b.row_stride + (N - 1) * b.col_stride < b.size, "gemm: B is too small")
    check_that(N <= ldc and (M - 1) * ldc + N <= c.size, "gemm: C is too small")
    check_that(gemm_workspace_size(team.size) <= workspace.size, "gemm: the workspace is too small")
    var destination = Destination(c.ptr, ldc, epilogue)
    _multiply(team, workspace, M, N, _Product(a, b, Outlet(destination), K, accumulate), E.NAME)
    _ = destination


def _multiply[
    dtype: DType, //
](team: Team, workspace: Tensor[F32], M: Int, N: Int, product: _Product[dtype], name: StaticString):
    var down, across = _grid(M, N, team.size)

    def rectangle(member: Int) {imm}:
        if member < down * across:
            var row0, row1 = share(M, down, member // across, MR)
            var col0, col1 = share(N, across, member % across, NR)
            var packed_a = workspace.ptr.unsafe_offset(member * (_PACKED_A + _PACKED_B))
            product.compute(row0, row1, col0, col1, packed_a, packed_a.unsafe_offset(_PACKED_A))

    # Every member of a crew has to come by, also those without a share: never another team here.
    team.run(rectangle, name, flops=2 * M * N * product.K)


def _grid(M: Int, N: Int, members: Int) -> Tuple[Int, Int]:
    """Chooses how many rectangles C is cut into, (down, across), so that the largest costs least."""
    # Packing an element costs about as much as this many multiply-adds; that of B often includes a transposition.
    comptime PACK_A = 4
    comptime PACK_B = 8
    var best = (1, 1)
    var least = Int.MAX
    for down in range(1, members + 1):
        var across = members // down
        var rows = (M + MR * down - 1) // (MR * down) * MR
        var cols = (N + NR * across - 1) // (NR * across) * NR
        var cost = rows * cols + PACK_A * rows + PACK_B * cols
        if cost < least:
            least = cost
            best = (down, across)
    return best


@always_inline
def _block(n: Int, largest: Int, grain: Int) -> Int:
    """Sizes the fewest even blocks of whole grains, none above `largest`, that cover n."""
    var blocks = (n + largest - 1) // largest
    return (n + blocks * grain - 1) // (blocks * grain) * grain


@fieldwise_init
struct _Product[dtype: DType](TrivialRegisterPassable):
    """The operands of one product. The output's type and the epilogue are not known here, so that this is compiled once.
    """

    var a: Matrix[Self.dtype]
    var b: Matrix[Self.dtype]
    var outlet: Outlet
    var K: Int
    var accumulate: Bool

    def compute(self, row0: Int, row1: Int, col0: Int, col1: Int, packed_a: Ptr, packed_b: Ptr):
        """Computes rows row0 .. row1 - 1 and columns col0 .. col1 - 1 of C."""
        if row0 == row1 or col0 == col1:
            return
        comptime PER = per_unit[Self.dtype]()
        var units = (self.K + PER - 1) // PER
        var kc = _block(units, KC, LINE)
        var most_rows, most_cols = MC, NC
        if not self.outlet.in_float32:
            # Partial sums would be rounded in C: all of K is one block, and the others are smaller for it.
            kc = units
            most_rows = max(MC // ((units + KC - 1) // KC) // MR * MR, MR)
            most_cols = max(min(NC, KC * NC // units // NR * NR), NR)
        var nc = _block(col1 - col0, most_cols, NR)
        var mc = _block(row1 - row0, most_rows, MR)
        kc *= PER
        var at = Loops(row0, row1, col1, self.K, mc, kc)
        # Loop 5: blocks of columns.
        for j0 in range(col0, col1, nc):
            var j1 = min(j0 + nc, col1)
            var panels = (j1 - j0 + NR - 1) // NR
            # Loop 4: blocks of K. They follow from K alone, and with them the order of each sum.
            for p0 in range(0, self.K, kc):
                var p1 = min(p0 + kc, self.K)
                var depth = (p1 - p0 + PER - 1) // PER
                var k_block = KBlock(depth, mc * LDA, self.accumulate or p0 > 0, p1 == self.K)
                # Loop 3: blocks of rows. Packs A; the first also packs B, panel by panel.
                for i0 in range(row0, row1, mc):
                    var i1 = min(i0 + mc, row1)
                    var tiles = (i1 - i0 + MR - 1) // MR
                    var prefetches = tiles * (depth // CHUNK)
                    for k in range(p0, p1, KC * PER):
                        var slab = packed_a.unsafe_offset((k - p0) // (KC * PER) * k_block.slab)
                        pack[False](slab, LDA, self.a.at(i0, k), i1 - i0, min(KC * PER, p1 - k), tiles * MR)
                    at.enter(i0, i1, p0, p1, j0, j1)
                    var next_a = plan_block_of_a(self.a, at, prefetches * panels)
                    # Loop 2: panels of NR columns.
                    for j in range(j0, j1, NR):
                        var cols = min(NR, j1 - j)
                        # A panel that no later block of rows needs may be overwritten: it stays in the nearest caches.
                        var panel = packed_b if row1 - row0 <= mc else packed_b.unsafe_offset((j - j0) * depth)
                        var columns = self.b.at(p0, j).transposed()
                        # Where the columns of B are contiguous, the first tile packs.
                        var first_packs = i0 == row0 and columns.row_stride == 1 and cols == NR and i1 - i0 >= MR
                        first_packs = first_packs and (p1 - p0) % PER == 0
                        if i0 == row0 and not first_packs:
                            pack[True](panel, NR, columns, cols, p1 - p0, (cols + W - 1) // W * W)
                        var next_b = plan_panel_of_b(self.b, at, j, panel, depth, prefetches)
                        # Loop 1: tiles of MR rows.
                        for i in range(i0, i1, MR):
                            var tile_a = packed_a.unsafe_offset((i - i0) * LDA)
                            if i == row0 and first_packs:
                                update_tile[Self.dtype, NR_VECTORS, packs=True](
                                    tile_a, panel, columns, self.outlet, i, j, MR, NR, k_block, next_a, next_b
                                )
                            else:
                                self._tile(tile_a, panel, columns, i, j, min(MR, i1 - i), cols, k_block, next_a, next_b)

    @always_inline
    def _tile(
        self,
        a: Ptr,
        b: Ptr,
        columns: Matrix[Self.dtype],
        i: Int,
        j: Int,
        rows: Int,
        cols: Int,
        k_block: KBlock,
        mut next_a: PrefetchPlan,
        mut next_b: PrefetchPlan,
    ):
        comptime for vectors in range(1, NR_VECTORS + 1):
            if (cols + W - 1) // W == vectors:
                update_tile[Self.dtype, vectors](a, b, columns, self.outlet, i, j, rows, cols, k_block, next_a, next_b)
