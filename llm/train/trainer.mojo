"""One step of training: accumulate over passes, look for outliers, clip, update. And validation."""

from std.math import isfinite
from std.time import perf_counter_ns

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.base.random import draw_at, scramble
from llm.cli.arguments import Arguments
from llm.cli.report import StepRecord
from llm.cli.setup import learning_rate_schedule, number_of_steps, optimizer_settings, passes_per_step
from llm.cpu.adamw import AdamW
from llm.cpu.dropout import Dropout
from llm.data.loader import DataLoader
from llm.model.gpt2 import GPT2
from llm.optim.schedule import Schedule
from llm.train.run_state import Progress

comptime F32 = DType.float32
comptime I32 = DType.int32


struct Trainer[dtype: DType](Movable):
    """A model with its data and all that a step depends on."""

    var model: GPT2[Self.dtype]
    var train_data: DataLoader
    var val_data: DataLoader
    var passes: Int
    """Passes of B*T tokens that a step accumulates over."""
    var steps: Int
    """Steps of the run."""
    var val_batches: Int
    var schedule: Schedule
    var optimizer: AdamW
    var decay_all: Bool
    var grad_clip: Float32
    """Longest gradient, or 0."""
    var skip_loss_z: Float64
    """The z-score of the loss beyond which a step is skipped, or 0."""
    var skip_norm_z: Float64
    var overfit: Bool
    var dropout: Float32
    """Probability of what dropout leaves out, or 0."""
    var _dropout_key: UInt64
    var _inputs: Tensor[I32]
    var _targets: Tensor[I32]
    var _arena: Arena

    def __init__(
        out self, args: Arguments, var model: GPT2[Self.dtype], var train_data: DataLoader, var val_data: DataLoader
    ) raises:
        """Takes the settings from the flags."""
        self.passes = passes_per_step(args)
        self.steps = number_of_steps(args, train_data, self.passes)
        self.schedule = learning_rate_schedule(args, self.steps)
        self.optimizer = optimizer_settings(args)
        self.decay_all = args.bool("decay-all")
        self.grad_clip = Float32(args.float("grad-clip"))
        self.skip_loss_z = args.float("skip-loss-z")
        self.skip_norm_z = args.float("skip-norm-z")
        self.overfit = args.bool("overfit")
        self.dropout = Float32(args.float("dropout", maximum=0.99))
        # The random windows have the seed as it is.
        self._dropout_key = scramble(~UInt64(args.int("seed")))
        self.val_batches = args.int("val-batches", minimum=-1)
        if self.val_batches < 0:
            self.val_batches = val_data.num_batches
        self._arena = Arena(2 * aligned_bytes[I32](train_data.B * train_data.T))
        self._inputs = self._arena.carve[I32](train_data.B * train_data.T)
        self._targets = self._arena.carve[I32](train_data.B * train_data.T)
        self.model = model^
        self.train_data = train_data^
        self.val_data = val_data^

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def step(mut self, mut progress: Progress) raises -> StepRecord:
        """Takes the next step, or skips its update if it is an outlier.

        Raises:
            If the model has diverged, or the data has a token that the model does not know or has changed.
        """
        var start = perf_counter_ns()
        self.train_data.mark()
        if self.overfit:
            self.train_data.reset()
        var number = progress.step + 1
        var loss = self._gradients(number)
        if not isfinite(loss):
            raise Error(
                t"step {number}: the loss is {loss}: the model has diverged; use a lower --learning-rate, a"
                t" --warmup or --grad-clip 1"
            )
        var loss_z = progress.losses.z_score(loss.cast[DType.float64]())
        var learning_rate = self.schedule.learning_rate(progress.step)
        self.optimizer.learning_rate = Float32(learning_rate)
        var skipped = _beyond(loss_z, self.skip_loss_z)
        # The norm comes with the update, unless the update depends on it.
        var norm: Float32
        var norm_z: Optional[Float64]
        if skipped or self.grad_clip > 0 or self.skip_norm_z > 0:
            norm = self.model.gradient_norm()
            norm_z = progress.norms.z_score(norm.cast[DType.float64]())
            skipped = skipped or _beyond(norm_z, self.skip_norm_z)
            if isfinite(norm) and not skipped:
                var clips = self.grad_clip > 0 and norm > self.grad_clip
                var scale = self.grad_clip / norm if clips else Float32(1)
                _ = self.model.update(self.optimizer, number, scale, self.decay_all)
        else:
            norm = self.model.update(self.optimizer, number, decay_all=self.decay_all)
            norm_z = progress.norms.z_score(norm.cast[DType.float64]())
        if not isfinite(norm):
            raise Error(
                t"step {number}: the gradient's norm is {norm}: the model has diverged; use a lower --learning-rate or"
                t" a --warmup"
            )
        progress.step = number
        progress.evaluated = False
        return StepRecord(
            step=number,
            steps=self.steps,
            loss=loss,
            norm=norm,
            learning_rate=learning_rate,
            tokens=self.passes * self.train_data.B * self.train_data.T,
            milliseconds=Float64(perf_counter_ns() - start) / 1e6,
            shard=self.train_data.current_shard,
            sample=self.train_data.current_sample,
            epoch=self.train_data.epoch,
            loss_z=loss_z,
            norm_z=norm_z,
            skipped=skipped,
        )

    def validate(mut self) raises -> Float32:
        """Returns the mean loss over the first batches of the validation data.

        Raises:
            If the data has a token that the model does not know or has changed.
        """
        self.val_data.reset()
        var sum = Float64(0)
        for _ in range(self.val_batches):
            self.val_data.next_batch(self._inputs, self._targets)
            self.model.forward(self._inputs, self.val_data.B, self.val_data.T)
            sum += self.model.loss(self._targets).cast[DType.float64]()
        return Float32(sum / Float64(self.val_batches))

    def _gradients(mut self, step: Int) raises -> Float32:
        """Leaves the gradient of the mean loss over all passes in the model, and returns that loss."""
        var sum = Float64(0)
        for i in range(self.passes):
            self.train_data.next_batch(self._inputs, self._targets)
            var dropout = Dropout(self.dropout, draw_at(draw_at(self._dropout_key, UInt64(step)), UInt64(i)))
            self.model.forward(self._inputs, self.train_data.B, self.train_data.T, dropout)
            var loss = self.model.backward(self._targets, accumulate=i > 0, weight=1 / Float32(self.passes))
            sum += loss.cast[DType.float64]()
        return Float32(sum / Float64(self.passes))


def _beyond(z: Optional[Float64], limit: Float64) -> Bool:
    return limit > 0 and Bool(z) and z.value() > limit
