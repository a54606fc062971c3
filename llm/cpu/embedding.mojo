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
    output: Tensor[dtype],
    tokens: Tensor[DType.int32],
    wte: Tensor[dtype],
    wpe: Tensor[dtype],
    B: Int,
    T: Int,
    C: Int,
    first_position: Int = 0,
):
    """Computes out[b,t] = wte[tokens[b,t]] + wpe[first_position + t].

    tokens (B,T) within the vocabulary, wte (Vp,C), wpe (maxT,C), output (B,T,C).
    """

    def body(member: Int) {imm}:
        var lo, hi = share(B * T, team.size, member)
        for row in range(lo, hi):
            var token = wte.slice(Int(tokens[row]) * C, C)
            var position = wpe.slice((first_position + row % T) * C, C)
            var out_bt = output.slice(row * C, C)
            var full = C - C % W
            for c in range(0, full, W):
                out_bt.store(c, token.load[W](c) + position.load[W](c))
            for c in range(full, C):
                out_bt[c] = token[c] + position[c]

    team.run(body, "embedding_forward", bytes=3 * size_of[Scalar[dtype]]() * B * T * C)


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
