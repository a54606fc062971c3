"""Causal self-attention in tiles with a running softmax: no T x T matrix is ever stored.

The algorithm is FlashAttention (Dao et al., 2022; backward as in FlashAttention-2, Dao 2023). `qkv` holds, for each
position, the queries of all heads, then the keys, then the values: (B,T,3C), head h at h * HS of each third.
"""

from std.math import iota, log, sqrt
from std.sys import simd_width_of
from std.utils.numerics import neg_inf

from llm.base.memory import Tensor
from llm.cpu.dropout import Dropout
from llm.cpu.simd.tile import (
    BLOCK,
    STRIP,
    W,
    load_tile,
    load_tile_transposed,
    padded,
    prefetch_tile,
    store_tile,
    strip_product,
)
from llm.cpu.simd.transpose import transpose_block
from llm.cpu.simd.vector_math import exp, exp2
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime LOG2_E = Float32(1.4426950408889634)
comptime GROUP = 2 * W
"""Queries that the forward pass keeps side by side in vectors."""
comptime MOST_QUERIES = 8 * BLOCK
"""Queries for which the forward pass loads a tile of keys and values once, if there are enough for all threads."""
comptime TILES_PER_THREAD = 4
"""Tiles of queries that each thread should have at least, or else they are cut smaller."""


def attention_workspace_size(T: Int, HS: Int, threads: Int) -> Int:
    """Float32 scratch that `attention_forward` and `attention_backward` need: linear in T."""
    return threads * _member_workspace_size(T, HS)


def _member_workspace_size(T: Int, HS: Int) -> Int:
    var positions = (T + BLOCK - 1) // BLOCK * BLOCK
    var queries = min(positions, MOST_QUERIES)
    var forward = 2 * queries * (padded(HS) + 1) + 2 * BLOCK * padded(HS) + BLOCK * GROUP
    var backward = 7 * BLOCK * padded(HS) + 2 * BLOCK * BLOCK + positions * (padded(HS) + 1)
    return max(forward, backward)


