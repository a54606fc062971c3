"""The forward pass of a GPT-2, step by step, as every thread of a team goes through it: training, evaluation, reading a
prompt and decoding are this one choreography.

A block is  x += attention(layernorm(x)) @ attprojw^T + attprojb;  x += gelu(layernorm(x) @ fcw^T + fcb) @ fcprojw^T +
fcprojb. What differs is where the activations go, how keys and values of earlier positions are found (`Attention`), and
which kernel multiplies (`Products`).
"""

from llm.base.memory import Tensor
from llm.base.random import draw_at
from llm.cpu.attention import attention_forward
from llm.cpu.cached_attention import CachedText, Pages, cache_positions, cached_attention
from llm.cpu.dropout import Dropout, apply_dropout, residual_dropout
from llm.cpu.embedding import embedding_forward
from llm.cpu.gemm import Bias, BiasGelu, BiasResidual, Epilogue, Plain
from llm.cpu.layernorm import layernorm_forward
from llm.cpu.linear import linear_forward
from llm.cpu.matvec import matvec
from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.tensors import (
    ATTPROJB,
    ATTPROJW,
    FCB,
    FCPROJB,
    FCPROJW,
    FCW,
    LN1B,
    LN1W,
    LN2B,
    LN2W,
    LNFB,
    LNFW,
    QKVB,
    QKVW,
    WTE,
    parameter_specs,
)

comptime F32 = DType.float32
comptime I32 = DType.int32

# Where something is dropped in each block, as in GPT-2; and once before the first.
comptime IN_ATTENTION = 0
comptime AFTER_ATTENTION = 1
comptime AFTER_MLP = 2
comptime _DROPS_PER_BLOCK = 3


def site_dropout(dropout: Dropout, l: Int, site: Int) -> Dropout:
    """Derives the choice of one place in block l from that of the pass."""
    return Dropout(dropout.rate, draw_at(dropout.key, UInt64(1 + l * _DROPS_PER_BLOCK + site)))


struct ForwardWeights[dtype: DType, table_dtype: DType](Movable):
    """Views of the parameters as a forward pass reads them: matrices of products, embeddings, and vectors in float32.
    """

    var wte: Tensor[Self.table_dtype]
    """(Vp,C), as the embedding reads it."""
    var wpe: Tensor[Self.table_dtype]
    """(maxT,C)."""
    var _matrices: List[Tensor[Self.dtype]]
    var _vectors: List[Tensor[F32]]
    var _layers: List[Int]
    """Layers of each tensor."""

    def __init__(
        out self,
        config: GPT2Config,
        *,
        wte: Tensor[Self.table_dtype],
        wpe: Tensor[Self.table_dtype],
        var matrices: List[Tensor[Self.dtype]],
        var vectors: List[Tensor[F32]],
    ):
        """Takes views by number of the tensor; of `matrices` those of products count, of `vectors` the others."""
        self.wte = wte
        self.wpe = wpe
        self._matrices = matrices^
        self._vectors = vectors^
        self._layers = List[Int]()
        for ref spec in parameter_specs(config):
            self._layers.append(spec.layers)

    @no_inline
    def matrix(self, tensor: Int, l: Int) -> Tensor[Self.dtype]:
        """Views layer l of the weights of a product."""
        var size = self._matrices[tensor].size // self._layers[tensor]
        return self._matrices[tensor].slice(l * size, size)

    @no_inline
    def vector(self, tensor: Int, l: Int) -> Tensor[F32]:
        """Views layer l of a bias or layernorm vector."""
        var size = self._vectors[tensor].size // self._layers[tensor]
        return self._vectors[tensor].slice(l * size, size)


struct BlockActivations[dtype: DType](TrivialRegisterPassable):
    """Where the activations of a block go: kept for backward in training, the same scratch for every block elsewhere.
    """

    var x: Tensor[F32]
    """(rows,C): the residual stream that comes in."""
    var x_mid: Tensor[F32]
    """(rows,C): between attention and MLP."""
    var x_out: Tensor[F32]
    """(rows,C): as it leaves; may be `x`."""
    var norm: Tensor[Self.dtype]
    """(rows,C): output of either layernorm."""
    var qkv: Tensor[Self.dtype]
    """(rows,3C)."""
    var attention: Tensor[Self.dtype]
    """(rows,C): output of the heads."""
    var fc: Tensor[Self.dtype]
    """(rows,4C): the input of GELU; may be `gelu`."""
    var gelu: Tensor[Self.dtype]
    """(rows,4C): its output."""
    var ln1_mean: Tensor[F32]
    var ln1_rstd: Tensor[F32]
    var ln2_mean: Tensor[F32]
    var ln2_rstd: Tensor[F32]

    def __init__(
        out self,
        *,
        x: Tensor[F32],
        x_mid: Tensor[F32],
        x_out: Tensor[F32],
        norm: Tensor[Self.dtype],
        qkv: Tensor[Self.dtype],
        attention: Tensor[Self.dtype],
        fc: Tensor[Self.dtype],
        gelu: Tensor[Self.dtype],
        ln1_mean: Tensor[F32],
        ln1_rstd: Tensor[F32],
        ln2_mean: Tensor[F32],
        ln2_rstd: Tensor[F32],
    ):
        """Takes the views."""
        self.x = x
        self.x_mid = x_mid
        self.x_out = x_out
        self.norm = norm
        self.qkv = qkv
        self.attention = attention
        self.fc = fc
        self.gelu = gelu
        self.ln1_mean = ln1_mean
        self.ln1_rstd = ln1_rstd
        self.ln2_mean = ln2_mean
        self.ln2_rstd = ln2_rstd


