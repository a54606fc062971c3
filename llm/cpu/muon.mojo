"""Muon's kernels: momentum, the Newton-Schulz iteration that makes a matrix nearly orthogonal, and the step.

Keller Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from std.sys import simd_width_of

from llm.base.memory import Tensor
from llm.cpu.gemm import Epilogue, Matrix, Plain, gemm, row_major
from llm.cpu.gemm.prefetch import CacheLines
from llm.cpu.global_norm import NORM_BLOCK, norm_of_blocks, num_norm_blocks
from llm.cpu.simd.rounding import round_to
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime _A = Float32(3.4445)
comptime _B = Float32(-4.7750)
comptime _C = Float32(2.0315)
"""Coefficients of the iteration: singular values from 0 to 1 end within about 0.7 to 1.2."""
comptime ITERATIONS = 5
comptime _SYMMETRIC_FROM = 384
"""Rows from which a symmetric product is worth being computed by halves."""
comptime _STRIPES = 4
comptime _TILE = 16


def muon_momentum(
    team: Team,
    momentum: Tensor[F32],
    direction: Tensor[F32],
    grads: Tensor[F32],
    block_sums: Tensor[F32],
    beta: Float32,
    grad_scale: Float32,
):
    """Takes a gradient into the momentum, and looks ahead (Nesterov).

    g = grad_scale * grads; momentum = beta momentum + (1 - beta) g; direction = beta momentum + (1 - beta) g.
    Writes the sums of direction^2 over each block of NORM_BLOCK elements to block_sums.
    """

    def body(member: Int) {imm}:
        @always_inline
        def element[width: Int](i: Int) {imm} -> SIMD[F32, width]:
            var g = grads.load[width](i) * grad_scale
            # As in AdamW, not for the compiler to choose.
            var m = momentum.load[width](i).fma(beta, g * (1 - beta))
            momentum.store(i, m)
            var ahead = m.fma(beta, g * (1 - beta))
            direction.store(i, ahead)
            return ahead * ahead

        var first, last = share(num_norm_blocks(grads.size), team.size, member)
        for block in range(first, last):
            var lo = block * NORM_BLOCK
            var hi = min(lo + NORM_BLOCK, grads.size)
            var full = lo + (hi - lo) // W * W
            var squares = SIMD[F32, W](0)
            for i in range(lo, full, W):
                squares += element[W](i)
            var sum = squares.reduce_add()
            for i in range(full, hi):
                sum += element[1](i)
            block_sums[block] = sum

    team.run(body, "muon_momentum", bytes=16 * grads.size)


@fieldwise_init
struct MuonScratch[dtype: DType](TrivialRegisterPassable):
    """Room for one matrix and its products."""

    var x: Tensor[Self.dtype]
    """As large as the matrix."""
    var y: Tensor[Self.dtype]
    """As large as the matrix."""
    var gram: Tensor[Self.dtype]
    """The square of the shorter side."""
    var square: Tensor[Self.dtype]
    """The square of the shorter side."""
    var gemm_workspace: Tensor[F32]


def orthogonalize[
    dtype: DType, //
](
    team: Team,
    s: MuonScratch[dtype],
    direction: Tensor[F32],
    block_sums: Tensor[F32],
    rows: Int,
    columns: Int,
) -> Tensor[dtype]:
    """Makes the singular values of a matrix nearly 1.

    X = direction / |direction|, then five times, with A = X X^T (X^T X if that is smaller):
    X = 3.4445 X - 4.7750 A X + 2.0315 A A X. direction (rows,columns), with its blocks' sums of squares.

    Returns:
        X, in the scratch.
    """
    var x = s.x.slice(0, rows * columns)
    var y = s.y.slice(0, rows * columns)
    # Every member finds the same; without a direction there is no step.
    var factor = 1 / (norm_of_blocks(block_sums) + 1e-7)

    def scaled(member: Int) {imm}:
        var lo, hi = share(direction.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            x.store(i, round_to[dtype](direction.load[W](i) * factor))
        for i in range(full, hi):
            x[i] = round_to[dtype](direction[i] * factor)

    team.run(scaled, "muon_scale", bytes=8 * direction.size)
    var n = min(rows, columns)
    var gram = s.gram.slice(0, n * n)
    var square = s.square.slice(0, n * n)
    for _ in range(ITERATIONS):
        var view = row_major(x, columns)
        var wide = rows <= columns
        var narrow = view if wide else view.transposed()
        _gram(team, s.gemm_workspace, n, max(rows, columns), narrow, gram)
        _polynomial(team, s.gemm_workspace, n, gram, square)
        var b = row_major(square, n)
        # X = a X + B X, or a X + X B.
        var added = _Sum[dtype](1, _A, x, columns)
        gemm(
            team,
            s.gemm_workspace,
            rows,
            columns,
            n,
            b if wide else view,
            view if wide else b,
            y,
            columns,
            added,
        )
        swap(x, y)
    return x


def muon_step[
    dtype: DType, rounded_dtype: DType, //
](
    team: Team,
    params: Tensor[F32],
    rounded: Tensor[rounded_dtype],
    direction: Tensor[dtype],
    learning_rate: Float32,
    scale: Float32,
    weight_decay: Float32,
):
    """Takes the step: params -= learning_rate * (scale * direction + weight_decay * params); rounded follows."""

    def body(member: Int) {imm}:
        @always_inline
        def element[width: Int](i: Int) {imm}:
            var p = params.load[width](i)
            p -= learning_rate * (scale * direction.load[width](i).cast[F32]() + weight_decay * p)
            params.store(i, p)
            comptime if rounded_dtype != F32:
                rounded.store(i, round_to[rounded_dtype](p))

        var lo, hi = share(params.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            element[W](i)
        for i in range(full, hi):
            element[1](i)

    team.run(body, "muon_step", bytes=12 * params.size)


@fieldwise_init
struct _Sum[dtype: DType](Epilogue):
    """Adds a matrix: of_sum * sum + of_other * other."""

    comptime NAME: StaticString = "gemm + matrix"

    var of_sum: Float32
    var of_other: Float32
    var other: Tensor[Self.dtype]
    """In rows of N."""
    var N: Int

    @always_inline
    def apply[width: Int](self, row: Int, col: Int, sum: SIMD[F32, width]) -> SIMD[F32, width]:
        """Returns of_sum * sum + of_other * other."""
        return self.of_sum * sum + self.of_other * self.other.load[width](row * self.N + col).cast[F32]()

    def reads(self) -> CacheLines:
        """Returns the matrix."""
        return CacheLines(self.other.ptr, self.N)


def _gram[dtype: DType, //](team: Team, workspace: Tensor[F32], n: Int, K: Int, x: Matrix[dtype], c: Tensor[dtype]):
    """Computes C = X X^T. x (n,K), c (n,n). From some size on the upper part, and then its mirror."""
    var stripe = _stripe(n)
    for row in range(0, n, stripe):
        var corner = _from(c, row * n + row)
        var across = x.transposed().at(0, row)
        gemm(team, workspace, min(stripe, n - row), n - row, K, x.at(row, 0), across, corner, n, Plain())
    _mirror(team, c, n, stripe)


def _polynomial[dtype: DType, //](team: Team, workspace: Tensor[F32], n: Int, gram: Tensor[dtype], c: Tensor[dtype]):
    """Computes C = -4.7750 A + 2.0315 A A of a symmetric A (n,n), likewise."""
    var stripe = _stripe(n)
    var a = row_major(gram, n)
    for row in range(0, n, stripe):
        var corner = _from(c, row * n + row)
        var added = _Sum[dtype](_C, _B, _from(gram, row * n + row), n)
        gemm(team, workspace, min(stripe, n - row), n - row, n, a.at(row, 0), a.at(0, row), corner, n, added)
    _mirror(team, c, n, stripe)


def _stripe(n: Int) -> Int:
    """How many rows of a symmetric product are computed at a time: all, where halves are not worth it."""
    return n if n < _SYMMETRIC_FROM else (n + _STRIPES * _TILE - 1) // (_STRIPES * _TILE) * _TILE


def _from[dtype: DType, //](tensor: Tensor[dtype], start: Int) -> Tensor[dtype]:
    return tensor.slice(start, tensor.size - start)


def _mirror[dtype: DType](team: Team, c: Tensor[dtype], n: Int, stripe: Int):
    """Copies what lies right of each stripe's own columns to below them, tile by tile."""
    if stripe == n:
        return
    var tiles = (n + _TILE - 1) // _TILE

    def body(member: Int) {imm}:
        var first, last = share(tiles, team.size, member)
        for tile in range(first, last):
            var top = tile * _TILE
            var bottom = min(top + _TILE, n)
            # The stripe that a row is in was computed from its own first column on.
            var known = top // stripe * stripe
            for left in range(0, known, _TILE):
                for i in range(top, bottom):
                    for j in range(left, left + _TILE):
                        c[i * n + j] = c[j * n + i]

    team.run(body, "muon_mirror", bytes=n * n * 4)
