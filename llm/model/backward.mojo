"""The backward pass of a GPT-2, step by step, as every thread of a team goes through it: `forward.mojo` the other way.

Layernorm outputs are computed again; scratch is shared by all blocks.
"""

from llm.base.memory import Tensor
from llm.cpu.attention import attention_backward
from llm.cpu.cross_entropy import cross_entropy_forward_backward
from llm.cpu.dropout import Dropout, apply_dropout
from llm.cpu.embedding import embedding_backward
from llm.cpu.gemm import GeluBackward, Plain, gemm, row_major
from llm.cpu.layernorm import layernorm_backward, layernorm_recompute
from llm.cpu.linear import linear_backward_bias, linear_backward_input, linear_backward_weight
from llm.cpu.threads.crew import Team
from llm.model.activations import Activations
from llm.model.config import GPT2Config
from llm.model.forward import AFTER_ATTENTION, AFTER_MLP, IN_ATTENTION, ForwardWeights, site_dropout
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
    WPE,
    WTE,
    ParameterTensors,
)

comptime F32 = DType.float32
comptime Tokens = Tensor[DType.int32]


def logits_of_rows[
    dtype: DType, table_dtype: DType, //
](
    team: Team,
    config: GPT2Config,
    weights: ForwardWeights[dtype, table_dtype],
    acts: Activations[dtype],
    first_row: Int,
    rows: Int,
    logits: Tensor[F32],
    stride: Int,
):
    """Computes the logits of some positions, in rows `stride` apart, from the final layernorm."""
    var C = config.channels
    var norm = acts.norm.slice(first_row * C, rows * C)
    var wte = row_major(weights.matrix(WTE, 0), C)
    gemm(
        team,
        acts.gemm_workspace,
        rows,
        config.vocab_size,
        C,
        row_major(norm, C),
        wte.transposed(),
        logits,
        stride,
        Plain(),
    )