# ----- attention: to which keys and values the queries go


trait Attention:
    """How the positions of a pass see each other and those before them."""

    def attend[
        dtype: DType
    ](self, team: Team, l: Int, output: Tensor[dtype], qkv: Tensor[dtype], C: Int, NH: Int) -> Bool:
        """Computes the heads' output (rows,C) of block l from qkv (rows,3C).

        Returns:
            False if nothing after this is wanted of the block: it was read for its keys and values alone.
        """
        ...


@fieldwise_init
struct CausalAttention(Attention):
    """Each of B texts of T positions sees itself only. Keeps what backward needs."""

    var workspace: Tensor[F32]
    var logsumexp: Tensor[F32]
    """(L,B,NH,T); with `recompute` (1,B,NH,T)."""
    var recompute: Bool
    """Whether all blocks share the place of one."""
    var B: Int
    var T: Int
    var dropout: Dropout

    def attend[
        dtype: DType
    ](self, team: Team, l: Int, output: Tensor[dtype], qkv: Tensor[dtype], C: Int, NH: Int) -> Bool:
        var size = self.B * NH * self.T
        var lse = self.logsumexp.slice(0 if self.recompute else l * size, size)
        var dropout = site_dropout(self.dropout, l, IN_ATTENTION)
        attention_forward(team, self.workspace, output, lse, qkv, self.B, self.T, C, NH, dropout)
        return True


@fieldwise_init
struct CachingAttention(Attention):
    """One text, read from its beginning; its keys and values stay in the cache."""

    var workspace: Tensor[F32]
    var logsumexp: Tensor[F32]
    """(NH,rows): scratch."""
    var pages: Pages
    var rows: Int
    var last: Int
    """The last block, of which only keys and values are of use to the positions that follow."""

    def attend[
        dtype: DType
    ](self, team: Team, l: Int, output: Tensor[dtype], qkv: Tensor[dtype], C: Int, NH: Int) -> Bool:
        cache_positions(team, self.pages, qkv, l, self.rows, C, NH)
        if l == self.last:
            return False
        attention_forward(team, self.workspace, output, self.logsumexp, qkv, 1, self.rows, C, NH)
        return True


@fieldwise_init
struct CachedAttention(Attention, Movable):
    """One new position of each of several texts, which goes on from what the cache has of its text."""

    var workspace: Tensor[F32]
    var texts: List[CachedText]

    def attend[
        dtype: DType
    ](self, team: Team, l: Int, output: Tensor[dtype], qkv: Tensor[dtype], C: Int, NH: Int) -> Bool:
        comptime assert dtype == F32, "a step of decoding has float32 activations"
        var narrow = rebind[Tensor[F32]](output)
        cached_attention(team, self.workspace, narrow, rebind[Tensor[F32]](qkv), self.texts, l, C, NH)
        return True


# ----- products: which kernel multiplies


@fieldwise_init
struct Products[acts: DType, dtype: DType, training: Bool](TrivialRegisterPassable):
    """Products of activations and weights, in training always by a gemm."""

    var workspace: Tensor[F32]
    var scratch: Tensor[F32]
    """In training (rows,C), for dropout; elsewhere (4C,C), for a matrix that is widened first."""
    var few: Bool
    """Reading the weights is what takes the time, and `matvec` is faster than a gemm."""

    def linear[
        out_dtype: DType, E: Epilogue, //
    ](
        self,
        team: Team,
        output: Tensor[out_dtype],
        inp: Tensor[Self.acts],
        matrix: Tensor[Self.dtype],
        rows: Int,
        C: Int,
        OC: Int,
        epilogue: E,
    ):
        """Computes output = epilogue(inp @ matrix^T). inp (rows,C), matrix (OC,C), output (rows,OC)."""
        comptime if not Self.training and Self.acts == F32:
            if self.few:
                matvec(team, rebind[Tensor[F32]](output), rebind[Tensor[F32]](inp), matrix, rows, C, OC, epilogue)
                return
        comptime if Self.acts == Self.dtype:
            var same = rebind[Tensor[Self.acts]](matrix)
            linear_forward(team, self.workspace, output, inp, same, rows, C, OC, epilogue)
        else:
            var wide = self.scratch.slice(0, OC * C)
            convert(team, wide, matrix)
            linear_forward(team, self.workspace, output, rebind[Tensor[F32]](inp), wide, rows, C, OC, epilogue)

    def add_linear(
        self,
        team: Team,
        output: Tensor[F32],
        residual: Tensor[F32],
        inp: Tensor[Self.acts],
        matrix: Tensor[Self.dtype],
        bias: Tensor[F32],
        rows: Int,
        C: Int,
        OC: Int,
        dropout: Dropout,
    ):
        """Computes output = residual + dropout(inp @ matrix^T + bias)."""
        comptime if Self.training:
            if dropout.is_on():
                var product = self.scratch.slice(0, rows * OC)
                self.linear(team, product, inp, matrix, rows, C, OC, Plain())
                residual_dropout(team, output, residual, product, bias, rows, OC, dropout)
                return
        self.linear(team, output, inp, matrix, rows, C, OC, BiasResidual(bias, residual, OC))


