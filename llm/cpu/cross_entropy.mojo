"""Softmax cross entropy over the vocabulary, with its gradient in place of the logits."""

from std.math import log
from std.sys import simd_width_of, size_of

from llm.cpu.parallel import Team, share
from llm.cpu.vector_math import exp
from llm.memory import Tensor

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


def cross_entropy_forward[
    dtype: DType
](
    team: Team,
    losses: Tensor[F32],
    logits: Tensor[dtype],
    targets: Tensor[DType.int32],
    rows: Int,
    V: Int,
    stride: Int,
):
    """Computes losses[row] = log(sum_v e^logits[row,v]) - logits[row,target]. Logits (rows,V) lie `stride` apart."""

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            var logits_row = logits.slice(row * stride, V)
            var largest = _max(logits_row)
            losses[row] = log(_sum_exp(logits_row, largest)) + (largest - logits_row[Int(targets[row])].cast[F32]())

    team.run(body, "cross_entropy_forward", bytes=size_of[Scalar[dtype]]() * rows * V)


def cross_entropy_forward_backward[
    dtype: DType
](
    team: Team,
    losses: Tensor[F32],
    logits: Tensor[dtype],
    targets: Tensor[DType.int32],
    rows: Int,
    V: Int,
    stride: Int,
    dloss: Float32,
):
    """Computes the losses and replaces the logits by their gradient dloss * (softmax(logits) - onehot(target)).

    `dloss` is the weight of each position in the mean: 1 / (B T accumulation steps).
    """

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            var logits_row = logits.slice(row * stride, V)
            var target = Int(targets[row])
            var largest = _max(logits_row)
            var target_logit = logits_row[target].cast[F32]()
            var sum = _exp_in_place(logits_row, largest)
            losses[row] = log(sum) + (largest - target_logit)
            _scale(logits_row, dloss / sum)
            logits_row[target] = (logits_row[target].cast[F32]() - dloss).cast[dtype]()

    team.run(body, "cross_entropy_forward_backward", bytes=2 * size_of[Scalar[dtype]]() * rows * V)


@always_inline
def _max[dtype: DType](x: Tensor[dtype]) -> Float32:
    var largest = SIMD[F32, W](x[0].cast[F32]())
    var full = x.size - x.size % W
    for i in range(0, full, W):
        largest = max(largest, x.load[W](i).cast[F32]())
    var result = largest.reduce_max()
    for i in range(full, x.size):
        result = max(result, x[i].cast[F32]())
    return result


@always_inline
def _sum_exp[dtype: DType](x: Tensor[dtype], shift: Float32) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        acc += exp(x.load[W](i).cast[F32]() - shift)
    var sum = acc.reduce_add()
    for i in range(full, x.size):
        sum += exp(x[i].cast[F32]() - shift)
    return sum


@always_inline
def _exp_in_place[dtype: DType](x: Tensor[dtype], shift: Float32) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        var e = exp(x.load[W](i).cast[F32]() - shift)
        acc += e
        x.store(i, e.cast[dtype]())
    var sum = acc.reduce_add()
    for i in range(full, x.size):
        var e = exp(x[i].cast[F32]() - shift)
        sum += e
        x[i] = e.cast[dtype]()
    return sum


@always_inline
def _scale[dtype: DType](x: Tensor[dtype], factor: Float32):
    var full = x.size - x.size % W
    for i in range(0, full, W):
        x.store(i, (x.load[W](i).cast[F32]() * factor).cast[dtype]())
    for i in range(full, x.size):
        x[i] = (x[i].cast[F32]() * factor).cast[dtype]()