def backward_head[
    dtype: DType, table_dtype: DType, //
](
    team: Team,
    config: GPT2Config,
    weights: ForwardWeights[dtype, table_dtype],
    grads: ParameterTensors[F32],
    acts: Activations[dtype],
    targets: Tokens,
    accumulate: Bool,
    weight: Float32,
):
    """Computes losses, logits and their gradients some rows at a time, and goes back through the output layer."""
    var rows = targets.size
    var C = config.channels
    var V = config.vocab_size
    var Vp = config.padded_vocab_size
    var wte = row_major(weights.matrix(WTE, 0), C)
    var chunk = min(rows, acts.logits.size // Vp)
    for first in range(0, rows, chunk):
        var count = min(chunk, rows - first)
        var norm = acts.norm.slice(first * C, count * C)
        logits_of_rows(team, config, weights, acts, first, count, acts.logits, Vp)
        cross_entropy_forward_backward(
            team,
            acts.losses.slice(first, count),
            acts.dlogits,
            acts.logits,
            targets.slice(first, count),
            count,
            V,
            Vp,
            weight / Float32(rows),
        )
        var dlogits = row_major(acts.dlogits, acts.dlogits.size // acts.logits.size * Vp)
        var dnorm = acts.dnarrow.slice(first * C, count * C)
        gemm(team, acts.gemm_workspace, count, C, V, dlogits, wte, dnorm, C, Plain())
        # dwte is also the token embedding's gradient, which comes last and is added.
        gemm(
            team,
            acts.gemm_workspace,
            V,
            C,
            count,
            dlogits.transposed(),
            row_major(norm, C),
            grads[WTE],
            C,
            Plain(),
            accumulate or first > 0,
        )
    layernorm_backward[add_to_dinp=False](
        team,
        acts.dresidual,
        acts.dresidual_rounded,
        grads[LNFW],
        grads[LNFB],
        acts.dnarrow,
        acts.layer(acts.residual, config.num_layers, rows * C),
        acts.lnf_mean,
        acts.lnf_rstd,
        weights.vector(LNFW, 0),
        rows,
        C,
        accumulate,
    )


def backward_block[
    dtype: DType, table_dtype: DType, //
](
    team: Team,
    config: GPT2Config,
    weights: ForwardWeights[dtype, table_dtype],
    grads: ParameterTensors[F32],
    acts: Activations[dtype],
    l: Int,
    B: Int,
    T: Int,
    accumulate: Bool,
    dropout: Dropout,
):
    """Goes back through block l."""
    var workspace = acts.gemm_workspace
    var rows = B * T
    var C = config.channels
    var NH = config.num_heads
    var block = acts.block(l, rows, C)
    var lse = acts.kept(acts.logsumexp, l, rows * NH)
    var dx = acts.dresidual_rounded
    var dfc = acts.dwide
    var dqkv = acts.dwide
    var dnorm = acts.dnarrow
    var datt = acts.dnarrow

    # MLP
    var gelu_grad = GeluBackward(block.fc, acts.gelu, 4 * C)
    var dproj = _dropout_backward(team, acts, dx, rows * C, site_dropout(dropout, l, AFTER_MLP))
    linear_backward_input(team, workspace, dfc, dproj, weights.matrix(FCPROJW, l), rows, 4 * C, C, gelu_grad)
    linear_backward_weight(team, workspace, grads.layer(FCPROJW, l), dproj, acts.gelu, rows, 4 * C, C, accumulate)
    linear_backward_bias(team, grads.layer(FCPROJB, l), dproj, rows, C, accumulate)
    var ln2w = weights.vector(LN2W, l)
    layernorm_recompute(
        team, acts.norm, block.x_mid, block.ln2_mean, block.ln2_rstd, ln2w, weights.vector(LN2B, l), rows, C
    )
    linear_backward_weight(team, workspace, grads.layer(FCW, l), dfc, acts.norm, rows, C, 4 * C, accumulate)
    linear_backward_bias(team, grads.layer(FCB, l), dfc, rows, 4 * C, accumulate)
    linear_backward_input(team, workspace, dnorm, dfc, weights.matrix(FCW, l), rows, C, 4 * C, Plain())
    layernorm_backward(
        team,
        acts.dresidual,
        dx,
        grads.layer(LN2W, l),
        grads.layer(LN2B, l),
        dnorm,
        block.x_mid,
        block.ln2_mean,
        block.ln2_rstd,
        ln2w,
        rows,
        C,
        accumulate,
    )

    # Attention
    dproj = _dropout_backward(team, acts, dx, rows * C, site_dropout(dropout, l, AFTER_ATTENTION))
    linear_backward_weight(team, workspace, grads.layer(ATTPROJW, l), dproj, block.attention, rows, C, C, accumulate)
    linear_backward_bias(team, grads.layer(ATTPROJB, l), dproj, rows, C, accumulate)
    linear_backward_input(team, workspace, datt, dproj, weights.matrix(ATTPROJW, l), rows, C, C, Plain())
    attention_backward(
        team,
        acts.attention_workspace,
        dqkv,
        datt,
        block.qkv,
        block.attention,
        lse,
        B,
        T,
        C,
        NH,
        site_dropout(dropout, l, IN_ATTENTION),
    )
    var ln1w = weights.vector(LN1W, l)
    layernorm_recompute(
        team, acts.norm, block.x, block.ln1_mean, block.ln1_rstd, ln1w, weights.vector(LN1B, l), rows, C
    )
    linear_backward_weight(team, workspace, grads.layer(QKVW, l), dqkv, acts.norm, rows, C, 3 * C, accumulate)
    linear_backward_bias(team, grads.layer(QKVB, l), dqkv, rows, 3 * C, accumulate)
    linear_backward_input(team, workspace, dnorm, dqkv, weights.matrix(QKVW, l), rows, C, 3 * C, Plain())
    layernorm_backward(
        team,
        acts.dresidual,
        dx,
        grads.layer(LN1W, l),
        grads.layer(LN1B, l),
        dnorm,
        block.x,
        block.ln1_mean,
        block.ln1_rstd,
        ln1w,
        rows,
        C,
        accumulate,
    )


def backward_embedding[
    dtype: DType, //
](
    team: Team,
    grads: ParameterTensors[F32],
    acts: Activations[dtype],
    B: Int,
    T: Int,
    C: Int,
    accumulate: Bool,
    dropout: Dropout,
):
    """Goes back through the embedding; dwte has the output layer's gradient already."""
    if dropout.is_on():
        var dx = acts.dresidual.slice(0, B * T * C)
        apply_dropout(team, dx, dx, dropout)
    embedding_backward(team, grads[WTE], grads[WPE], acts.dresidual, acts.tokens, B, T, C, accumulate)


def _dropout_backward[
    dtype: DType, //
](team: Team, acts: Activations[dtype], dout: Tensor[dtype], size: Int, dropout: Dropout) -> Tensor[dtype]:
    """Returns the gradient of what was dropped from: dout itself if nothing was."""
    if not dropout.is_on():
        return dout
    # Free at both places: the layernorm whose output it holds has been used up, or is computed again afterwards.
    var dinp = acts.norm.slice(0, size)
    apply_dropout(team, dinp, dout.slice(0, size), dropout)
    return dinp
