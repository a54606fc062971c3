"""Softmax cross entropy over the vocabulary, with its gradient in place of the logits."""

from std.math import log
from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.simd.rounding import round_to
from llm.cpu.simd.vector_math import exp
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


def cross_entropy_forward(
    team: Team,
    losses: Tensor[F32],
    logits: Tensor[F32],
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
            losses[row] = log(_sum_exp(logits_row, largest)) + (largest - logits_row[Int(targets[row])])

    team.run(body, "cross_entropy_forward", bytes=size_of[Float32]() * rows * V)


def cross_entropy_forward_backward[
    dtype: DType, //
](
    team: Team,
    losses: Tensor[F32],
    dlogits: Tensor[dtype],
    logits: Tensor[F32],
    targets: Tensor[DType.int32],
    rows: Int,
    V: Int,
    stride: Int,
    dloss: Float32,
):
    """Computes the losses and dlogits = dloss * (softmax(logits) - onehot(target)), in the memory of the logits.

    `dlogits` views the logits' memory; each row of it begins where the row of logits does, which is lost. `dloss` is
    the weight of each position in the mean: 1 / (B T accumulation steps).
    """
    comptime PER_LOGIT = size_of[Float32]() // size_of[dtype]()

    def body(member: Int) {imm}:
        var lo, hi = share(rows, team.size, member)
        for row in range(lo, hi):
            var logits_row = logits.slice(row * stride, V)
            var dlogits_row = dlogits.slice(row * stride * PER_LOGIT, V)
            var target = Int(targets[row])
            var largest = _max(logits_row)
            var target_logit = logits_row[target]
            var sum = _exp_in_place(logits_row, largest)
            losses[row] = log(sum) + (largest - target_logit)
            var target_grad = logits_row[target] * (dloss / sum) - dloss
            _scale_into(dlogits_row, logits_row, dloss / sum)
            dlogits_row[target] = round_to[dtype](target_grad)

    team.run(body, "cross_entropy_forward_backward", bytes=2 * size_of[Float32]() * rows * V)


@always_inline
def _max(x: Tensor[F32]) -> Float32:
    var largest = SIMD[F32, W](x[0])
    var full = x.size - x.size % W
    for i in range(0, full, W):
        largest = max(largest, x.load[W](i))
    var result = largest.reduce_max()
    for i in range(full, x.size):
        result = max(result, x[i])
    return result


@always_inline
def _sum_exp(x: Tensor[F32], shift: Float32) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        acc += exp(x.load[W](i) - shift)
    var sum = acc.reduce_add()
    for i in range(full, x.size):
        sum += exp(x[i] - shift)
    return sum


@always_inline
def _exp_in_place(x: Tensor[F32], shift: Float32) -> Float32:
    var acc = SIMD[F32, W](0)
    var full = x.size - x.size % W
    for i in range(0, full, W):
        var e = exp(x.load[W](i) - shift)
        acc += e
        x.store(i, e)
    var sum = acc.reduce_add()
    for i in range(full, x.size):
        var e = exp(x[i] - shift)
        sum += e
        x[i] = e
    return sum


@always_inline
def _scale_into[dtype: DType](target: Tensor[dtype], x: Tensor[F32], factor: Float32):
    # Front to back: a target that is no wider and begins at the same place never overtakes what is still to be read.
    var full = x.size - x.size % W
    for i in range(0, full, W):
        target.store(i, round_to[dtype](x.load[W](i) * factor))
    for i in range(full, x.size):
        target[i] = round_to[dtype](x[i] * factor)
