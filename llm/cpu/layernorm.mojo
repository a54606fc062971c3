"""Layer normalisation over the channels of each position."""

from std.math import sqrt
from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.simd.rounding import round_to
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime ROWS_AT_ONCE = 8
"""Rows that a sum over rows reads side by side: few enough for the processor to fetch each ahead."""
comptime EPSILON = Float32(1e-5)
"""Added to the variance, as in GPT-2."""


def layernorm_forward[
    dtype: DType
](
    team: Team,
    output: Tensor[dtype],
    mean: Tensor[F32],
    rstd: Tensor[F32],
    inp: Tensor[F32],
    weight: Tensor[F32],
    bias: Tensor[F32],
    rows: Int,
    C: Int,
):
    """Computes output = (inp - mean) * rstd * weight + bias and keeps mean and rstd = 1 / sqrt(variance + 1e-5).

    inp, output (rows,C), weight, bias (C), mean, rstd (rows).
    """

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            var inp_row = inp.slice(row * C, C)
            var mu = _sum(inp_row) / Float32(C)
            mean[row] = mu
            rstd[row] = 1 / sqrt(_sum_of_squares(inp_row, mu) / Float32(C) + EPSILON)
            _normalize(output.slice(row * C, C), inp_row, mu, rstd[row], weight, bias)

    team.run(body, "layernorm_forward", bytes=(4 + size_of[Scalar[dtype]]()) * rows * C)


def layernorm_recompute[
    dtype: DType
](
    team: Team,
    output: Tensor[dtype],
    inp: Tensor[F32],
    mean: Tensor[F32],
    rstd: Tensor[F32],
    weight: Tensor[F32],
    bias: Tensor[F32],
    rows: Int,
    C: Int,
):
    """Computes what `layernorm_forward` did, bit for bit, from the statistics that it kept."""

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            _normalize(output.slice(row * C, C), inp.slice(row * C, C), mean[row], rstd[row], weight, bias)

    team.run(body, "layernorm_recompute", bytes=(4 + size_of[Scalar[dtype]]()) * rows * C)


