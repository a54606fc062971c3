"""GPT-2: a model with its gradients, its threads and room for one batch. What it does with a batch, pass by pass.

The steps of the passes are in `forward.mojo` and `backward.mojo`, the kernels in `cpu/`. The output layer shares its
weights with the token embedding (wte).
"""

from llm.base.memory import Tensor
from llm.base.shared_counter import SharedCounter
from llm.cpu.attention import attention_probabilities
from llm.cpu.cross_entropy import cross_entropy_forward
from llm.cpu.dropout import Dropout
from llm.cpu.gemm import check_product
from llm.cpu.global_norm import norm_of_blocks, num_norm_blocks, parts_of_tensor, sum_squares
from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Crew, Event, Team
from llm.model.activations import ActivationSizes, Activations
from llm.model.backward import backward_block, backward_embedding, backward_head, logits_of_rows
from llm.model.config import GPT2Config
from llm.model.forward import (
    CausalAttention,
    ForwardWeights,
    Products,
    embed,
    final_layernorm,
    forward_block,
    forward_to_gelu,
)
from llm.model.initialize import initialize_parameters
from llm.model.tensors import WPE, WTE, ParameterSpec, ParameterTensors, RoundedWeights

comptime F32 = DType.float32
comptime Tokens = Tensor[DType.int32]

# What the activations hold.
comptime _NOTHING = 0
comptime _FORWARD = 1
comptime _BACKWARD = 2


trait TensorUpdate:
    """How an optimizer changes one parameter tensor by its gradient."""

    comptime COMPUTES_NORM: Bool
    """Whether `update` leaves the sums of squares of the gradient, which it reads anyway."""

    def update[
        dtype: DType
    ](
        self,
        team: Team,
        tensor: Int,
        spec: ParameterSpec,
        start: Int,
        params: Tensor[F32],
        rounded: Tensor[dtype],
        grads: Tensor[F32],
        block_sums: Tensor[F32],
        gemm_workspace: Tensor[F32],
    ):
        """Changes `params`, all layers of a tensor from element `start` on, in place, in every thread of a team.

        All of a tensor, unless the update is that of a part of the blocks.

        If dtype is not float32 and a product reads the tensor, the new values go to `rounded` too (otherwise it is empty).
        block_sums as `sum_squares` writes them; the workspace is that of `gemm`.
        """
        ...


