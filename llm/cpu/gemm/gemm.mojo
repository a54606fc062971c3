"""C = epilogue(A @ B [+ C]), any sizes and strides, in parallel, the same bits for any number of threads.

The algorithm is that of GotoBLAS and BLIS (Goto and van de Geijn, 2008): five loops around a micro-kernel that works on
packed panels. Members of the team own blocks of C; each packs what it needs.
"""

from llm.cpu.parallel import Team, share
from llm.memory import Tensor

from .blocking import A_STRIDE, KC, MC, MR, NC, NR, block_of_k
from .epilogue import Epilogue
from .kernel import micro_kernel
from .matrix import Matrix
from .pack import Ahead, pack_a_panels, pack_a_rows, pack_b_panel

comptime F32 = DType.float32
comptime _A_SIZE = (MC + MR) * A_STRIDE
comptime _B_SIZE = NC * KC


def gemm_workspace_size[dtype: DType](threads: Int) -> Int:
    """Scalars of scratch that `gemm` needs on this many threads."""
    return threads * (_A_SIZE + _B_SIZE)


def gemm[
    dtype: DType, E: Epilogue
](
    team: Team,
    workspace: Tensor[dtype],
    M: Int,
    N: Int,
    K: Int,
    a: Matrix[dtype],
    b: Matrix[dtype],
    c: Tensor[dtype],
    ldc: Int,
    epilogue: E,
    accumulate: Bool = False,
):
    """Computes C = epilogue(A @ B), or epilogue(A @ B + C) with `accumulate`.

    a (M,K) and b (K,N) with any strides, c (M,N) in rows ldc apart; sums in float32. M, N, K >= 1; nothing is read or
    written outside these extents. c may not overlap a or b.
    """
    comptime assert dtype == F32, "gemm: only float32 so far"
    var grid_rows = _grid_rows(M, N, team.size)
    var grid_columns = team.size // grid_rows

    def block(member: Int) {imm}:
        var row, column = divmod(member, grid_columns)
        var m0, m1 = share(M, grid_rows, row, MR)
        var n0, n1 = share(N, grid_columns, column, NR)
        if m0 == m1 or n0 == n1:
            return
        var scratch = rebind[Tensor[F32]](workspace.slice(member * (_A_SIZE + _B_SIZE), _A_SIZE + _B_SIZE))
        var a32 = rebind[Matrix[F32]](a)
        var b32 = rebind[Matrix[F32]](b)
        var c32 = rebind[Tensor[F32]](c)
        # Rows that are contiguous along K are copied as they lie; the kernel reads either order.
        if a.col_stride == 1:
            _gemm_block[True](m0, m1, n0, n1, K, a32, b32, c32, ldc, epilogue, accumulate, scratch)
        else:
            _gemm_block[False](m0, m1, n0, n1, K, a32, b32, c32, ldc, epilogue, accumulate, scratch)

    team.run(block)


def _grid_rows(M: Int, N: Int, threads: Int) -> Int:
    """Chooses how many of the threads stand along M, the others along N.

    The cost is the work of the largest block, with the packing of its A and B counted as so many more rows and columns.
    """
    var best = 1
    var least = Int.MAX
    for rows in range(1, threads + 1):
        if threads % rows == 0:
            var m = ((M + MR - 1) // MR + rows - 1) // rows * MR
            var columns = threads // rows
            var n = ((N + NR - 1) // NR + columns - 1) // columns * NR
            var cost = (m + 8) * (n + 8)
            if cost < least:
                least = cost
                best = rows
    return best


def _gemm_block[
    E: Epilogue, //, a_in_rows: Bool
](
    m0: Int,
    m1: Int,
    n0: Int,
    n1: Int,
    K: Int,
    a: Matrix[F32],
    b: Matrix[F32],
    c: Tensor[F32],
    ldc: Int,
    epilogue: E,
    accumulate: Bool,
    scratch: Tensor[F32],
):
    """Computes rows m0 .. m1 - 1, columns n0 .. n1 - 1 of C in one thread."""
    var packed_a = scratch.ptr
    var packed_b = scratch.ptr.unsafe_offset(_A_SIZE)
    var k_step = block_of_k(K)
    for jc in range(n0, n1, NC):  # loop 5: a block of columns, whose B fits the third-level cache
        var nc = min(NC, n1 - jc)
        for pc in range(0, K, k_step):  # loop 4: a block of terms
            var kc = min(k_step, K - pc)
            var add = accumulate or pc > 0
            var last = pc + kc == K
            for ic in range(m0, m1, MC):  # loop 3: a block of rows, whose A fits the second-level cache
                var mc = min(MC, m1 - ic)
                comptime if a_in_rows:
                    pack_a_rows(packed_a, a.at(ic, pc), mc, kc)
                else:
                    pack_a_panels(packed_a, a.at(ic, pc), mc, kc)
                var next_a = Ahead(a.at(ic + mc, pc), min(MC, m1 - ic - mc), kc)
                var tiles = (mc + MR - 1) // MR
                var a_lines = next_a.num_lines() // (tiles * ((nc + NR - 1) // NR)) + 1
                for jr in range(0, nc, NR):  # loop 2: a panel of B
                    var columns = min(NR, nc - jr)
                    var b_panel = packed_b.unsafe_offset(jr * kc)
                    if ic == m0:
                        pack_b_panel(b_panel, b.at(pc, jc + jr), kc, columns)
                    var next_columns = min(NR, nc - jr - NR) if ic == m0 else 0
                    var next_b = Ahead(b.at(pc, jc + jr + NR), kc, max(next_columns, 0))
                    var b_lines = next_b.num_lines() // tiles + 1
                    for ir in range(0, mc, MR):  # loop 1: a panel of A
                        next_b.fetch(b_lines)
                        next_a.fetch(a_lines)
                        var a_panel = packed_a.unsafe_offset(ir * (A_STRIDE if a_in_rows else kc))
                        micro_kernel[a_in_rows](
                            kc,
                            a_panel,
                            b_panel,
                            c.ptr.unsafe_offset((ic + ir) * ldc + jc + jr),
                            ldc,
                            min(MR, mc - ir),
                            columns,
                            ic + ir,
                            jc + jr,
                            add,
                            last,
                            epilogue,
                        )
