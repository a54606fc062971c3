"""The memory of one forward and backward pass, planned once for a batch size and a context length.

Kept from forward to backward, per position and layer: the residual stream before and after attention (2C), qkv (3C),
the attention output (C) and the input of GELU (4C). Layernorm and GELU outputs are cheap and computed again. Backward
works in scratch that all layers share, and the logits exist for HEAD_ROWS positions at a time. What matrix products
read is of the model's dtype; the residual stream, its gradient, sums and statistics are float32.

With `recompute`, of what a block computes only its input is kept; the rest has room for one block, and backward computes it
again block by block: 4 of 40 bytes per position, layer and channel in float32 (Chen et al. 2016, arXiv:1604.06174).
"""

from std.sys import size_of

from llm.base.memory import Arena, Tensor
from llm.cpu.attention import attention_workspace_size
from llm.cpu.gemm import gemm_workspace_size
from llm.cpu.global_norm import num_norm_blocks
from llm.model.config import GPT2Config
from llm.model.forward import BlockActivations
from llm.model.tensors import parameter_specs

comptime F32 = DType.float32
comptime HEAD_ROWS = 512
"""Positions whose logits exist at once."""


@fieldwise_init
struct ActivationSizes(Copyable, Movable):
    """The sizes that the plan follows from."""

    var config: GPT2Config
    var B: Int
    var T: Int
    var threads: Int
    var recompute: Bool
    """Whether blocks keep their input alone."""

    def kept_blocks(self) -> Int:
        """Counts the blocks whose activations have a place of their own."""
        return 1 if self.recompute else self.config.num_layers

    def head_rows(self) -> Int:
        """Rows of the logits' buffer."""
        return min(HEAD_ROWS, self.B * self.T)


