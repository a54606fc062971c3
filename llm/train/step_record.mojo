"""What came out of one step."""


@fieldwise_init
struct StepRecord(Copyable, Movable):
    """The numbers of one step of training."""

    var step: Int
    """Steps done, this one included."""
    var steps: Int
    """Steps in all."""
    var loss: Float32
    var norm: Float32
    """Norm of the gradient."""
    var learning_rate: Float64
    var tokens: Int
    """Tokens of this step."""
    var milliseconds: Float64
    var shard: Int
    """Place in the data after the step: the shard, and the sample that comes next."""
    var sample: Int
    var epoch: Int
    """Epochs begun before this one."""
    var loss_z: Optional[Float64]
    """By how many standard deviations loss and norm stand out, once that is known."""
    var norm_z: Optional[Float64]
    var skipped: Bool
    """Whether the update was left out because of that."""
    var waited_ms: Optional[Float64]
    """Of the milliseconds, those in which this rank could only wait for the others' messages; none of one rank."""

    def tokens_per_second(self) -> Int:
        """Returns the speed of this step."""
        return Int(Float64(self.tokens) / self.milliseconds * 1000 + 0.5)
