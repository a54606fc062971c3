"""Causal self-attention in tiles with a running softmax: no T x T matrix is ever stored.

The algorithm is FlashAttention (Dao et al., 2022; backward as in FlashAttention-2, Dao 2023). `qkv` holds, for each
position, the queries of all heads, then the keys, then the values: (B,T,3C), head h at h * HS of each third.
"""

from std.math import iota, log, sqrt
from std.sys import simd_width_of
from std.utils.numerics import neg_inf

from llm.cpu.dropout import Dropout
from llm.cpu.parallel import Team
from llm.cpu.tile import BLOCK, STRIP, W, load_tile, load_tile_transposed, padded, store_tile, strip_product
from llm.cpu.vector_math import exp
from llm.memory import Tensor

comptime F32 = DType.float32


def attention_workspace_size(T: Int, HS: Int, threads: Int) -> Int:
    """Float32 scratch that `attention_forward` and `attention_backward` need: linear in T."""
    return threads * _member_workspace_size(T, HS)


def _member_workspace_size(T: Int, HS: Int) -> Int:
    var positions = (T + BLOCK - 1) // BLOCK * BLOCK
    return 8 * BLOCK * padded(HS) + 2 * BLOCK * BLOCK + positions * (padded(HS) + 1) + 2 * BLOCK


struct _Scratch:
    """Hands out one thread's scratch from front to back."""

    var rest: Tensor[F32]

    def __init__(out self, workspace: Tensor[F32], member: Int, T: Int, HS: Int):
        var size = _member_workspace_size(T, HS)
        self.rest = workspace.slice(member * size, size)

    def take(mut self, size: Int) -> Tensor[F32]:
        var taken = self.rest.slice(0, size)
        self.rest = self.rest.slice(size, self.rest.size - size)
        return taken


def attention_forward[
    dtype: DType
](
    team: Team,
    workspace: Tensor[F32],
    output: Tensor[dtype],
    logsumexp: Tensor[F32],
    qkv: Tensor[dtype],
    B: Int,
    T: Int,
    C: Int,
    NH: Int,
    dropout: Dropout = Dropout(),
):
    """Computes output = dropout(softmax(Q K^T / sqrt(HS), causal)) V for each head.

    Writes output (B,T,C) and logsumexp (B,NH,T), the logarithm of each softmax's denominator, for the backward pass.
    """
    var HS = C // NH
    var query_tiles = (T + BLOCK - 1) // BLOCK

    def body(member: Int) {imm}:
        # Later tiles look back further and cost more: dealing them out in turn keeps the shares even.
        for item in range(member, B * NH * query_tiles, team.size):
            var q_begin = item // (B * NH) * BLOCK
            var b, h = divmod(item % (B * NH), NH)
            var scratch = _Scratch(workspace, member, T, HS)
            _forward_tile(
                scratch,
                output.slice((b * T + q_begin) * C + h * HS, 0),
                logsumexp.slice((b * NH + h) * T + q_begin, 0),
                qkv.slice(b * T * 3 * C + h * HS, 0),
                q_begin,
                min(BLOCK, T - q_begin),
                C,
                HS,
                dropout,
                ((b * NH + h) * T + q_begin) * T,
                T,
            )

    team.run(body, "attention_forward", flops=2 * B * T * T * C)