# ----- the steps


def embed[
    dtype: DType, table_dtype: DType, //
](
    team: Team,
    weights: ForwardWeights[dtype, table_dtype],
    x: Tensor[F32],
    tokens: Tensor[I32],
    positions: Tensor[I32],
    C: Int,
    dropout: Dropout = Dropout(),
):
    """Computes x = dropout(wte[token] + wpe[position]) for tokens (rows), whose positions repeat."""
    embedding_forward(team, x, tokens, positions, weights.wte, weights.wpe, tokens.size, C)
    if dropout.is_on():
        apply_dropout(team, x, x, dropout)


def forward_block[
    acts: DType, dtype: DType, table_dtype: DType, training: Bool, A: Attention, //
](
    team: Team,
    config: GPT2Config,
    weights: ForwardWeights[dtype, table_dtype],
    l: Int,
    rows: Int,
    block: BlockActivations[acts],
    attention: A,
    products: Products[acts, dtype, training],
    dropout: Dropout = Dropout(),
):
    """Runs block l on `rows` positions."""
    if not forward_to_gelu(team, config, weights, l, rows, block, attention, products, dropout):
        return
    products.add_linear(
        team,
        block.x_out,
        block.x_mid,
        block.gelu,
        weights.matrix(FCPROJW, l),
        weights.vector(FCPROJB, l),
        rows,
        4 * config.channels,
        config.channels,
        site_dropout(dropout, l, AFTER_MLP),
    )


def forward_to_gelu[
    acts: DType, dtype: DType, table_dtype: DType, training: Bool, A: Attention, //
](
    team: Team,
    config: GPT2Config,
    weights: ForwardWeights[dtype, table_dtype],
    l: Int,
    rows: Int,
    block: BlockActivations[acts],
    attention: A,
    products: Products[acts, dtype, training],
    dropout: Dropout,
) -> Bool:
    """Runs block l up to and with GELU: all that backward needs of a block, so what it computes again.

    Returns:
        False if nothing after attention is wanted (`Attention.attend`).
    """
    var C = config.channels
    layernorm_forward(
        team,
        block.norm,
        block.ln1_mean,
        block.ln1_rstd,
        block.x,
        weights.vector(LN1W, l),
        weights.vector(LN1B, l),
        rows,
        C,
    )
    var qkv_bias = Bias(weights.vector(QKVB, l))
    products.linear(team, block.qkv, block.norm, weights.matrix(QKVW, l), rows, C, 3 * C, qkv_bias)
    if not attention.attend(team, l, block.attention, block.qkv, C, config.num_heads):
        return False
    products.add_linear(
        team,
        block.x_mid,
        block.x,
        block.attention,
        weights.matrix(ATTPROJW, l),
        weights.vector(ATTPROJB, l),
        rows,
        C,
        C,
        site_dropout(dropout, l, AFTER_ATTENTION),
    )
    layernorm_forward(
        team,
        block.norm,
        block.ln2_mean,
        block.ln2_rstd,
        block.x_mid,
        weights.vector(LN2W, l),
        weights.vector(LN2B, l),
        rows,
        C,
    )
    var fc_gelu = BiasGelu(weights.vector(FCB, l), block.fc, 4 * C)
    products.linear(team, block.gelu, block.norm, weights.matrix(FCW, l), rows, C, 4 * C, fc_gelu)
    return True


def final_layernorm[
    acts: DType, dtype: DType, table_dtype: DType, //
](
    team: Team,
    weights: ForwardWeights[dtype, table_dtype],
    output: Tensor[acts],
    mean: Tensor[F32],
    rstd: Tensor[F32],
    x: Tensor[F32],
    rows: Int,
    C: Int,
):
    """Computes the layernorm after the last block, which the logits are products of."""
    layernorm_forward(team, output, mean, rstd, x, weights.vector(LNFW, 0), weights.vector(LNFB, 0), rows, C)