struct Activations[dtype: DType](Movable):
    """Views into one arena. Tensors with a layer dimension are (L, B*T, width); with `recompute` L is 1, but
    for `residual`."""

    var num_bytes: Int
    """Size of the arena."""
    var rows: Int
    """Positions (B*T) that fit."""
    var max_seq_len: Int
    """Longest context that fits."""
    var recompute: Bool
    """Whether all blocks share the room of one: then the last one's activations are what is there."""
    var _arena: Arena

    # Kept from forward to backward.
    var tokens: Tensor[DType.int32]
    """(B*T): the inputs."""
    var positions: Tensor[DType.int32]
    """(T): 0, 1, 2 ..."""
    var residual: Tensor[F32]
    """(L+1, B*T, C): the input of each block; the last is the output of the last block."""
    var residual_mid: Tensor[F32]
    """(L, B*T, C): the residual stream between attention and MLP."""
    var ln1_mean: Tensor[F32]
    var ln1_rstd: Tensor[F32]
    var ln2_mean: Tensor[F32]
    var ln2_rstd: Tensor[F32]
    var lnf_mean: Tensor[F32]
    var lnf_rstd: Tensor[F32]
    var qkv: Tensor[Self.dtype]
    """(L, B*T, 3C)."""
    var attention: Tensor[Self.dtype]
    """(L, B*T, C): output of the heads."""
    var logsumexp: Tensor[F32]
    """(L, B, NH, T): denominators of the attention's softmax."""
    var fc: Tensor[Self.dtype]
    """(L, B*T, 4C): the input of GELU."""

    # Scratch that all layers share.
    var norm: Tensor[Self.dtype]
    """(B*T, C): output of a layernorm."""
    var gelu: Tensor[Self.dtype]
    """(B*T, 4C): output of GELU."""
    var dresidual: Tensor[F32]
    """(B*T, C): gradient of the residual stream."""
    var dresidual_rounded: Tensor[Self.dtype]
    """(B*T, C): the same as the products read it; for float32 the same memory."""
    var dnarrow: Tensor[F32]
    """(B*T, C): gradient of a layernorm's or the heads' output."""
    var dwide: Tensor[Self.dtype]
    """(B*T, 4C): gradient of the GELU's input or of qkv."""
    var logits: Tensor[F32]
    """(HEAD_ROWS, Vp)."""
    var dlogits: Tensor[Self.dtype]
    """Their gradient, in the same memory: each row begins where the row of logits does."""
    var losses: Tensor[F32]
    """(B*T)."""
    var norm_blocks: Tensor[F32]
    """Sums of squares of the gradients, block by block."""
    var attention_workspace: Tensor[F32]
    var gemm_workspace: Tensor[F32]

    def __init__(out self, sizes: ActivationSizes) raises:
        """Plans and reserves.

        Raises:
            If the system has no room.
        """
        self = Self(sizes, Arena(activation_bytes[Self.dtype](sizes)))

    def __init__(out self, sizes: ActivationSizes, var arena: Arena) raises:
        """Carves all tensors from an arena, or counts them."""
        var rows = sizes.B * sizes.T
        ref config = sizes.config
        var L = sizes.kept_blocks()
        var C = config.channels
        self.rows = rows
        self.max_seq_len = sizes.T
        self.recompute = sizes.recompute
        self._arena = arena^
        self.tokens = self._arena.carve[DType.int32](rows)
        self.positions = self._arena.carve[DType.int32](sizes.T)
        self.residual = self._arena.carve[F32]((config.num_layers + 1) * rows * C)
        self.residual_mid = self._arena.carve[F32](L * rows * C)
        self.ln1_mean = self._arena.carve[F32](L * rows)
        self.ln1_rstd = self._arena.carve[F32](L * rows)
        self.ln2_mean = self._arena.carve[F32](L * rows)
        self.ln2_rstd = self._arena.carve[F32](L * rows)
        self.lnf_mean = self._arena.carve[F32](rows)
        self.lnf_rstd = self._arena.carve[F32](rows)
        self.qkv = self._arena.carve[Self.dtype](L * rows * 3 * C)
        self.attention = self._arena.carve[Self.dtype](L * rows * C)
        self.logsumexp = self._arena.carve[F32](L * rows * config.num_heads)
        self.fc = self._arena.carve[Self.dtype](L * rows * 4 * C)
        self.norm = self._arena.carve[Self.dtype](rows * C)
        self.gelu = self._arena.carve[Self.dtype](rows * 4 * C)
        self.dresidual = self._arena.carve[F32](rows * C)
        comptime if Self.dtype == F32:
            self.dresidual_rounded = rebind[Tensor[Self.dtype]](self.dresidual)
        else:
            self.dresidual_rounded = self._arena.carve[Self.dtype](rows * C)
        self.dnarrow = self._arena.carve[F32](rows * C)
        self.dwide = self._arena.carve[Self.dtype](rows * 4 * C)
        self.logits = self._arena.carve[F32](sizes.head_rows() * config.padded_vocab_size)
        var dlogits = Tensor[Self.dtype].Ptr(unsafe_from_address=Int(self.logits.ptr))
        self.dlogits = Tensor[Self.dtype](dlogits, self.logits.size * size_of[Float32]() // size_of[Self.dtype]())
        self.losses = self._arena.carve[F32](rows)
        self.norm_blocks = self._arena.carve[F32](_all_norm_blocks(config))
        self.attention_workspace = self._arena.carve[F32](
            attention_workspace_size(sizes.T, config.head_size(), sizes.threads)
        )
        self.gemm_workspace = self._arena.carve[F32](gemm_workspace_size(sizes.threads))
        self.num_bytes = self._arena.used

    @always_inline
    def layer[type: DType](self, tensor: Tensor[type], l: Int, size: Int) -> Tensor[type]:
        """Views what block l has in a tensor of which a pass takes `size` scalars for each block."""
        return tensor.slice(l * size, size)

    @always_inline
    def kept[type: DType](self, tensor: Tensor[type], l: Int, size: Int) -> Tensor[type]:
        """Views what block l computes, where blocks that are recomputed share one place."""
        return tensor.slice(0 if self.recompute else l * size, size)

    def block(self, l: Int, rows: Int, C: Int) -> BlockActivations[Self.dtype]:
        """Views the activations of block l in a pass over so many positions."""
        return BlockActivations[Self.dtype](
            x=self.layer(self.residual, l, rows * C),
            x_mid=self.kept(self.residual_mid, l, rows * C),
            x_out=self.layer(self.residual, l + 1, rows * C),
            norm=self.norm,
            qkv=self.kept(self.qkv, l, rows * 3 * C),
            attention=self.kept(self.attention, l, rows * C),
            fc=self.kept(self.fc, l, rows * 4 * C),
            gelu=self.gelu,
            ln1_mean=self.kept(self.ln1_mean, l, rows),
            ln1_rstd=self.kept(self.ln1_rstd, l, rows),
            ln2_mean=self.kept(self.ln2_mean, l, rows),
            ln2_rstd=self.kept(self.ln2_rstd, l, rows),
        )


def activation_bytes[dtype: DType](sizes: ActivationSizes) raises -> Int:
    """Counts the bytes of the arena that `Activations` reserves: linear in B and in T."""
    return Activations[dtype](sizes, Arena.counting()).num_bytes


def _all_norm_blocks(config: GPT2Config) -> Int:
    var blocks = 0
    for ref spec in parameter_specs(config):
        blocks += num_norm_blocks(spec.size())
    return blocks