def _forward_tile[
    dtype: DType
](
    mut scratch: _Scratch,
    output: Tensor[dtype],
    logsumexp: Tensor[F32],
    qkv: Tensor[dtype],
    q_begin: Int,
    rows: Int,
    C: Int,
    HS: Int,
    dropout: Dropout,
    place: Int,
    T: Int,
):
    """Computes one tile of queries against all keys up to it: output and logsumexp start at its first query.

    For dropout, the probability of its query i and of key j stands at place + i * T + j.
    """
    var HSp = padded(HS)
    var q = scratch.take(BLOCK * HSp)
    var k_transposed = scratch.take(HSp * BLOCK)
    var v = scratch.take(BLOCK * HSp)
    var acc = scratch.take(BLOCK * HSp)
    var scores = scratch.take(BLOCK * BLOCK)
    var row_max = scratch.take(BLOCK)
    var row_sum = scratch.take(BLOCK)
    acc.fill(0)
    row_max.fill(neg_inf[F32]())
    row_sum.fill(0)
    var scale = 1 / sqrt(Float32(HS))

    load_tile(q, qkv.slice(q_begin * 3 * C, 0), 3 * C, rows, HS)
    for k_begin in range(0, q_begin + 1, BLOCK):
        # Only the last tile of keys has the diagonal in it, and only it can be cut short by the end of the sequence.
        var on_diagonal = k_begin == q_begin
        var keys = rows if on_diagonal else BLOCK
        load_tile_transposed(k_transposed, qkv.slice(k_begin * 3 * C + C, 0), 3 * C, keys, HS)
        load_tile(v, qkv.slice(k_begin * 3 * C + 2 * C, 0), 3 * C, keys, HS)
        for r in range(0, rows, STRIP):
            var visible = min(r + STRIP, BLOCK) if on_diagonal else BLOCK
            var scores_r = scores.ptr.unsafe_offset(r * BLOCK)
            var q_r = q.ptr.unsafe_offset(r * HSp)
            strip_product[False](scores_r, BLOCK, q_r, HSp, 1, k_transposed.ptr, BLOCK, padded(visible), HS)
            for i in range(r, r + STRIP):
                var scores_i = scores.slice(i * BLOCK, padded(visible))
                var acc_i = acc.slice(i * HSp, HSp)
                if on_diagonal:
                    _softmax_row[masked=True](scores_i, acc_i, row_max, row_sum, i, i + 1, scale)
                else:
                    _softmax_row[masked=False](scores_i, acc_i, row_max, row_sum, i, BLOCK, scale)
                if dropout.is_on():
                    dropout.apply(scores_i, place + i * T + k_begin)
            strip_product[True](acc.ptr.unsafe_offset(r * HSp), HSp, scores_r, BLOCK, 1, v.ptr, HSp, HSp, visible)

    for i in range(rows):
        logsumexp[i] = row_max[i] + log(row_sum[i])
        var inverse = 1 / row_sum[i]
        for c in range(0, HSp, W):
            acc.store(i * HSp + c, acc.load[W](i * HSp + c) * inverse)
    store_tile(output, C, acc, rows, HS)


@always_inline
def _softmax_row[
    masked: Bool
](
    scores: Tensor[F32],
    acc: Tensor[F32],
    row_max: Tensor[F32],
    row_sum: Tensor[F32],
    i: Int,
    visible: Int,
    scale: Float32,
):
    """Replaces the scores of row i by e^(scale * score - max), or by 0 from `visible` on, and rescales what it had."""
    comptime MINUS_INFINITY = SIMD[F32, W](neg_inf[F32]())
    var largest = MINUS_INFINITY
    for j in range(0, scores.size, W):
        var s = scores.load[W](j) * scale
        comptime if masked:
            s = iota[DType.int32, W](Int32(j)).lt(Int32(visible)).select(s, MINUS_INFINITY)
            scores.store(j, s)
        largest = max(largest, s)
    var old_max = row_max[i]
    var new_max = max(old_max, largest.reduce_max())
    var sum = SIMD[F32, W](0)
    for j in range(0, scores.size, W):
        var p: SIMD[F32, W]
        comptime if masked:
            p = exp(scores.load[W](j) - new_max)
            p = iota[DType.int32, W](Int32(j)).lt(Int32(visible)).select(p, SIMD[F32, W](0))
        else:
            p = exp(scores.load[W](j) * scale - new_max)
        scores.store(j, p)
        sum += p
    if new_max != old_max:
        # The sums so far were taken relative to another maximum. (NaN differs from itself, and so comes here too.)
        var correction = exp(old_max - new_max)
        row_max[i] = new_max
        row_sum[i] *= correction
        for c in range(0, acc.size, W):
            acc.store(c, acc.load[W](c) * correction)
    row_sum[i] += sum.reduce_add()


