"""Token and position embedding."""

from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


def embedding_forward[
    dtype: DType
](
    team: Team,
    output: Tensor[F32],
    tokens: Tensor[DType.int32],
    positions: Tensor[DType.int32],
    wte: Tensor[dtype],
    wpe: Tensor[dtype],
    rows: Int,
    C: Int,
):
    """Computes output[row] = wte[tokens[row]] + wpe[positions[row % P]], P being the number of positions.

    tokens (rows) within the vocabulary, positions (P) below maxT, wte (Vp,C), wpe (maxT,C), output (rows,C).
    """

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            var token = wte.slice(Int(tokens[row]) * C, C)
            var position = wpe.slice(Int(positions[row % positions.size]) * C, C)
            var out_row = output.slice(row * C, C)
            var full = C - C % W
            for c in range(0, full, W):
                out_row.store(c, token.load[W](c).cast[F32]() + position.load[W](c).cast[F32]())
            for c in range(full, C):
                out_row[c] = token[c].cast[F32]() + position[c].cast[F32]()

    team.run(body, "embedding_forward", bytes=(4 + 2 * size_of[Scalar[dtype]]()) * rows * C)


def embedding_backward[
    dtype: DType
](
    team: Team,
    dwte: Tensor[dtype],
    dwpe: Tensor[dtype],
    dout: Tensor[dtype],
    tokens: Tensor[DType.int32],
    B: Int,
    T: Int,
    C: Int,
    accumulate: Bool,
):
    """Adds dout to the rows of dwte that its tokens chose, and sets dwpe[t] = sum over b of dout[b,t].

    dwte is also the LM head's gradient: always added to. dwpe (maxT,C) is added to with `accumulate`; without, rows from
    T on become zero. dout (B,T,C). One token can stand at many positions, so the work is split over channels.
    """

    def body(member: Int) {imm}:
        var lo, hi = share(C, team.size, member, W)
        for row in range(B * T):
            _add(dwte, Int(tokens[row]) * C + lo, dout, row * C + lo, hi - lo)
        if not accumulate:
            for t in range(dwpe.size // C):
                dwpe.slice(t * C + lo, hi - lo).fill(0)
        for row in range(B * T):
            _add(dwpe, row % T * C + lo, dout, row * C + lo, hi - lo)

    team.run(body, "embedding_backward", bytes=6 * size_of[Scalar[dtype]]() * B * T * C)


@always_inline
def _add[dtype: DType](sum: Tensor[dtype], sum_start: Int, x: Tensor[dtype], x_start: Int, n: Int):
    var full = n - n % W
    for i in range(0, full, W):
        sum.store(sum_start + i, sum.load[W](sum_start + i) + x.load[W](x_start + i))
    for i in range(full, n):
        sum[sum_start + i] += x[x_start + i]
