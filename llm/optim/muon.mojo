"""Muon (Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024) for the matrices of the blocks."""

from std.math import isfinite, sqrt

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.gemm import check_product
from llm.cpu.global_norm import num_norm_blocks, sum_squares
from llm.cpu.muon import MuonScratch, muon_momentum, muon_step, orthogonalize
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.tensors import QKVW, WPE, WTE, ParameterSpec

comptime F32 = DType.float32
comptime MOMENTUM = Float32(0.95)
comptime _RMS = Float32(0.2)
"""That of AdamW's updates, which Muon's are scaled to (Liu and others, "Muon is Scalable for LLM Training", 2025)."""


def takes_muon(tensor: Int, spec: ParameterSpec) -> Bool:
    """Tells the matrices of the blocks from embeddings, biases and layernorm vectors, which stay with AdamW."""
    return spec.is_matrix() and tensor != WTE and tensor != WPE


struct Muon(Movable):
    """The rule for one matrix W (rows,columns) with gradient G:

    M = 0.95 M + 0.05 G; O = orthogonalize(0.95 M + 0.05 G), `llm/cpu/muon`;
    W -= learning_rate * (0.2 sqrt(max(rows, columns)) O + weight_decay W).

    Query, key and value weights are three matrices. M is kept by the caller. Products are of numbers of the model's type.
    """

    var weight_decay: Float32
    var _scratch: Tensor[F32]
    var _direction: Tensor[F32]
    var _block_sums: Tensor[F32]
    var _largest: Int
    var _shorter: Int
    var _arena: Arena

    def __init__(out self, config: GPT2Config, weight_decay: Float32) raises:
        """Reserves room for the largest matrix.

        Raises:
            If a setting makes no sense, a product is too deep for bfloat16, or the system has no room.
        """
        if not (isfinite(weight_decay) and weight_decay >= 0):
            raise Error(t"muon: expected weight_decay of at least 0, got {weight_decay}")
        check_product[DType.bfloat16, DType.bfloat16](4 * config.channels)
        self.weight_decay = weight_decay
        self._shorter = config.channels
        self._largest = 4 * config.channels * config.channels
        self._arena = Arena(muon_bytes(config))
        self._scratch = self._arena.carve[F32](_scratch_size(config))
        self._direction = self._arena.carve[F32](self._largest)
        self._block_sums = self._arena.carve[F32](num_norm_blocks(self._largest))

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def update[
        dtype: DType
    ](
        self,
        team: Team,
        tensor: Int,
        spec: ParameterSpec,
        params: Tensor[F32],
        rounded: Tensor[dtype],
        grads: Tensor[F32],
        momentum: Tensor[F32],
        grad_block_sums: Tensor[F32],
        gemm_workspace: Tensor[F32],
        learning_rate: Float32,
        grad_scale: Float32,
    ):
        """Changes all layers of a tensor that `takes_muon`, as `TensorUpdate.update` has it."""
        sum_squares(team, grads, grad_block_sums)
        var apart = 3 if tensor == QKVW else 1
        var rows, columns = spec.rows // apart, spec.columns
        var size = rows * columns
        var scale = _RMS * sqrt(Float32(max(rows, columns)))
        var sums = self._block_sums.slice(0, num_norm_blocks(size))
        var direction = self._direction.slice(0, size)
        var scratch = self._room[dtype](gemm_workspace)
        for matrix in range(spec.layers * apart):
            var start = matrix * size
            var p = params.slice(start, size)
            muon_momentum(
                team,
                momentum.slice(start, size),
                direction,
                grads.slice(start, size),
                sums,
                MOMENTUM,
                grad_scale,
            )
            var orthogonal = orthogonalize(team, scratch, direction, sums, rows, columns)
            comptime if dtype == F32:
                muon_step(team, p, p, orthogonal, learning_rate, scale, self.weight_decay)
            else:
                muon_step(team, p, rounded.slice(start, size), orthogonal, learning_rate, scale, self.weight_decay)

    def _room[dtype: DType](self, gemm_workspace: Tensor[F32]) -> MuonScratch[dtype]:
        var square = self._shorter * self._shorter
        var all = Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=Int(self._scratch.ptr)), self._scratch.size)
        return MuonScratch[dtype](
            x=all.slice(0, self._largest),
            y=all.slice(self._largest, self._largest),
            gram=all.slice(2 * self._largest, square),
            square=all.slice(2 * self._largest + square, square),
            gemm_workspace=gemm_workspace,
        )


def _scratch_size(config: GPT2Config) -> Int:
    return 10 * config.channels * config.channels


def muon_bytes(config: GPT2Config) -> Int:
    """Counts the bytes that Muon reserves beside its momentum."""
    var largest = 4 * config.channels * config.channels
    return (
        aligned_bytes[F32](_scratch_size(config))
        + aligned_bytes[F32](largest)
        + aligned_bytes[F32](num_norm_blocks(largest))
    )
