"""AdamW: one pass over parameters, gradients and both moments."""

from std.math import sqrt
from std.sys import simd_width_of

from llm.cpu.parallel import Team, share
from llm.memory import Tensor

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


@fieldwise_init
struct AdamW(Copyable, ImplicitlyCopyable, Movable):
    """Settings of the optimizer (Loshchilov and Hutter, 2019)."""

    var learning_rate: Float32
    var beta1: Float32
    var beta2: Float32
    var eps: Float32
    var weight_decay: Float32


def adamw_update[
    dtype: DType
](
    team: Team,
    params: Tensor[dtype],
    grads: Tensor[dtype],
    m: Tensor[F32],
    v: Tensor[F32],
    settings: AdamW,
    step: Int,
    grad_scale: Float32 = 1,
):
    """Takes one step, in place, for one tensor; `step` counts from 1.

    g = grad_scale * grads; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    params -= lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * params).
    """
    var beta1 = settings.beta1
    var beta2 = settings.beta2
    # Powers in float64: 1 - 0.999^1 has only four digits left in float32.
    var m_scale = (1 / (1 - beta1.cast[DType.float64]() ** step)).cast[F32]()
    var v_scale = (1 / (1 - beta2.cast[DType.float64]() ** step)).cast[F32]()

    def body(member: Int) {imm}:
        @always_inline
        def element[width: Int](i: Int) {imm}:
            var g = grads.load[width](i).cast[F32]() * grad_scale
            var p = params.load[width](i).cast[F32]()
            var m_new = m.load[width](i) * beta1 + g * (1 - beta1)
            var v_new = v.load[width](i) * beta2 + g * g * (1 - beta2)
            m.store(i, m_new)
            v.store(i, v_new)
            var direction = (m_new * m_scale) / (sqrt(v_new * v_scale) + settings.eps)
            p -= settings.learning_rate * (direction + settings.weight_decay * p)
            params.store(i, p.cast[dtype]())

        var lo, hi = share(params.size, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for i in range(lo, full, W):
            element[W](i)
        for i in range(full, hi):
            element[1](i)

    team.run(body)