struct GPT2[dtype: DType = F32](Movable):
    """A model with its gradients, its threads and room for one batch.

    Parameters, gradients, the residual stream and all sums are float32; with dtype bfloat16 the matrix products read rounded
    weights and activations, as in PyTorch's autocast.

    Arenas cost memory only where they are written: a model that only evaluates pays for no gradients.

    A pass follows another in the order that has a meaning: `forward`, then any of `logits`, `loss`, `losses`, `hidden_state`
    and `attention`, then `backward`, which uses up what `forward` left, then an update. Every other order is refused.
    """

    var config: GPT2Config
    var params: ParameterTensors[F32]
    """To be read; `write_parameters`, `initialize` and `update` change them."""
    var grads: ParameterTensors[F32]
    var acts: Activations[Self.dtype]
    var B: Int
    """Sequences of the last forward pass."""
    var T: Int
    """Positions of each."""
    var finished: SharedCounter
    """Blocks, from the last one down, that `backward` has finished since the last forward pass."""
    var _rounded: RoundedWeights[Self.dtype]
    var _weights: ForwardWeights[Self.dtype, F32]
    var _rounded_are_stale: Bool
    var _state: Int
    var _has_gradients: Bool
    var _dropout: Dropout
    """Of the last forward pass."""
    var _crew: Crew

    def __init__(out self, var config: GPT2Config, threads: Int, B: Int, T: Int, *, recompute: Bool = False) raises:
        """Reserves everything that passes over B sequences of T tokens need; parameters are zero.

        With `recompute`, blocks keep their input alone and backward computes the rest again: the same bits from a tenth of
        the activations, for about a fifth of a step's time.

        Raises:
            If T is longer than the model's context, the model is too wide for its type, or the system has no room.
        """
        _check_batch(config, B, T)
        # The longest sum that ends in numbers of the model's type: a product with the channels of a position.
        check_product[Self.dtype, Self.dtype](config.channels)
        self.params = ParameterTensors[F32](config)
        self.grads = ParameterTensors[F32](config, place=1)
        self._rounded = RoundedWeights[Self.dtype](config, self.params)
        self._weights = ForwardWeights[Self.dtype, F32](
            config,
            wte=self.params[WTE],
            wpe=self.params[WPE],
            matrices=self._rounded.tensors(),
            vectors=self.params.tensors(),
        )
        self.acts = _planned[Self.dtype](config, B, T, threads, recompute)
        self.config = config^
        self.B = 0
        self.T = 0
        self.finished = SharedCounter()
        self._rounded_are_stale = True
        self._state = _NOTHING
        self._has_gradients = False
        self._dropout = Dropout()
        self._crew = Crew(threads)

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def plan(mut self, B: Int, T: Int) raises:
        """Makes room for passes over B sequences of T tokens in place of what was planned; the last pass is forgotten.

        Raises:
            As the constructor does; then the model is as before.
        """
        _check_batch(self.config, B, T)
        self.acts = _planned[Self.dtype](self.config, B, T, self.num_threads(), self.acts.recompute)
        self._state = _NOTHING

    # ----- parameters

    def initialize(mut self, seed: Int) raises:
        """Sets the parameters to GPT-2's random initialisation."""

        def one_pass(team: Team) {imm}:
            initialize_parameters(team, self.params, self.config, seed)

        self._run(one_pass)
        self._parameters_changed()

    def write_parameters[Writer: def(ParameterTensors[F32]) raises -> None](mut self, writer: Writer) raises:
        """Has `writer` change the parameters: the one way to do so from outside, because bfloat16 models keep copies.

        Raises:
            What the writer raises.
        """
        self._parameters_changed()
        writer(self.params)

    def update[
        U: TensorUpdate, //
    ](mut self, optimizer: U, blocks: List[Tuple[Int, Int]] = [(0, Int.MAX)]) raises -> Float32:
        """Has an optimizer change all parameters by the gradients of the last `backward`; or those in some ranges
        [first, last) of the blocks that norms are summed over, if its `update` computes the norm.

        Returns:
            The norm of the gradient over all tensors, if it has the sums of all blocks.

        Raises:
            If there are no gradients.
        """
        comptime if not U.COMPUTES_NORM:
            _ = self.gradient_norm()
        self._check_gradients("update")

        def one_pass(team: Team) {imm}:
            var sums = self.acts.norm_blocks
            var before = 0
            for i, ref spec in enumerate(self.params.specs):
                var rounded = self._rounded[i]
                for part in parts_of_tensor(self.params[i].size, before, blocks):
                    optimizer.update(
                        team,
                        i,
                        spec,
                        part.start,
                        self.params[i].slice(part.start, part.size),
                        rounded.slice(part.start, part.size) if rounded.size > 0 else rounded,
                        self.grads[i].slice(part.start, part.size),
                        sums.slice(part.first_block, part.blocks),
                        self.acts.gemm_workspace,
                    )
                before += num_norm_blocks(self.params[i].size)

        self._run(one_pass)
        self._parameters_changed()
        self._rounded_are_stale = False
        return norm_of_blocks(self.acts.norm_blocks)

    # ----- passes

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
        self._check_size("forward", tokens, B * T)
        self._check_tokens("forward", tokens)
        self._state = _NOTHING
        self.B = B
        self.T = T
        self._dropout = dropout
        self.finished.set(0)
        for i in range(B * T):
            self.acts.tokens[i] = tokens[i]

        def one_pass(team: Team) {imm}:
            comptime if Self.dtype != F32:
                if self._rounded_are_stale:
                    self._round_weights(team)
            self._forward(team)

        self._run(one_pass)
        self._rounded_are_stale = False
        self._state = _FORWARD

    def logits(mut self, first_row: Int, rows: Int, output: Tensor[F32]) raises:
        """Computes the logits of positions first_row .. first_row + rows - 1 of the last forward pass.

        Output (rows,V): without the vocabulary's padding.

        Raises:
            If the last pass was no forward pass or had no such positions, or the output has another size.
        """
        self._check_forward("logits")
        if first_row < 0 or rows < 1 or first_row + rows > self.B * self.T:
            raise Error(t"logits: rows {first_row} .. {first_row + rows - 1} of {self.B * self.T}")
        if output.size != rows * self.config.vocab_size:
            raise Error(
                t"logits: expected room for {rows} rows of {self.config.vocab_size} logits, found {output.size} scalars"
            )

        def one_pass(team: Team) {imm}:
            logits_of_rows(team, self.config, self._weights, self.acts, first_row, rows, output, self.config.vocab_size)

        self._run(one_pass)

    def loss(mut self, targets: Tokens) raises -> Float32:
        """Computes the mean cross entropy of the last forward pass against targets (B,T), without gradients.

        Raises:
            If the last pass was no forward pass, or the targets have another size or are not in the vocabulary.
        """
        self._check_forward("loss")
        self._check_size("loss", targets, self.B * self.T)
        self._check_tokens("loss", targets)
        self._run_loss(targets)
        return self._mean_loss()

    def losses(mut self, targets: Tokens) raises -> Tensor[F32]:
        """Computes the cross entropy at each position of the last forward pass against targets (B,T).

        Positions with a negative target are left out and cost nothing.

        Returns:
            (B,T), zero where a position is left out. Valid until the next pass.

        Raises:
            If the last pass was no forward pass, or the targets have another size or are not in the vocabulary.
        """
        self._check_forward("losses")
        self._check_size("losses", targets, self.B * self.T)
        var losses = self.acts.losses.slice(0, self.B * self.T)
        for i in range(losses.size):
            if targets[i] >= 0:
                self._check_tokens("losses", targets.slice(i, 1))
        losses.fill(0)
        self._run_loss(targets)
        return losses

    def backward(mut self, targets: Tokens, accumulate: Bool = False, weight: Float32 = 1) raises -> Float32:
        """Computes the gradients of weight * mean cross entropy against targets (B,T), after `forward`.

        Sets `grads`, or adds to them with `accumulate`: a batch in n pieces is n calls with weight 1/n.

        Returns:
            The mean cross entropy, not weighted.

        Raises:
            If the last pass was no forward pass, the targets have another size or are not in the vocabulary, or there is
            nothing to add to.
        """
        self._check_forward("backward")
        self._check_size("backward", targets, self.B * self.T)
        self._check_tokens("backward", targets)
        if accumulate:
            self._check_gradients("backward")

        def one_pass(team: Team) {imm}:
            self._backward(team, targets, accumulate, weight)

        self._state = _BACKWARD
        self._run(one_pass)
        self._has_gradients = True
        return self._mean_loss()

    def gradient_norm(mut self, blocks: List[Tuple[Int, Int]] = [(0, Int.MAX)]) raises -> Float32:
        """Computes the norm of the gradient over all tensors. `update` returns it too, but after the fact.

        Of the blocks of all tensors only those in ranges [first, last) are summed; the norm takes the others' sums as they are.

        Raises:
            If there are no gradients.
        """
        self._check_gradients("gradient_norm")

        def one_pass(team: Team) {imm}:
            var sums = self.acts.norm_blocks
            var before = 0
            for i in range(len(self.params.specs)):
                for part in parts_of_tensor(self.grads[i].size, before, blocks):
                    var grads = self.grads[i].slice(part.start, part.size)
                    sum_squares(team, grads, sums.slice(part.first_block, part.blocks))
                before += num_norm_blocks(self.grads[i].size)

        self._run(one_pass)
        return norm_of_blocks(self.acts.norm_blocks)

    # ----- looking inside

    def hidden_state(self, l: Int) raises -> Tensor[F32]:
        """Views the residual stream (B,T,C) of the last forward pass: what goes into block l, or with l = L out of the last.

        Valid until the next pass.

        Raises:
            If the last pass was no forward pass, or there is no such block.
        """
        self._check_forward("hidden_state")
        if l < 0 or l > self.config.num_layers:
            raise Error(t"hidden_state: expected 0 to {self.config.num_layers}, got {l}")
        return self.acts.layer(self.acts.residual, l, self.B * self.T * self.config.channels)

    def attention(mut self, b: Int, l: Int, output: Tensor[F32]) raises:
        """Computes which positions those of sequence b of the last forward pass look at in block l.

        Output (NH,T,T): each row a probability distribution, zero above the diagonal; dropout is left out. Training never
        stores it: meant for short texts.

        Raises:
            If the last pass was no forward pass, there is no such sequence or block, the output has another size, or the
            model recomputes: then of all blocks the last one's queries and keys are there.
        """
        self._check_forward("attention")
        var T, C, NH = self.T, self.config.channels, self.config.num_heads
        if b < 0 or b >= self.B or l < 0 or l >= self.config.num_layers:
            raise Error(
                t"attention: expected a sequence below {self.B} and a block below {self.config.num_layers}, got {b} and"
                t" {l}"
            )
        if self.acts.recompute and l < self.config.num_layers - 1:
            raise Error(
                t"attention: a model that recomputes keeps block {self.config.num_layers - 1} alone, asked for block"
                t" {l}; make the model without recompute"
            )
        if output.size != NH * T * T:
            raise Error(
                t"attention: expected room for {NH} heads of {T} x {T} probabilities, found {output.size} scalars"
            )
        var rows = self.B * T
        var qkv = self.acts.kept(self.acts.qkv, l, rows * 3 * C).slice(b * T * 3 * C, T * 3 * C)
        var lse = self.acts.kept(self.acts.logsumexp, l, rows * NH).slice(b * T * NH, T * NH)

        def one_pass(team: Team) {imm}:
            attention_probabilities(team, output, qkv, lse, T, C, NH)

        self._run(one_pass)

    # ----- threads

    def num_threads(self) -> Int:
        """Counts the threads that work on a pass."""
        return self._crew.size

    def take_events(self, member: Int) -> List[Event]:
        """Returns what a thread has done since the last call; nothing unless built with TRACE."""
        return self._crew.take_events(member)

    def _run[Body: def(Team) -> None](self, body: Body) raises:
        self._crew.run(body)

    # ----- in every thread

    def _round_weights(self, team: Team):
        for i, ref spec in enumerate(self.params.specs):
            if spec.is_product:
                convert(team, self._rounded[i], self.params[i])

    def _forward(self, team: Team):
        ref acts = self.acts
        var C = self.config.channels
        var rows = self.B * self.T
        var attention = self._attention()
        var products = self._products()
        var x = acts.layer(acts.residual, 0, rows * C)
        var positions = acts.positions.slice(0, self.T)
        embed(team, self._weights, x, acts.tokens.slice(0, rows), positions, C, self._dropout)
        for l in range(self.config.num_layers):
            var block = acts.block(l, rows, C)
            forward_block(team, self.config, self._weights, l, rows, block, attention, products, self._dropout)
        x = acts.layer(acts.residual, self.config.num_layers, rows * C)
        final_layernorm(team, self._weights, acts.norm, acts.lnf_mean, acts.lnf_rstd, x, rows, C)

    def _backward(self, team: Team, targets: Tokens, accumulate: Bool, weight: Float32):
        backward_head(team, self.config, self._weights, self.grads, self.acts, targets, accumulate, weight)
        var rows = self.B * self.T
        var last = self.config.num_layers - 1
        for l in range(last, -1, -1):
            # The last block's activations are still there.
            if self.acts.recompute and l < last:
                _ = forward_to_gelu(
                    team,
                    self.config,
                    self._weights,
                    l,
                    rows,
                    self.acts.block(l, rows, self.config.channels),
                    self._attention(),
                    self._products(),
                    self._dropout,
                )
            backward_block(
                team,
                self.config,
                self._weights,
                self.grads,
                self.acts,
                l,
                self.B,
                self.T,
                accumulate,
                self._dropout,
            )
            # Kernels end with a barrier.
            if team.leads():
                self.finished.set(last - l + 1)
        backward_embedding(team, self.grads, self.acts, self.B, self.T, self.config.channels, accumulate, self._dropout)

    def _attention(self) -> CausalAttention:
        ref acts = self.acts
        return CausalAttention(acts.attention_workspace, acts.logsumexp, acts.recompute, self.B, self.T, self._dropout)

    def _products(self) -> Products[Self.dtype, Self.dtype, training=True]:
        # This scratch of backward is free in forward and between two blocks of backward.
        return Products[Self.dtype, Self.dtype, training=True](self.acts.gemm_workspace, self.acts.dnarrow, few=False)

    def _run_loss(mut self, targets: Tokens) raises:
        def one_pass(team: Team) {imm}:
            self._loss(team, targets)

        self._run(one_pass)

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
            logits_of_rows(team, self.config, self._weights, acts, first, count, acts.logits, Vp)
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

    # ----- checks

    def _parameters_changed(mut self):
        self._rounded_are_stale = True
        self._state = _NOTHING
        self._has_gradients = False

    def _mean_loss(self) -> Float32:
        # In float64 and in order: the same for any number of threads, and exact enough for any batch.
        var sum = Float64(0)
        for i in range(self.B * self.T):
            sum += self.acts.losses[i].cast[DType.float64]()
        return (sum / Float64(self.B * self.T)).cast[F32]()

    def _check_forward(self, who: StaticString) raises:
        if self._state != _FORWARD:
            var last = (
                "`backward`, which reuses its memory" if self._state == _BACKWARD else "nothing, or new parameters"
            )
            raise Error(t"{who}: expected a forward pass just before, found {last}; call `forward` first")

    def _check_gradients(self, who: StaticString) raises:
        if not self._has_gradients:
            raise Error(
                t"{who}: expected gradients of these parameters, found none; call `forward` and `backward` first"
            )

    def _check_size(self, who: StaticString, tokens: Tokens, count: Int) raises:
        if tokens.size != count:
            raise Error(t"{who}: expected {count} tokens (B*T), found {tokens.size}")

    def _check_tokens(self, who: StaticString, tokens: Tokens) raises:
        for i in range(tokens.size):
            if tokens[i] < 0 or Int(tokens[i]) >= self.config.vocab_size:
                raise Error(
                    t"{who}: token {tokens[i]} at position {i} of the batch is not in this model's vocabulary of"
                    t" {self.config.vocab_size}; use data made with the model's own tokenizer"
                )


def _check_batch(config: GPT2Config, B: Int, T: Int) raises:
    if B < 1 or T < 1 or T > config.max_seq_len:
        raise Error(
            t"model: B={B}, T={T} but this model takes T from 1 to {config.max_seq_len} (rows of wpe);"
            t" use --seq-len {config.max_seq_len} or less"
        )


def _planned[
    dtype: DType
](config: GPT2Config, B: Int, T: Int, threads: Int, recompute: Bool) raises -> Activations[dtype]:
    var acts = Activations[dtype](ActivationSizes(config.copy(), B, T, threads, recompute))
    for t in range(T):
        acts.positions[t] = Int32(t)
    return acts^


def _leading_targets(targets: Tokens) -> Int:
    """Counts the targets before the first negative one, which stands for a position that is left out."""
    for i in range(targets.size):
        if targets[i] < 0:
            return i
    return targets.size