def layernorm_backward[
    dtype: DType, //, add_to_dinp: Bool = True
](
    team: Team,
    dinp: Tensor[F32],
    dinp_rounded: Tensor[dtype],
    dweight: Tensor[F32],
    dbias: Tensor[F32],
    dout: Tensor[F32],
    inp: Tensor[F32],
    mean: Tensor[F32],
    rstd: Tensor[F32],
    weight: Tensor[F32],
    rows: Int,
    C: Int,
    accumulate: Bool,
):
    """Computes the gradients of `layernorm_forward`.

    With norm = (inp - mean) * rstd and dnorm = dout * weight:
    dinp += rstd * (dnorm - mean_c(dnorm) - norm * mean_c(dnorm * norm)),
    dweight = sum over rows of dout * norm, dbias = sum over rows of dout.
    Inside a block dinp already holds the gradient that flows past it along the residual stream; without `add_to_dinp` it
    is set instead. dweight and dbias are set, or added to with `accumulate`. If dtype is not float32, dinp is also
    written to `dinp_rounded`, for the products that read it next.
    """

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            _backward_row[add_to_dinp](
                dinp.slice(row * C, C),
                dinp_rounded.slice(row * C, C),
                dout.slice(row * C, C),
                inp.slice(row * C, C),
                mean[row],
                rstd[row],
                weight,
            )
        # Sums over rows are split over channels: each channel is summed by one thread, in the order of the rows.
        lo, hi = share(C, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for first in range(0, rows, ROWS_AT_ONCE):
            var last = min(first + ROWS_AT_ONCE, rows)
            var add = accumulate or first > 0
            for c in range(lo, full, W):
                _add_rows[W](dweight, dbias, dout, inp, mean, rstd, c, first, last, C, add)
            for c in range(full, hi):
                _add_rows[1](dweight, dbias, dout, inp, mean, rstd, c, first, last, C, add)

    team.run(body, "layernorm_backward", bytes=4 * size_of[Float32]() * rows * C)


@always_inline
def _sum(x: Tensor[F32]) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        acc += x.load[W](i)
    var tail = Float32(0)
    for i in range(full, x.size):
        tail += x[i]
    return acc.reduce_add() + tail


@always_inline
def _sum_of_squares(x: Tensor[F32], center: Float32) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        var d = x.load[W](i) - center
        acc = d.fma(d, acc)
    var tail = Float32(0)
    for i in range(full, x.size):
        var d = x[i] - center
        tail = d.fma(d, tail)
    return acc.reduce_add() + tail


@always_inline
def _normalize[
    dtype: DType
](output: Tensor[dtype], inp: Tensor[F32], mean: Float32, rstd: Float32, weight: Tensor[F32], bias: Tensor[F32]):
    @always_inline
    def element[width: Int](c: Int) {imm}:
        var norm = (inp.load[width](c) - mean) * rstd
        output.store(c, round_to[dtype](norm.fma(weight.load[width](c), bias.load[width](c))))

    var full = inp.size - inp.size % W
    for c in range(0, full, W):
        element[W](c)
    for c in range(full, inp.size):
        element[1](c)


@always_inline
def _backward_row[
    dtype: DType, //, add_to_dinp: Bool
](
    dinp: Tensor[F32],
    dinp_rounded: Tensor[dtype],
    dout: Tensor[F32],
    inp: Tensor[F32],
    mean: Float32,
    rstd: Float32,
    weight: Tensor[F32],
):
    var C = inp.size
    var full = C - C % W
    var dnorm_sums = SIMD[F32, W](0)
    var dnorm_norm_sums = SIMD[F32, W](0)
    for c in range(0, full, W):
        var dnorm = dout.load[W](c) * weight.load[W](c)
        var norm = (inp.load[W](c) - mean) * rstd
        dnorm_sums += dnorm
        dnorm_norm_sums = dnorm.fma(norm, dnorm_norm_sums)
    var dnorm_mean = dnorm_sums.reduce_add()
    var dnorm_norm_mean = dnorm_norm_sums.reduce_add()
    for c in range(full, C):
        var dnorm = dout[c] * weight[c]
        dnorm_mean += dnorm
        dnorm_norm_mean += dnorm * (inp[c] - mean) * rstd
    dnorm_mean /= Float32(C)
    dnorm_norm_mean /= Float32(C)

    @always_inline
    def element[width: Int](c: Int) {imm}:
        var dnorm = dout.load[width](c) * weight.load[width](c)
        var norm = (inp.load[width](c) - mean) * rstd
        var grad = (dnorm - dnorm_mean - norm * dnorm_norm_mean) * rstd
        comptime if add_to_dinp:
            grad += dinp.load[width](c)
        dinp.store(c, grad)
        comptime if dtype != F32:
            dinp_rounded.store(c, round_to[dtype](grad))

    for c in range(0, full, W):
        element[W](c)
    for c in range(full, C):
        element[1](c)


@always_inline
def _add_rows[
    width: Int
](
    dweight: Tensor[F32],
    dbias: Tensor[F32],
    dout: Tensor[F32],
    inp: Tensor[F32],
    mean: Tensor[F32],
    rstd: Tensor[F32],
    c: Int,
    first: Int,
    last: Int,
    C: Int,
    add: Bool,
):
    var dw = dweight.load[width](c) if add else SIMD[F32, width](0)
    var db = dbias.load[width](c) if add else SIMD[F32, width](0)
    for row in range(first, last):
        var d = dout.load[width](row * C + c)
        var norm = (inp.load[width](row * C + c) - mean[row]) * rstd[row]
        dw = d.fma(norm, dw)
        db += d
    dweight.store(c, dw)
    dbias.store(c, db)