def attention_backward[
    dtype: DType
](
    team: Team,
    workspace: Tensor[F32],
    dqkv: Tensor[dtype],
    doutput: Tensor[F32],
    qkv: Tensor[dtype],
    output: Tensor[dtype],
    logsumexp: Tensor[F32],
    B: Int,
    T: Int,
    C: Int,
    NH: Int,
    dropout: Dropout = Dropout(),
):
    """Computes dqkv (B,T,3C) from doutput (B,T,C) and what `attention_forward` read and wrote.

    The probabilities are computed again, tile by tile: P = e^(S - logsumexp), S = Q K^T / sqrt(HS). With
    delta = sum_c doutput * output: dV = P^T dO, dS = P * (dO V^T - delta) / sqrt(HS), dQ = dS K, dK = dS^T Q.
    With dropout, whose factors are computed again too, P^T and dO V^T are multiplied by them.
    One thread computes a whole head, so that every sum has one owner and one order.
    """
    var HS = C // NH

    def body(member: Int) {imm}:
        for item in range(member, B * NH, team.size):
            var b, h = divmod(item, NH)
            var scratch = _Scratch(workspace, member, T, HS)
            _backward_head(
                scratch,
                dqkv.slice(b * T * 3 * C + h * HS, 0),
                doutput.slice(b * T * C + h * HS, 0),
                qkv.slice(b * T * 3 * C + h * HS, 0),
                output.slice(b * T * C + h * HS, 0),
                logsumexp.slice(item * T, T),
                T,
                C,
                HS,
                dropout,
                item * T * T,
            )

    team.run(body, "attention_backward", flops=5 * B * T * T * C)


