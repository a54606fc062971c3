"""AdamW: one pass over parameters, gradients and both moments."""

from std.math import sqrt
from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.global_norm import NORM_BLOCK, num_norm_blocks
from llm.cpu.simd.rounding import round_to
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()


struct AdamWSettings(Copyable, ImplicitlyCopyable, Movable):
    """Settings of the optimizer (Loshchilov and Hutter, 2019)."""

    var learning_rate: Float32
    var beta1: Float32
    var beta2: Float32
    var eps: Float32
    var weight_decay: Float32

    def __init__(
        out self,
        learning_rate: Float32 = 0,
        beta1: Float32 = 0.9,
        beta2: Float32 = 0.999,
        eps: Float32 = 1e-8,
        weight_decay: Float32 = 0,
    ):
        """Takes the values; the defaults are llm.c's, and the learning rate that of a step."""
        self.learning_rate = learning_rate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weight_decay = weight_decay


def adamw_update[
    dtype: DType, //
](
    team: Team,
    params: Tensor[F32],
    rounded: Tensor[dtype],
    grads: Tensor[F32],
    m: Tensor[F32],
    v: Tensor[F32],
    block_sums: Tensor[F32],
    settings: AdamWSettings,
    step: Int,
    grad_scale: Float32 = 1,
):
    """Takes one step, in place, for one tensor; `step` counts from 1.

    g = grad_scale * grads; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    params -= lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * params).
    If dtype is not float32, the parameters are also written to `rounded`, for the products that read them next.
    Writes the sums of grads^2 over each block of NORM_BLOCK elements to block_sums (num_norm_blocks(size)).
    """
    var beta1 = settings.beta1
    var beta2 = settings.beta2
    # Powers in float64: 1 - 0.999^1 has only four digits left in float32.
    var m_scale = (1 / (1 - beta1.cast[DType.float64]() ** step)).cast[F32]()
    var v_scale = (1 / (1 - beta2.cast[DType.float64]() ** step)).cast[F32]()

    def body(member: Int) {imm}:
        @always_inline
        def element[width: Int](i: Int) {imm} -> SIMD[F32, width]:
            var raw = grads.load[width](i)
            var g = raw * grad_scale
            var p = params.load[width](i)
            # Which of two products is rounded is said here: a compiler that chooses may choose otherwise in another program.
            var m_new = m.load[width](i).fma(beta1, g * (1 - beta1))
            var v_new = v.load[width](i).fma(beta2, g * g * (1 - beta2))
            m.store(i, m_new)
            v.store(i, v_new)
            var direction = (m_new * m_scale) / (sqrt(v_new * v_scale) + settings.eps)
            p -= settings.learning_rate * (direction + settings.weight_decay * p)
            params.store(i, p)
            comptime if dtype != F32:
                rounded.store(i, round_to[dtype](p))
            return raw * raw

        var first, last = share(num_norm_blocks(params.size), team.size, member)
        for block in range(first, last):
            var lo = block * NORM_BLOCK
            var hi = min(lo + NORM_BLOCK, params.size)
            var full = lo + (hi - lo) // W * W
            var squares = SIMD[F32, W](0)
            for i in range(lo, full, W):
                squares += element[W](i)
            var sum = squares.reduce_add()
            for i in range(full, hi):
                sum += element[1](i)
            block_sums[block] = sum

    team.run(body, "adamw_update", bytes=7 * size_of[Float32]() * params.size)
