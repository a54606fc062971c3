"""GPT-2's random initialisation, reproducible by seed and the same for any number of threads."""

from std.math import cos, log, pi, sqrt

from llm.base.memory import Tensor
from llm.base.random import draw_at, scramble
from llm.cpu.threads.crew import Team, share
from llm.model.config import GPT2Config
from llm.model.tensors import NORMAL_RESIDUAL, NUM_TENSORS, ONES, WTE, ZEROS, ParameterTensors

comptime F32 = DType.float32
comptime STANDARD_DEVIATION = Float32(0.02)


def initialize_parameters[dtype: DType](team: Team, params: ParameterTensors[dtype], config: GPT2Config, seed: Int):
    """Fills the parameters as GPT-2's authors did (Radford et al., 2019, and the code that they published).

    Matrices are normal with standard deviation 0.02; those that write into the residual stream (attprojw, fcprojw) are
    divided by sqrt(2 L), as there are 2 L of them. Biases are 0, layernorm weights 1, the padding rows of wte 0.
    """
    for i in range(NUM_TENSORS):
        var tensor = params[i]
        var initial = params.specs[i].initial
        if initial == ZEROS or initial == ONES:
            _fill(team, tensor, Scalar[dtype](1 if initial == ONES else 0))
        else:
            var std = STANDARD_DEVIATION
            if initial == NORMAL_RESIDUAL:
                std /= sqrt(Float32(2 * config.num_layers))
            _fill_normal(team, tensor, std, UInt64(seed) * UInt64(NUM_TENSORS) + UInt64(i))
    var used = config.vocab_size * config.channels
    _fill(team, params[WTE].slice(used, params[WTE].size - used), 0)


def _fill[dtype: DType](team: Team, tensor: Tensor[dtype], value: Scalar[dtype]):
    def body(member: Int) {imm}:
        var lo, hi = share(tensor.size, team.size, member)
        tensor.slice(lo, hi - lo).fill(value)

    team.run(body, "fill")


def _fill_normal[dtype: DType](team: Team, tensor: Tensor[dtype], std: Float32, stream: UInt64):
    """Fills a tensor with independent normal numbers by Box and Muller's transform of two uniform ones.

    Number i depends on (stream, i) alone, which is what makes it independent of the threads.
    """
    var key = scramble(stream + 1)

    def body(member: Int) {imm}:
        var lo, hi = share((tensor.size + 1) // 2, team.size, member)
        for pair in range(lo, hi):
            var bits = draw_at(key, UInt64(pair))
            # Two uniforms of 32 bits each; the first in (0, 1], so that its logarithm is finite.
            var u1 = (Float64(Int(bits >> 32)) + 1) / 4294967296.0
            var u2 = Float64(Int(bits & 0xFFFFFFFF)) / 4294967296.0
            var radius = sqrt(-2 * log(u1)) * std.cast[DType.float64]()
            tensor[2 * pair] = (radius * cos(2 * pi * u2)).cast[dtype]()
            if 2 * pair + 1 < tensor.size:
                tensor[2 * pair + 1] = (radius * cos(2 * pi * (u2 - 0.25))).cast[dtype]()

    team.run(body, "fill_normal")
