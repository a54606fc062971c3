"""GPT-2: forward, backward and update. The choreography, once; the steps are in `cpu/`.

A block is  x += attention(layernorm(x)) @ attprojw^T + attprojb;  x += gelu(layernorm(x) @ fcw^T + fcb) @ fcprojw^T +
fcprojb. The output layer shares its weights with the token embedding (wte).
"""

from llm.base.memory import Tensor
from llm.base.random import draw_at
from llm.cpu.adamw import AdamW, adamw_update
from llm.cpu.attention import attention_backward, attention_forward
from llm.cpu.cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from llm.cpu.dropout import Dropout, apply_dropout, residual_dropout
from llm.cpu.embedding import embedding_backward, embedding_forward
from llm.cpu.gemm import Bias, BiasGelu, BiasResidual, GeluBackward, Plain, gemm, row_major
from llm.cpu.global_norm import norm_of_blocks, num_norm_blocks, sum_squares
from llm.cpu.layernorm import layernorm_backward, layernorm_forward, layernorm_recompute
from llm.cpu.linear import linear_backward_bias, linear_backward_input, linear_backward_weight, linear_forward
from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Crew, Event, Job, Team
from llm.model.activations import ActivationSizes, Activations
from llm.model.config import GPT2Config
from llm.model.initialize import initialize_parameters
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
    NUM_TENSORS,
    QKVB,
    QKVW,
    WPE,
    WTE,
    ParameterTensors,
    ProductWeights,
    is_product_weight,
)

comptime F32 = DType.float32
comptime Tokens = Tensor[DType.int32]

# Where something is dropped in each block, as in GPT-2; and once before the first.
comptime _IN_ATTENTION = 0
comptime _AFTER_ATTENTION = 1
comptime _AFTER_MLP = 2
comptime _DROPS_PER_BLOCK = 3