def _backward_head[
    dtype: DType
](
    mut scratch: _Scratch,
    dqkv: Tensor[dtype],
    doutput: Tensor[F32],
    qkv: Tensor[dtype],
    output: Tensor[dtype],
    logsumexp: Tensor[F32],
    T: Int,
    C: Int,
    HS: Int,
    dropout: Dropout,
    place: Int,
):
    """Computes the three gradients of one head; every view starts at its first channel, position 0.

    For dropout, the probability of query i and key j stands at place + i * T + j.
    """
    var HSp = padded(HS)
    var query_tiles = (T + BLOCK - 1) // BLOCK
    var q = scratch.take(BLOCK * HSp)
    var k = scratch.take(BLOCK * HSp)
    var k_transposed = scratch.take(HSp * BLOCK)
    var v_transposed = scratch.take(HSp * BLOCK)
    var do = scratch.take(BLOCK * HSp)
    var dk = scratch.take(BLOCK * HSp)
    var dv = scratch.take(BLOCK * HSp)
    var p = scratch.take(BLOCK * BLOCK)
    var ds = scratch.take(BLOCK * BLOCK)
    var dq = scratch.take(query_tiles * BLOCK * HSp)
    var delta = scratch.take(T)
    var scale = 1 / sqrt(Float32(HS))
    dq.fill(0)
    for t in range(T):
        delta[t] = _dot(doutput.slice(t * C, HS), output.slice(t * C, HS))

    for k_begin in range(0, T, BLOCK):
        var keys = min(BLOCK, T - k_begin)
        load_tile(k, qkv.slice(k_begin * 3 * C + C, 0), 3 * C, keys, HS)
        load_tile_transposed(k_transposed, qkv.slice(k_begin * 3 * C + C, 0), 3 * C, keys, HS)
        load_tile_transposed(v_transposed, qkv.slice(k_begin * 3 * C + 2 * C, 0), 3 * C, keys, HS)
        dk.fill(0)
        dv.fill(0)
        for q_begin in range(k_begin, T, BLOCK):
            var on_diagonal = k_begin == q_begin
            var rows = min(BLOCK, T - q_begin)
            load_tile(q, qkv.slice(q_begin * 3 * C, 0), 3 * C, rows, HS)
            load_tile(do, doutput.slice(q_begin * C, 0), C, rows, HS)
            for r in range(0, rows, STRIP):
                var visible = min(r + STRIP, BLOCK) if on_diagonal else BLOCK
                var p_r = p.ptr.unsafe_offset(r * BLOCK)
                var ds_r = ds.ptr.unsafe_offset(r * BLOCK)
                var q_r = q.ptr.unsafe_offset(r * HSp)
                var do_r = do.ptr.unsafe_offset(r * HSp)
                strip_product[False](p_r, BLOCK, q_r, HSp, 1, k_transposed.ptr, BLOCK, padded(visible), HS)
                strip_product[False](ds_r, BLOCK, do_r, HSp, 1, v_transposed.ptr, BLOCK, padded(visible), HS)
                for i in range(r, r + STRIP):
                    # Rows past the end of the sequence are padding: they see nothing and add nothing.
                    var seen = 0 if i >= rows else (i + 1 if on_diagonal else BLOCK)
                    var t = min(q_begin + i, T - 1)
                    var p_i = p.slice(i * BLOCK, BLOCK)
                    var ds_i = ds.slice(i * BLOCK, BLOCK)
                    if dropout.is_on():
                        dropout.apply(ds_i, place + t * T + k_begin)
                    _softmax_backward_row(p_i, ds_i, logsumexp[t], delta[t], seen, scale)
                    if dropout.is_on():
                        dropout.apply(p_i, place + t * T + k_begin)
                var dq_r = dq.ptr.unsafe_offset((q_begin + r) * HSp)
                strip_product[True](dq_r, HSp, ds_r, BLOCK, 1, k.ptr, HSp, HSp, visible)
            var tile_rows = (rows + STRIP - 1) // STRIP * STRIP
            for r in range(0, keys, STRIP):
                # Keys r .. r + 7 are seen from query r on.
                var first = r if on_diagonal else 0
                var p_r = p.ptr.unsafe_offset(first * BLOCK + r)
                var ds_r = ds.ptr.unsafe_offset(first * BLOCK + r)
                var do_r = do.ptr.unsafe_offset(first * HSp)
                var q_r = q.ptr.unsafe_offset(first * HSp)
                var count = tile_rows - first
                strip_product[True](dv.ptr.unsafe_offset(r * HSp), HSp, p_r, 1, BLOCK, do_r, HSp, HSp, count)
                strip_product[True](dk.ptr.unsafe_offset(r * HSp), HSp, ds_r, 1, BLOCK, q_r, HSp, HSp, count)
        store_tile(dqkv.slice(k_begin * 3 * C + C, 0), 3 * C, dk, keys, HS)
        store_tile(dqkv.slice(k_begin * 3 * C + 2 * C, 0), 3 * C, dv, keys, HS)

    for q_begin in range(0, T, BLOCK):
        var rows = min(BLOCK, T - q_begin)
        store_tile(dqkv.slice(q_begin * 3 * C, 0), 3 * C, dq.slice(q_begin * HSp, BLOCK * HSp), rows, HS)


@always_inline
def _softmax_backward_row(
    p: Tensor[F32], ds: Tensor[F32], logsumexp: Float32, delta: Float32, visible: Int, scale: Float32
):
    """Turns scores into probabilities p and their gradients into ds; both are 0 beyond the first `visible`."""
    for j in range(0, BLOCK, W):
        var mask = iota[DType.int32, W](Int32(j)).lt(Int32(visible))
        var probability = mask.select(exp(p.load[W](j) * scale - logsumexp), SIMD[F32, W](0))
        p.store(j, probability)
        var grad = probability * (ds.load[W](j) - delta) * scale
        ds.store(j, mask.select(grad, SIMD[F32, W](0)))


@always_inline
def _dot[dtype: DType](x: Tensor[F32], y: Tensor[dtype]) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        acc = x.load[W](i).cast[F32]().fma(y.load[W](i).cast[F32](), acc)
    var sum = acc.reduce_add()
    for i in range(full, x.size):
        sum += x[i].cast[F32]() * y[i].cast[F32]()
    return sum
