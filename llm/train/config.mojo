"""What a run does: plain values, with the defaults of llm.c's CPU program. Sizes are the model's, B and T the data's."""

from std.math import isfinite

from llm.optim.schedule import Schedule


struct TrainConfig(Copyable, Movable):
    """The settings of a run:  `TrainConfig(steps=1000, schedule=Schedule("cosine", peak=3e-4))`."""

    var steps: Int
    """Steps of the run."""
    var passes: Int
    """Passes of B*T tokens that a step accumulates over, in each replica."""
    var replicas: Int
    """Parts of a batch that are trained on side by side."""
    var schedule: Schedule
    """The learning rate over the steps."""
    var grad_clip: Float64
    """Longest gradient; a longer one is scaled down to it; 0: any."""
    var skip_loss_z: Float64
    """The z-score of the loss beyond which the update of a step is skipped; 0: never."""
    var skip_norm_z: Float64
    """Likewise, of the gradient's norm."""
    var dropout: Float64
    """Probability of what dropout leaves out; 0: nothing."""
    var overfit: Bool
    """Whether every step trains on the first batch of the data."""
    var val_batches: Int
    """Batches of a validation; -1: all there are."""
    var seed: Int
    """Of dropout and of the samples that are drawn on the way."""

    def __init__(
        out self,
        *,
        steps: Int = 40,
        passes: Int = 1,
        replicas: Int = 1,
        var schedule: Schedule = Schedule(),
        grad_clip: Float64 = 0,
        skip_loss_z: Float64 = 0,
        skip_norm_z: Float64 = 0,
        dropout: Float64 = 0,
        overfit: Bool = False,
        val_batches: Int = 5,
        seed: Int = 1337,
    ):
        """Takes the values as they are; `validate` looks at them."""
        self.steps = steps
        self.passes = passes
        self.replicas = replicas
        self.schedule = schedule^
        self.grad_clip = grad_clip
        self.skip_loss_z = skip_loss_z
        self.skip_norm_z = skip_norm_z
        self.dropout = dropout
        self.overfit = overfit
        self.val_batches = val_batches
        self.seed = seed

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def all_passes(self) -> Int:
        """Counts the passes of a step in all replicas."""
        return self.passes * self.replicas

    def validate(self) raises:
        """Raises if a value makes no sense, and says what was expected."""
        _at_least("steps", self.steps, 0)
        _at_least("passes", self.passes, 1)
        _at_least("replicas", self.replicas, 1)
        _at_least("val_batches", self.val_batches, -1)
        self.schedule.validate()
        _below_one("dropout", self.dropout)
        _not_negative("grad_clip", self.grad_clip)
        _not_negative("skip_loss_z", self.skip_loss_z)
        _not_negative("skip_norm_z", self.skip_norm_z)


def _at_least(name: String, value: Int, minimum: Int) raises:
    if value < minimum:
        raise Error(t"training: expected {name} of at least {minimum}, got {value}")


def _not_negative(name: String, value: Float64) raises:
    if not (isfinite(value) and value >= 0):
        raise Error(t"training: expected a {name} of at least 0, got {value}")


def _below_one(name: String, value: Float64) raises:
    # In float32, as which it is used: 1 - 1e-8 is 1 there.
    if not (value >= 0 and Float32(value) < 1):
        raise Error(t"training: expected a {name} from 0 to below 1, got {value}")