struct _TileScratch:
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
    var queries = min((T + BLOCK - 1) // BLOCK * BLOCK, MOST_QUERIES)
    while queries > BLOCK and B * NH * ((T + queries - 1) // queries) < TILES_PER_THREAD * team.size:
        queries = (queries // 2 + BLOCK - 1) // BLOCK * BLOCK
    var items = B * NH * ((T + queries - 1) // queries)

    def body(member: Int) {imm}:
        # Later tiles look back further and cost more: dealing them out in turn keeps the shares even.
        for item in range(member, items, team.size):
            var q_begin = item // (B * NH) * queries
            var b, h = divmod(item % (B * NH), NH)
            _prefetch_start(qkv, min(item + team.size, items - 1), queries, B, T, C, NH)
            var scratch = _TileScratch(workspace, member, T, HS)
            _forward_tile(
                scratch,
                output.slice((b * T + q_begin) * C + h * HS, 0),
                logsumexp.slice((b * NH + h) * T + q_begin, 0),
                qkv.slice(b * T * 3 * C + h * HS, 0),
                q_begin,
                min(queries, T - q_begin),
                C,
                HS,
                dropout,
                ((b * NH + h) * T + q_begin) * T,
                T,
            )

    team.run(body, "attention_forward", flops=2 * B * T * T * C)


def _prefetch_start[dtype: DType](qkv: Tensor[dtype], item: Int, queries: Int, B: Int, T: Int, C: Int, NH: Int):
    """Prefetches the first keys, values and queries of a tile of queries."""
    var HS = C // NH
    var b, h = divmod(item % (B * NH), NH)
    var q_begin = item // (B * NH) * queries
    var head = qkv.slice(b * T * 3 * C + h * HS, 0)
    prefetch_tile(head.slice(q_begin * 3 * C, 0), 3 * C, min(BLOCK, T - q_begin), HS)
    prefetch_tile(head.slice(C, 0), 3 * C, min(BLOCK, T), HS)
    prefetch_tile(head.slice(2 * C, 0), 3 * C, min(BLOCK, T), HS)


def _forward_tile[
    dtype: DType
](
    mut scratch: _TileScratch,
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

    Queries lie side by side in the lanes of vectors, GROUP at a time: so their maxima and sums run down the keys, never
    across lanes, and keys and values are used as they lie, one element for all lanes.
    For dropout, the probability of its query i and of key j stands at place + i * T + j.
    """
    var HSp = padded(HS)
    var lanes = (rows + GROUP - 1) // GROUP * GROUP
    var q_transposed = scratch.take(lanes * HSp)
    var acc = scratch.take(lanes * HSp)
    var k = scratch.take(BLOCK * HSp)
    var v = scratch.take(BLOCK * HSp)
    var scores = scratch.take(BLOCK * GROUP)
    var row_max = scratch.take(lanes)
    var row_sum = scratch.take(lanes)
    acc.fill(0)
    row_max.fill(neg_inf[F32]())
    row_sum.fill(0)
    var scale = LOG2_E / sqrt(Float32(HS))

    for g in range(0, rows, GROUP):
        var queries = qkv.slice((q_begin + g) * 3 * C, 0)
        load_tile_transposed(q_transposed.slice(g * HSp, 0), GROUP, queries, 3 * C, min(GROUP, rows - g), HS)
    for k_begin in range(0, q_begin + rows, BLOCK):
        var keys = min(BLOCK, q_begin + rows - k_begin)
        load_tile(k, qkv.slice(k_begin * 3 * C + C, 0), 3 * C, keys, HS)
        load_tile(v, qkv.slice(k_begin * 3 * C + 2 * C, 0), 3 * C, keys, HS)
        # Positions lie too far apart for the processor to guess which come next.
        var ahead = qkv.slice((k_begin + BLOCK) * 3 * C, 0)
        var ahead_rows = min(BLOCK, q_begin + rows - k_begin - BLOCK)
        var rows_at_once = (BLOCK * GROUP + lanes - 1) // lanes
        for g in range(0, rows, GROUP):
            var first = g // GROUP * rows_at_once
            var ahead_now = min(rows_at_once, ahead_rows - first)
            prefetch_tile(ahead.slice(first * 3 * C + C, 0), 3 * C, ahead_now, HS)
            prefetch_tile(ahead.slice(first * 3 * C + 2 * C, 0), 3 * C, ahead_now, HS)
            # The query of the first lane sees the keys up to this one of the tile, and each further lane one more.
            var last_key = q_begin + g - k_begin
            var visible = min(last_key + min(GROUP, rows - g), keys)
            if visible <= 0:
                continue
            # Whole strips: the keys beyond are later than all queries, which do not see them.
            visible = (visible + STRIP - 1) // STRIP * STRIP
            var q_g = q_transposed.ptr.unsafe_offset(g * HSp)
            var acc_g = acc.slice(g * HSp, GROUP * HSp)
            for j in range(0, visible, STRIP):
                var scores_j = scores.ptr.unsafe_offset(j * GROUP)
                strip_product[False](scores_j, GROUP, k.ptr.unsafe_offset(j * HSp), HSp, 1, q_g, GROUP, GROUP, HS)
            var max_g = row_max.slice(g, GROUP)
            var sum_g = row_sum.slice(g, GROUP)
            if last_key < visible - 1:
                _softmax_columns[masked=True](scores, acc_g, max_g, sum_g, visible, last_key, scale)
            else:
                _softmax_columns[masked=False](scores, acc_g, max_g, sum_g, visible, last_key, scale)
            if dropout.is_on():
                for j in range(visible):
                    var factors = dropout.factors[GROUP](place + g * T + k_begin + j, stride=T)
                    scores.store(j * GROUP, scores.load[GROUP](j * GROUP) * factors)
            for c in range(0, HSp, STRIP):
                var acc_c = acc_g.ptr.unsafe_offset(c * GROUP)
                strip_product[True](acc_c, GROUP, v.ptr.unsafe_offset(c), 1, HSp, scores.ptr, GROUP, GROUP, visible)

    for i in range(rows):
        logsumexp[i] = row_max[i] / LOG2_E + log(row_sum[i])
    for g in range(0, rows, GROUP):
        var acc_g = acc.slice(g * HSp, GROUP * HSp)
        var inverse = 1 / row_sum.load[GROUP](g)
        for i in range(0, GROUP * HSp, GROUP):
            acc_g.store(i, acc_g.load[GROUP](i) * inverse)
        # The keys' tile is free now.
        for lane in range(0, GROUP, W):
            for c in range(0, HSp, W):
                var block = acc_g.ptr.unsafe_offset(c * GROUP + lane)
                transpose_block[F32](k.ptr.unsafe_offset(lane * HSp + c), HSp, block, GROUP)
        store_tile(output.slice(g * C, 0), C, k, min(GROUP, rows - g), HS)


@always_inline
def _softmax_columns[
    masked: Bool
](
    scores: Tensor[F32],
    acc: Tensor[F32],
    row_max: Tensor[F32],
    row_sum: Tensor[F32],
    visible: Int,
    last_key: Int,
    scale: Float32,
):
    """Replaces the scores of GROUP queries by 2^(scale * score - max), and rescales what they had if a maximum has grown.

    scores (visible,GROUP) with `visible` a multiple of STRIP, acc (HSp,GROUP). With `masked`, lane i does not see the
    keys after last_key + i; its scores become 0.
    """
    comptime Vec = SIMD[F32, GROUP]
    comptime CHAINS = 4
    var lane = iota[DType.int32, GROUP](Int32(last_key))
    # Side by side, for one maximum has to wait for the last.
    var largest = Array[Vec, CHAINS](fill=Vec(neg_inf[F32]()))
    for j in range(0, visible, CHAINS):
        comptime for i in range(CHAINS):
            var s = scores.load[GROUP]((j + i) * GROUP)
            comptime if masked:
                s = lane.ge(Int32(j + i)).select(s, Vec(neg_inf[F32]()))
            largest[i] = max(largest[i], s)
    var old_max = row_max.load[GROUP](0)
    var new_max = max(max(largest[0], largest[1]), max(largest[2], largest[3]))
    new_max = max(old_max, new_max * scale)
    var sum = Vec(0)
    for j in range(visible):
        var p = exp2(scores.load[GROUP](j * GROUP) * scale - new_max)
        comptime if masked:
            p = lane.ge(Int32(j)).select(p, Vec(0))
        scores.store(j * GROUP, p)
        sum += p
    if new_max.ne(old_max).reduce_or():
        # The sums so far were taken relative to another maximum. (NaN differs from itself, and so comes here too.)
        var correction = exp2(old_max - new_max)
        row_max.store(0, new_max)
        sum = row_sum.load[GROUP](0).fma(correction, sum)
        for i in range(0, acc.size, GROUP):
            acc.store(i, acc.load[GROUP](i) * correction)
    else:
        sum += row_sum.load[GROUP](0)
    row_sum.store(0, sum)


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
            var scratch = _TileScratch(workspace, member, T, HS)
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
    mut scratch: _TileScratch,
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
        load_tile_transposed(k_transposed, BLOCK, qkv.slice(k_begin * 3 * C + C, 0), 3 * C, keys, HS)
        load_tile_transposed(v_transposed, BLOCK, qkv.slice(k_begin * 3 * C + 2 * C, 0), 3 * C, keys, HS)
        dk.fill(0)
        dv.fill(0)
        for q_begin in range(k_begin, T, BLOCK):
            var on_diagonal = k_begin == q_begin
            var rows = min(BLOCK, T - q_begin)
            load_tile(q, qkv.slice(q_begin * 3 * C, 0), 3 * C, rows, HS)
            load_tile(do, doutput.slice(q_begin * C, 0), C, rows, HS)
            var next_q = q_begin + BLOCK if q_begin + BLOCK < T else k_begin + BLOCK
            for r in range(0, rows, STRIP):
                var visible = min(r + STRIP, BLOCK) if on_diagonal else BLOCK
                var ahead = min(STRIP, T - next_q - r)
                prefetch_tile(qkv.slice((next_q + r) * 3 * C, 0), 3 * C, ahead, HS)
                prefetch_tile(doutput.slice((next_q + r) * C, 0), C, ahead, HS)
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
                    if seen == BLOCK:
                        _softmax_backward_row[masked=False](p_i, ds_i, logsumexp[t], delta[t], seen, scale)
                    else:
                        _softmax_backward_row[masked=True](p_i, ds_i, logsumexp[t], delta[t], seen, scale)
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
def _softmax_backward_row[
    masked: Bool
](p: Tensor[F32], ds: Tensor[F32], logsumexp: Float32, delta: Float32, visible: Int, scale: Float32):
    """Turns scores into probabilities p and their gradients into ds; with `masked`, both are 0 from `visible` on."""
    comptime Vec = SIMD[F32, W]
    comptime for j in range(0, BLOCK, W):
        var probability = exp2(p.load[W](j) * (LOG2_E * scale) - LOG2_E * logsumexp)
        var grad = probability * (ds.load[W](j) - delta) * scale
        comptime if masked:
            var mask = iota[DType.int32, W](Int32(j)).lt(Int32(visible))
            probability = mask.select(probability, Vec(0))
            grad = mask.select(grad, Vec(0))
        p.store(j, probability)
        ds.store(j, grad)


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


def attention_probabilities[
    dtype: DType
](team: Team, output: Tensor[F32], qkv: Tensor[dtype], logsumexp: Tensor[F32], T: Int, C: Int, NH: Int):
    """Computes softmax(Q K^T / sqrt(HS), causal) of one text, what `attention_forward` never stores: for looking inside.

    qkv (T,3C) and logsumexp (NH,T) as `attention_forward` read and wrote them, output (NH,T,T), zero above the diagonal.
    """
    var HS = C // NH
    var scale = 1 / sqrt(Float32(HS))

    def body(member: Int) {imm}:
        var lo, hi = share(NH * T, team.size, member)
        for item in range(lo, hi):
            var h, i = divmod(item, T)
            var query = qkv.slice(i * 3 * C + h * HS, HS)
            for j in range(T):
                var probability = Float32(0)
                if j <= i:
                    var key = qkv.slice(j * 3 * C + C + h * HS, HS)
                    var score = Float32(0)
                    for c in range(HS):
                        score = query[c].cast[F32]().fma(key[c].cast[F32](), score)
                    probability = exp(score * scale - logsumexp[item])
                output[item * T + j] = probability

    team.run(body, "attention_probabilities")