struct GPT2[dtype: DType = F32](Movable):
    """A model with its gradients, its optimizer state, its threads and room for one batch.

    Parameters, gradients, moments, the residual stream and all sums are float32; with dtype bfloat16 the matrix products
    read rounded weights and activations, as in PyTorch's autocast.

    The four parameter-sized arenas are reserved at once and cost memory only where they are written: a model that only
    generates pays for its parameters alone.

    Each public method checks its arguments and then has the whole crew run one pass, in which every thread goes through
    the same kernels side by side.
    """

    var config: GPT2Config
    var params: ParameterTensors[F32]
    var grads: ParameterTensors[F32]
    var m: ParameterTensors[F32]
    var v: ParameterTensors[F32]
    var weights: ProductWeights[Self.dtype]
    """The parameters as the matrix products read them."""
    var acts: Activations[Self.dtype]
    var B: Int
    """Sequences of the last forward pass."""
    var T: Int
    """Positions of each."""
    var _weights_are_rounded: Bool
    var _args: _Arguments
    var _crew: Crew

    def __init__(out self, var config: GPT2Config, threads: Int, B: Int, T: Int) raises:
        """Reserves everything that steps of B sequences of T tokens need; parameters are zero.

        Raises:
            If T is longer than the model's context, or the system has no room.
        """
        if B < 1 or T < 1 or T > config.max_seq_len:
            raise Error(
                t"model: B={B}, T={T} but this model takes T from 1 to {config.max_seq_len} (rows of wpe);"
                t" use --seq-len {config.max_seq_len} or less"
            )
        self.params = ParameterTensors[F32](config)
        self.grads = ParameterTensors[F32](config, place=1)
        self.m = ParameterTensors[F32](config, place=2)
        self.v = ParameterTensors[F32](config, place=3)
        self.weights = ProductWeights[Self.dtype](config, self.params)
        self.acts = Activations[Self.dtype](ActivationSizes(config.copy(), B, T, threads))
        self.config = config^
        self.B = 0
        self.T = 0
        self._weights_are_rounded = False
        self._args = _Arguments(
            targets=self.acts.tokens,
            accumulate=False,
            weight=1,
            first_row=0,
            rows=0,
            logits=self.acts.logits,
            settings=AdamW(0, 0, 0, 0, 0),
            step=0,
            grad_scale=1,
            decay_all=False,
            seed=0,
            dropout=Dropout(),
        )
        self._crew = Crew(threads)

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    # ----- the passes, as callers see them

    def initialize(mut self, seed: Int):
        """Sets the parameters to GPT-2's random initialisation."""
        self._args.seed = seed
        self._run(_initialize_job[Self.dtype])
        self._weights_are_rounded = False

    def forward(mut self, tokens: Tokens, B: Int, T: Int, dropout: Dropout = Dropout()) raises:
        """Runs the blocks on tokens (B,T), up to and with the final layernorm.

        With dropout, this pass and the `backward` that belongs to it leave out the elements that its key chooses, in the
        places of GPT-2: embedding, attention probabilities, and what each half of a block adds to the residual stream.

        Raises:
            If the batch does not fit the plan or a token is not in the vocabulary.
        """
        if B < 1 or T < 1 or B * T > self.acts.rows or T > self.acts.max_seq_len:
            raise Error(
                t"forward: B={B}, T={T} but the model was planned for {self.acts.rows} positions and"
                t" T of at most {self.acts.max_seq_len}"
            )
        self._check_tokens("forward", tokens, B * T)
        self.B = B
        self.T = T
        self._args.dropout = dropout
        for i in range(B * T):
            self.acts.tokens[i] = tokens[i]
        comptime if Self.dtype != F32:
            if not self._weights_are_rounded:
                self._run(_round_weights_job[Self.dtype])
                self._weights_are_rounded = True
        self._run(_forward_job[Self.dtype])

    def logits(mut self, first_row: Int, rows: Int, output: Tensor[F32]) raises:
        """Computes the logits of positions first_row .. first_row + rows - 1 of the last forward pass.

        Output (rows,V): without the vocabulary's padding. Valid until `backward`, which reuses the memory.

        Raises:
            If the last forward pass had no such positions.
        """
        if first_row < 0 or rows < 1 or first_row + rows > self.B * self.T:
            raise Error(t"logits: rows {first_row} .. {first_row + rows - 1} of {self.B * self.T}")
        self._args.first_row = first_row
        self._args.rows = rows
        self._args.logits = output
        self._run(_logits_job[Self.dtype])

    def loss(mut self, targets: Tokens) raises -> Float32:
        """Computes the mean cross entropy of the last forward pass against targets (B,T), without gradients.

        Raises:
            If a target is not in the vocabulary.
        """
        self._check_tokens("loss", targets, self.B * self.T)
        self._args.targets = targets
        self._run(_loss_job[Self.dtype])
        return self._mean_loss()

    def losses(mut self, targets: Tokens) raises -> Tensor[F32]:
        """Computes the cross entropy at each position of the last forward pass against targets (B,T).

        Positions with a negative target are left out and cost nothing.

        Returns:
            (B,T), zero where a position is left out. Valid until the next pass.

        Raises:
            If a target is not in the vocabulary.
        """
        var losses = self.acts.losses.slice(0, self.B * self.T)
        for i in range(losses.size):
            if targets[i] >= 0:
                self._check_tokens("losses", targets.slice(i, 1), 1)
        losses.fill(0)
        self._args.targets = targets
        self._run(_loss_job[Self.dtype])
        return losses

    def backward(mut self, targets: Tokens, accumulate: Bool = False, weight: Float32 = 1) raises -> Float32:
        """Computes the gradients of weight * mean cross entropy against targets (B,T), after `forward`.

        Sets `grads`, or adds to them with `accumulate`: a batch in n pieces is n calls with weight 1/n.

        Returns:
            The mean cross entropy, not weighted.

        Raises:
            If a target is not in the vocabulary.
        """
        self._check_tokens("backward", targets, self.B * self.T)
        self._args.targets = targets
        self._args.accumulate = accumulate
        self._args.weight = weight
        self._run(_backward_job[Self.dtype])
        return self._mean_loss()

    def gradient_norm(mut self) -> Float32:
        """Computes the norm of the gradient over all tensors. `update` returns it too, but after the fact."""
        self._run(_norm_job[Self.dtype])
        return norm_of_blocks(self.acts.norm_blocks)

    def update(mut self, settings: AdamW, step: Int, grad_scale: Float32 = 1, decay_all: Bool = False) -> Float32:
        """Takes one AdamW step with grad_scale times the gradients of the last `backward`; `step` counts from 1.

        Weight decay applies to matrices and embeddings, as in llm.c's CUDA program; with `decay_all` to every tensor, as in
        its CPU program.

        Returns:
            The norm of the gradient over all tensors, not scaled.
        """
        self._args.settings = settings
        self._args.step = step
        self._args.grad_scale = grad_scale
        self._args.decay_all = decay_all
        self._run(_update_job[Self.dtype])
        self._weights_are_rounded = True
        return norm_of_blocks(self.acts.norm_blocks)

    def num_threads(self) -> Int:
        """Counts the threads that work on a pass."""
        return self._crew.size

    def take_events(self, member: Int) -> List[Event]:
        """Returns what a thread has done since the last call; nothing unless built with TRACE."""
        return self._crew.take_events(member)

    def _run(mut self, job: Job):
        self._crew.run_job(job, Int(Pointer(to=self)))

    # ----- forward, in every thread

    def _forward(self, team: Team):
        ref acts = self.acts
        var C = self.config.channels
        embedding_forward(team, acts.residual, acts.tokens, self.params[WTE], self.params[WPE], self.B, self.T, C)
        var dropout = self._args.dropout
        if dropout.is_on():
            var x = self._residual(0)
            apply_dropout(team, x, x, dropout)
        for l in range(self.config.num_layers):
            self._forward_block(team, l)
        layernorm_forward(
            team,
            acts.norm,
            acts.lnf_mean,
            acts.lnf_rstd,
            self._residual(self.config.num_layers),
            self.params[LNFW],
            self.params[LNFB],
            self.B * self.T,
            C,
        )

    def _forward_block(self, team: Team, l: Int):
        ref acts = self.acts
        ref params = self.params
        var workspace = acts.gemm_workspace
        var rows = self.B * self.T
        var C = self.config.channels
        var NH = self.config.num_heads
        var x = self._residual(l)
        var x_mid = self._layer(acts.residual_mid, l, C)
        var x_out = self._residual(l + 1)
        var qkv = self._layer(acts.qkv, l, 3 * C)
        var att = self._layer(acts.attention, l, C)
        var fc = self._layer(acts.fc, l, 4 * C)
        var lse = self._layer(acts.logsumexp, l, NH)
        var ln1_mean = self._layer(acts.ln1_mean, l, 1)
        var ln1_rstd = self._layer(acts.ln1_rstd, l, 1)
        var ln2_mean = self._layer(acts.ln2_mean, l, 1)
        var ln2_rstd = self._layer(acts.ln2_rstd, l, 1)

        layernorm_forward(team, acts.norm, ln1_mean, ln1_rstd, x, params.layer(LN1W, l), params.layer(LN1B, l), rows, C)
        var qkv_bias = Bias(params.layer(QKVB, l))
        linear_forward(team, workspace, qkv, acts.norm, self.weights.layer(QKVW, l), rows, C, 3 * C, qkv_bias)
        var dropout = self._dropout(l, _IN_ATTENTION)
        attention_forward(team, acts.attention_workspace, att, lse, qkv, self.B, self.T, C, NH, dropout)
        self._add_linear(team, x_mid, x, att, ATTPROJW, ATTPROJB, l, C, self._dropout(l, _AFTER_ATTENTION))

        layernorm_forward(
            team, acts.norm, ln2_mean, ln2_rstd, x_mid, params.layer(LN2W, l), params.layer(LN2B, l), rows, C
        )
        var fc_gelu = BiasGelu(params.layer(FCB, l), fc, 4 * C)
        linear_forward(team, workspace, acts.gelu, acts.norm, self.weights.layer(FCW, l), rows, C, 4 * C, fc_gelu)
        self._add_linear(team, x_out, x_mid, acts.gelu, FCPROJW, FCPROJB, l, 4 * C, self._dropout(l, _AFTER_MLP))

    def _add_linear(
        self,
        team: Team,
        output: Tensor[F32],
        residual: Tensor[F32],
        inp: Tensor[Self.dtype],
        weight: Int,
        bias: Int,
        l: Int,
        width: Int,
        dropout: Dropout,
    ):
        """Computes output = residual + dropout(inp @ weight^T + bias). inp (B*T,width), the others (B*T,C)."""
        var workspace = self.acts.gemm_workspace
        var rows = self.B * self.T
        var C = self.config.channels
        var matrix = self.weights.layer(weight, l)
        if dropout.is_on():
            # Backward's scratch is free in forward.
            var product = self.acts.dnarrow.slice(0, rows * C)
            linear_forward(team, workspace, product, inp, matrix, rows, width, C, Plain())
            residual_dropout(team, output, residual, product, self.params.layer(bias, l), rows, C, dropout)
        else:
            var epilogue = BiasResidual(self.params.layer(bias, l), residual, C)
            linear_forward(team, workspace, output, inp, matrix, rows, width, C, epilogue)

    def _loss(self, team: Team, targets: Tokens):
        ref acts = self.acts
        var rows = self.B * self.T
        var Vp = self.config.padded_vocab_size
        var chunk = min(rows, acts.logits.size // Vp)
        var first = 0
        while first < rows:
            var count = _leading_targets(targets.slice(first, min(chunk, rows - first)))
            if count == 0:
                first += 1
                continue
            self._logits(team, first, count, acts.logits, Vp)
            cross_entropy_forward(
                team,
                acts.losses.slice(first, count),
                acts.logits,
                targets.slice(first, count),
                count,
                self.config.vocab_size,
                Vp,
            )
            first += count

    def _logits(self, team: Team, first_row: Int, rows: Int, logits: Tensor[F32], stride: Int):
        ref acts = self.acts
        var C = self.config.channels
        var norm = acts.norm.slice(first_row * C, rows * C)
        gemm(
            team,
            acts.gemm_workspace,
            rows,
            self.config.vocab_size,
            C,
            row_major(norm, C),
            row_major(self.weights[WTE], C).transposed(),
            logits,
            stride,
            Plain(),
        )

    # ----- backward, in every thread

    def _backward(self, team: Team, targets: Tokens, accumulate: Bool, weight: Float32):
        self._backward_head(team, targets, accumulate, weight)
        for l in range(self.config.num_layers - 1, -1, -1):
            self._backward_block(team, l, accumulate)
        if self._args.dropout.is_on():
            var dx = self.acts.dresidual.slice(0, self.B * self.T * self.config.channels)
            apply_dropout(team, dx, dx, self._args.dropout)
        embedding_backward(
            team,
            self.grads[WTE],
            self.grads[WPE],
            self.acts.dresidual,
            self.acts.tokens,
            self.B,
            self.T,
            self.config.channels,
            accumulate,
        )

    def _backward_head(self, team: Team, targets: Tokens, accumulate: Bool, weight: Float32):
        ref acts = self.acts
        var rows = self.B * self.T
        var C = self.config.channels
        var V = self.config.vocab_size
        var Vp = self.config.padded_vocab_size
        var chunk = min(rows, acts.logits.size // Vp)
        for first in range(0, rows, chunk):
            var count = min(chunk, rows - first)
            var norm = acts.norm.slice(first * C, count * C)
            self._logits(team, first, count, acts.logits, Vp)
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
            gemm(
                team,
                acts.gemm_workspace,
                count,
                C,
                V,
                dlogits,
                row_major(self.weights[WTE], C),
                acts.dnarrow.slice(first * C, count * C),
                C,
                Plain(),
            )
            gemm(
                team,
                acts.gemm_workspace,
                V,
                C,
                count,
                dlogits.transposed(),
                row_major(norm, C),
                self.grads[WTE],
                C,
                Plain(),
                accumulate or first > 0,
            )
        layernorm_backward[add_to_dinp=False](
            team,
            acts.dresidual,
            acts.dresidual_rounded,
            self.grads[LNFW],
            self.grads[LNFB],
            acts.dnarrow,
            self._residual(self.config.num_layers),
            acts.lnf_mean,
            acts.lnf_rstd,
            self.params[LNFW],
            rows,
            C,
            accumulate,
        )

    def _backward_block(self, team: Team, l: Int, accumulate: Bool):
        ref acts = self.acts
        ref params = self.params
        ref grads = self.grads
        var workspace = acts.gemm_workspace
        var rows = self.B * self.T
        var C = self.config.channels
        var NH = self.config.num_heads
        var x = self._residual(l)
        var x_mid = self._layer(acts.residual_mid, l, C)
        var qkv = self._layer(acts.qkv, l, 3 * C)
        var att = self._layer(acts.attention, l, C)
        var fc = self._layer(acts.fc, l, 4 * C)
        var lse = self._layer(acts.logsumexp, l, NH)
        var ln1_mean = self._layer(acts.ln1_mean, l, 1)
        var ln1_rstd = self._layer(acts.ln1_rstd, l, 1)
        var ln2_mean = self._layer(acts.ln2_mean, l, 1)
        var ln2_rstd = self._layer(acts.ln2_rstd, l, 1)
        var dx = acts.dresidual_rounded
        var dfc = acts.dwide
        var dqkv = acts.dwide
        var dnorm = acts.dnarrow
        var datt = acts.dnarrow

        # MLP
        var gelu_grad = GeluBackward(fc, acts.gelu, 4 * C)
        var dproj = self._dropout_backward(team, dx, self._dropout(l, _AFTER_MLP))
        linear_backward_input(team, workspace, dfc, dproj, self.weights.layer(FCPROJW, l), rows, 4 * C, C, gelu_grad)
        linear_backward_weight(team, workspace, grads.layer(FCPROJW, l), dproj, acts.gelu, rows, 4 * C, C, accumulate)
        linear_backward_bias(team, grads.layer(FCPROJB, l), dproj, rows, C, accumulate)
        layernorm_recompute(
            team, acts.norm, x_mid, ln2_mean, ln2_rstd, params.layer(LN2W, l), params.layer(LN2B, l), rows, C
        )
        linear_backward_weight(team, workspace, grads.layer(FCW, l), dfc, acts.norm, rows, C, 4 * C, accumulate)
        linear_backward_bias(team, grads.layer(FCB, l), dfc, rows, 4 * C, accumulate)
        linear_backward_input(team, workspace, dnorm, dfc, self.weights.layer(FCW, l), rows, C, 4 * C, Plain())
        layernorm_backward(
            team,
            acts.dresidual,
            dx,
            grads.layer(LN2W, l),
            grads.layer(LN2B, l),
            dnorm,
            x_mid,
            ln2_mean,
            ln2_rstd,
            params.layer(LN2W, l),
            rows,
            C,
            accumulate,
        )

        # Attention
        dproj = self._dropout_backward(team, dx, self._dropout(l, _AFTER_ATTENTION))
        linear_backward_weight(team, workspace, grads.layer(ATTPROJW, l), dproj, att, rows, C, C, accumulate)
        linear_backward_bias(team, grads.layer(ATTPROJB, l), dproj, rows, C, accumulate)
        linear_backward_input(team, workspace, datt, dproj, self.weights.layer(ATTPROJW, l), rows, C, C, Plain())
        var dropout = self._dropout(l, _IN_ATTENTION)
        attention_backward(team, acts.attention_workspace, dqkv, datt, qkv, att, lse, self.B, self.T, C, NH, dropout)
        layernorm_recompute(
            team, acts.norm, x, ln1_mean, ln1_rstd, params.layer(LN1W, l), params.layer(LN1B, l), rows, C
        )
        linear_backward_weight(team, workspace, grads.layer(QKVW, l), dqkv, acts.norm, rows, C, 3 * C, accumulate)
        linear_backward_bias(team, grads.layer(QKVB, l), dqkv, rows, 3 * C, accumulate)
        linear_backward_input(team, workspace, dnorm, dqkv, self.weights.layer(QKVW, l), rows, C, 3 * C, Plain())
        layernorm_backward(
            team,
            acts.dresidual,
            dx,
            grads.layer(LN1W, l),
            grads.layer(LN1B, l),
            dnorm,
            x,
            ln1_mean,
            ln1_rstd,
            params.layer(LN1W, l),
            rows,
            C,
            accumulate,
        )

    def _dropout_backward(self, team: Team, dout: Tensor[Self.dtype], dropout: Dropout) -> Tensor[Self.dtype]:
        """Returns the gradient of what was dropped from: dout itself if nothing was."""
        if not dropout.is_on():
            return dout
        # Free at both places: the layernorm whose output it holds has been used up, or is computed again afterwards.
        var size = self.B * self.T * self.config.channels
        var dinp = self.acts.norm.slice(0, size)
        apply_dropout(team, dinp, dout.slice(0, size), dropout)
        return dinp

    # ----- helpers

    @always_inline
    def _dropout(self, l: Int, site: Int) -> Dropout:
        """Derives the choice of one place in a block from that of the pass."""
        ref dropout = self._args.dropout
        return Dropout(dropout.rate, draw_at(dropout.key, UInt64(1 + l * _DROPS_PER_BLOCK + site)))

    def _mean_loss(self) -> Float32:
        # In float64 and in order: the same for any number of threads, and exact enough for any batch.
        var sum = Float64(0)
        for i in range(self.B * self.T):
            sum += self.acts.losses[i].cast[DType.float64]()
        return (sum / Float64(self.B * self.T)).cast[F32]()

    @always_inline
    def _layer[type: DType](self, tensor: Tensor[type], l: Int, width: Int) -> Tensor[type]:
        var size = self.B * self.T * width
        return tensor.slice(l * size, size)

    @always_inline
    def _residual(self, l: Int) -> Tensor[F32]:
        return self._layer(self.acts.residual, l, self.config.channels)

    def _check_tokens(self, who: String, tokens: Tokens, count: Int) raises:
        for i in range(count):
            if tokens[i] < 0 or Int(tokens[i]) >= self.config.vocab_size:
                raise Error(
                    t"{who}: token {tokens[i]} at position {i} of the batch is not in this model's vocabulary of"
                    t" {self.config.vocab_size}; use data made with the model's own tokenizer"
                )


def _leading_targets(targets: Tokens) -> Int:
    """Counts the targets before the first negative one, which stands for a position that is left out."""
    for i in range(targets.size):
        if targets[i] < 0:
            return i
    return targets.size


# ----- jobs: what each thread of the crew runs for a pass


@fieldwise_init
struct _Arguments(Movable):
    """Arguments of the pass under way, where every thread finds them."""

    var targets: Tokens
    var accumulate: Bool
    var weight: Float32
    var first_row: Int
    var rows: Int
    var logits: Tensor[F32]
    var settings: AdamW
    var step: Int
    var grad_scale: Float32
    var decay_all: Bool
    var seed: Int
    var dropout: Dropout


@always_inline
def _model[dtype: DType](context: Int) -> ref[MutUntrackedOrigin] GPT2[dtype]:
    return Pointer[GPT2[dtype], MutUntrackedOrigin](unsafe_from_address=context)[]


def _initialize_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    initialize_parameters(team, model.params, model.config, model._args.seed)


def _round_weights_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    for i in range(NUM_TENSORS):
        if is_product_weight(i):
            convert(team, model.weights[i], model.params[i])


def _forward_job[dtype: DType](context: Int, team: Team):
    _model[dtype](context)._forward(team)


def _logits_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    ref args = model._args
    model._logits(team, args.first_row, args.rows, args.logits, model.config.vocab_size)


def _loss_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    model._loss(team, model._args.targets)


def _backward_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    ref args = model._args
    model._backward(team, args.targets, args.accumulate, args.weight)


def _norm_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    var sums = model.acts.norm_blocks
    for i in range(NUM_TENSORS):
        var grads = model.grads[i]
        sum_squares(team, grads, sums)
        var used = num_norm_blocks(grads.size)
        sums = sums.slice(used, sums.size - used)


def _update_job[dtype: DType](context: Int, team: Team):
    ref model = _model[dtype](context)
    ref args = model._args
    var sums = model.acts.norm_blocks
    for i in range(NUM_TENSORS):
        var params = model.params[i]
        var settings = args.settings
        if not (args.decay_all or model.params.specs[i].is_matrix()):
            settings.weight_decay = 0
        if is_product_weight(i):
            adamw_update(
                team,
                params,
                model.weights[i],
                model.grads[i],
                model.m[i],
                model.v[i],
                sums,
                settings,
                args.step,
                args.grad_scale,
            )
        else:
            adamw_update(
                team,
                params,
                params,
                model.grads[i],
                model.m[i],
                model.v[i],
                sums,
                settings,
                args.step,
                args.grad_scale,
            )
        var used = num_norm_blocks(params.size)
        sums = sums.slice(used, sums.size - used)
