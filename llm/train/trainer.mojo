"""One step of training: accumulate over passes, look for outliers, clip, update. And validation."""

from std.math import isfinite
from std.time import perf_counter_ns

from llm.base.formatting import fixed
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.base.random import draw_at, scramble
from llm.cpu.dropout import Dropout
from llm.data.loader import DataLoader
from llm.eval.watcher import Unwatched, Watcher
from llm.model.gpt2 import GPT2
from llm.cpu.global_norm import norm_of_blocks
from llm.model.tensors import ParameterTensors
from llm.optim.optimizer import Optimizer
from llm.train.config import TrainConfig
from llm.train.replicas import STEP, VALIDATE, Replicas
from llm.train.run_state import RunState
from llm.train.step_record import StepRecord

comptime F32 = DType.float32
comptime F64 = DType.float64
comptime I32 = DType.int32


struct Trainer[dtype: DType, O: Optimizer](Movable):
    """A model with its optimizer, its data and all that a step depends on."""

    var config: TrainConfig
    var state: RunState
    var model: GPT2[Self.dtype]
    var optimizer: Self.O
    var train_data: DataLoader
    var val_data: DataLoader
    var replicas: Replicas
    var _dropout_key: UInt64
    var _waited: Int
    """Nanoseconds of this step in which this rank had nothing to do but wait for messages."""
    var _inputs: Tensor[I32]
    var _targets: Tensor[I32]
    var _arena: Arena

    def __init__(
        out self,
        var config: TrainConfig,
        var model: GPT2[Self.dtype],
        var optimizer: Self.O,
        var train_data: DataLoader,
        var val_data: DataLoader,
        var replicas: Replicas,
    ) raises:
        """Starts a run at its first step, with the parameters that the model has.

        Of several replicas `train_data` is that of the first in this process.

        Raises:
            If a setting makes no sense, or the system has no room.
        """
        config.validate()
        # The random windows have the seed as it is.
        self._dropout_key = scramble(~UInt64(config.seed))
        self._waited = 0
        var tokens = max(train_data.B * train_data.T, val_data.B * val_data.T)
        self._arena = Arena(2 * aligned_bytes[I32](tokens))
        self._inputs = self._arena.carve[I32](tokens)
        self._targets = self._arena.carve[I32](tokens)
        self.state = RunState(train_data.position(), config.seed)
        self.state.optimizer = optimizer.name()
        self.config = config^
        self.model = model^
        self.optimizer = optimizer^
        self.train_data = train_data^
        self.val_data = val_data^
        self.state.replicas = replicas.count
        self.replicas = replicas^

    def __init__(
        out self,
        var config: TrainConfig,
        var model: GPT2[Self.dtype],
        var optimizer: Self.O,
        var train_data: DataLoader,
        var val_data: DataLoader,
    ) raises:
        """Starts a run of one replica.

        Raises:
            If a setting makes no sense, or the system has no room.
        """
        self = Self(config^, model^, optimizer^, train_data^, val_data^, Replicas())

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def step(mut self, rate: Optional[Float64] = None) raises -> StepRecord:
        """Takes the next step, or skips its update if it is an outlier. The learning rate is the schedule's, or `rate`.

        Raises:
            If the model has diverged, or the data has a token that the model does not know or has changed.
        """
        var start = perf_counter_ns()
        var learning_rate = rate.or_else(self.config.schedule.learning_rate(self.state.step, self.config.steps))
        self.replicas.lead(STEP, self.config.steps, Int(learning_rate.to_bits()))
        self._mark()
        var number = self.state.step + 1
        var loss = self._gradients(number)
        _expect_finite(number, "the loss", loss)
        var loss_z = self.state.losses.z_score(loss.cast[F64]())
        var grad_clip = Float32(self.config.grad_clip)
        var skipped = _beyond(loss_z, self.config.skip_loss_z)
        # The norm comes with the update, unless the update depends on it.
        var norm: Float32
        var norm_z: Optional[Float64]
        if skipped or grad_clip > 0 or self.config.skip_norm_z > 0:
            norm = self._norm()
            norm_z = self.state.norms.z_score(norm.cast[F64]())
            skipped = skipped or _beyond(norm_z, self.config.skip_norm_z)
            if isfinite(norm) and not skipped:
                var clips = grad_clip > 0 and norm > grad_clip
                var scale = grad_clip / norm if clips else Float32(1)
                norm = self._update(number, learning_rate, scale)
        else:
            norm = self._update(number, learning_rate, 1)
            norm_z = self.state.norms.z_score(norm.cast[F64]())
        if not isfinite(norm):
            raise Error(
                t"step {number}: the gradient's norm is {norm}: the model has diverged; use a lower --learning-rate or"
                t" a --warmup"
            )
        self.state.step = number
        self.state.evaluated = False
        return StepRecord(
            step=number,
            steps=self.config.steps,
            loss=loss,
            norm=norm,
            learning_rate=learning_rate,
            tokens=self.config.all_passes() * self.train_data.B * self.train_data.T,
            milliseconds=Float64(perf_counter_ns() - start) / 1e6,
            shard=self.train_data.current_shard,
            sample=self.train_data.current_sample,
            epoch=self.train_data.epoch,
            loss_z=loss_z,
            norm_z=norm_z,
            skipped=skipped,
            waited_ms=Float64(self._waited) / 1e6 if self.replicas.ranks.size > 1 else Optional[Float64](None),
        )

    def validate[W: Watcher = Unwatched](mut self, var watcher: W = Unwatched()) raises -> Optional[Float32]:
        """Returns the mean loss over the first batches of the validation data; nothing if the watcher ended it.

        Raises:
            If there is no batch, the data has a token that the model does not know or has changed, or the loss is not
            finite.
        """
        var batches = self.config.val_batches if self.config.val_batches >= 0 else self.val_data.num_batches
        if batches == 0:
            raise Error("validate: expected val_batches of at least 1, or -1 for all, got 0")
        self.replicas.lead(VALIDATE)
        ref data = self.val_data
        var inputs = self._inputs.slice(0, data.B * data.T)
        var targets = self._targets.slice(0, data.B * data.T)
        data.reset()
        var ranks = self.replicas.ranks.size
        var sum = Float64(0)
        for first in range(0, batches, ranks):
            # Each rank takes one of as many batches as there are ranks, and learns the losses of the others'.
            var count = min(ranks, batches - first)
            var own: List[Float64] = [0, Float64(Int(watcher.stopped()))]
            if own[1] == 0 or ranks > 1:
                for i in range(count):
                    data.next_batch(inputs, targets)
                    if i == self.replicas.ranks.rank:
                        self.model.forward(inputs, data.B, data.T)
                        own[0] = self.model.loss(targets).cast[F64]()
            var all = self.replicas.ranks.numbers(own)
            if all[1] != 0:
                return None
            for i in range(count):
                sum += all[2 * i]
            watcher.show(first + count, batches, String(t"loss {fixed(sum / Float64(first + count), 4)}"))
        var loss = Float32(sum / Float64(batches))
        _expect_finite(self.state.step, "the validation loss", loss)
        return loss

    def check_model(mut self) raises:
        """Raises if the last update has ruined the model: by the loss on a batch, which a checkpoint cannot tell.

        The batch is the one that was used last; a model that has taken no step since it was loaded is good.
        """
        ref data = self.train_data
        var inputs = self._inputs.slice(0, data.B * data.T)
        self.model.forward(inputs, data.B, data.T)
        _expect_finite(self.state.step, "the loss after it", self.model.loss(self._targets.slice(0, data.B * data.T)))

    def rewind(mut self):
        """Goes back to the data of the last step, whatever has failed since."""
        self.train_data.rewind()
        for i in range(len(self.replicas.loaders)):
            self.replicas.loaders[i].rewind()

    def _mark(mut self) raises:
        """Notes where the data of this step begins."""
        self.train_data.mark()
        for i in range(len(self.replicas.loaders)):
            self.replicas.loaders[i].mark()
        if self.config.overfit:
            self.train_data.reset()
            for i in range(len(self.replicas.loaders)):
                self.replicas.loaders[i].reset()

    def _gradients(mut self, step: Int) raises -> Float32:
        """Leaves the gradient of the mean loss over all passes of all replicas in the model, or this rank's share of it,
        and returns that loss.
        """
        var losses = List[Float64]()
        for i in range(self.replicas.here):
            losses.append(self._gradients_of_replica(step, i))
            if self.replicas.here > 1:
                self.replicas.add_gradient(self.model.grads, self.model.config, i)
        var sum = Float64(0)
        var began = perf_counter_ns()
        self.replicas.reduce(self.model.grads)
        for loss in self.replicas.ranks.numbers(losses):
            sum += loss
        self._waited = Int(perf_counter_ns() - began)
        return Float32(sum / Float64(self.config.all_passes()))

    def _gradients_of_replica(mut self, step: Int, replica: Int) raises -> Float64:
        """Leaves the gradient of one of this process's replicas in the model, and returns the sum of its losses."""
        var B, T = self.train_data.B, self.train_data.T
        var inputs = self._inputs.slice(0, B * T)
        var targets = self._targets.slice(0, B * T)
        var number = self.replicas.ranks.rank * self.replicas.here + replica
        var weight = 1 / Float32(self.config.all_passes())
        var sum = Float64(0)
        for i in range(self.config.passes):
            if replica == 0:
                self.train_data.next_batch(inputs, targets)
            else:
                self.replicas.loaders[replica - 1].next_batch(inputs, targets)
            var key = draw_at(draw_at(self._dropout_key, UInt64(step)), UInt64(number * self.config.passes + i))
            self.model.forward(inputs, B, T, Dropout(Float32(self.config.dropout), key))
            if replica + 1 < self.replicas.here or i + 1 < self.config.passes:
                sum += self.model.backward(targets, accumulate=i > 0, weight=weight).cast[F64]()
            else:
                sum += self._last_backward(targets, accumulate=i > 0, weight=weight)
        return sum

    def _last_backward(mut self, targets: Tensor[I32], *, accumulate: Bool, weight: Float32) raises -> Float64:
        """The last backward pass of a step, during which the ranks begin to add up their gradients."""
        self.replicas.begin_to_reduce(self.model.grads, self.model.finished)
        try:
            var loss = self.model.backward(targets, accumulate=accumulate, weight=weight).cast[F64]()
            self.model.finished.set(self.model.config.num_layers + 1)
            return loss
        except error:
            try:
                self.replicas.give_up()
            except:
                # What has happened first is what is to be said.
                pass
            raise error^

    def _norm(mut self) raises -> Float32:
        """Returns the norm of the gradient of all replicas."""
        var norm = self.model.gradient_norm(self.replicas.blocks(self.model.params))
        if not self.replicas.shards_state:
            return norm
        self.replicas.spread_sums(self.model.acts.norm_blocks)
        return norm_of_blocks(self.model.acts.norm_blocks)

    def _update(mut self, number: Int, learning_rate: Float64, grad_scale: Float32) raises -> Float32:
        """Has the optimizer take its step, and returns the gradient's norm."""
        self.optimizer.prepare(step=number, learning_rate=Float32(learning_rate), grad_scale=grad_scale)
        if not self.replicas.shards_state:
            return self.model.update(self.optimizer)
        _ = self.model.update(self.optimizer, self.replicas.blocks(self.model.params))
        var began = perf_counter_ns()
        self.replicas.spread_sums(self.model.acts.norm_blocks)
        self.replicas.spread_parameters(self.model.params)
        self._waited += Int(perf_counter_ns() - began)

        def arrived(params: ParameterTensors[F32]) raises {imm}:
            pass

        # They are in place; only the model has to know.
        self.model.write_parameters(arrived)
        return norm_of_blocks(self.model.acts.norm_blocks)


def _expect_finite(step: Int, what: String, loss: Float32) raises:
    if not isfinite(loss):
        raise Error(
            t"step {step}: {what} is {loss}: the model has diverged; use a lower --learning-rate, a --warmup or"
            t" --grad-clip 1"
        )


def _beyond(z: Optional[Float64], limit: Float64) -> Bool:
    return limit > 0 and Bool(z) and z.value() > limit
