"""Learning rate over the steps of a run: the shapes of llm.c's CUDA trainer."""

from std.math import cos, isfinite, pi, sqrt

comptime WSD_STABLE = 0.8
"""Part of a wsd run before its decay begins."""


struct Schedule(Copyable, Movable):
    """A linear warm-up to the peak, then one of four ways down to final_fraction * peak at the last step."""

    var shape: String
    """One of cosine, linear, constant, wsd (warm-up, stable, decay along 1 - sqrt)."""
    var peak: Float64
    var warmup: Int
    """Steps of the warm-up."""
    var final_fraction: Float64

    def __init__(
        out self, shape: String = "constant", *, peak: Float64 = 1e-4, warmup: Int = 0, final_fraction: Float64 = 1
    ):
        """Takes the values as they are; `validate` looks at them."""
        self.shape = shape
        self.peak = peak
        self.warmup = warmup
        self.final_fraction = final_fraction

    def validate(self) raises:
        """Raises if no learning rate follows from these values."""
        var shapes: List[String] = ["cosine", "linear", "constant", "wsd"]
        if self.shape not in shapes:
            raise Error(t"schedule: expected cosine, linear, constant or wsd, got '{self.shape}'")
        if not (isfinite(self.peak) and self.peak >= 0):
            raise Error(t"schedule: expected a peak of at least 0, got {self.peak}")
        if self.warmup < 0:
            raise Error(t"schedule: expected a warmup of at least 0 steps, got {self.warmup}")
        if not (self.final_fraction >= 0 and self.final_fraction <= 1):
            raise Error(t"schedule: expected a final_fraction from 0 to 1, got {self.final_fraction}")

    def learning_rate(self, step: Int, steps: Int) -> Float64:
        """Returns the learning rate of a step in a run of so many; steps count from 0."""
        if step < self.warmup:
            return self.peak * Float64(step + 1) / Float64(self.warmup)
        var lowest = self.peak * self.final_fraction
        if self.shape == "cosine":
            return lowest + (self.peak - lowest) * 0.5 * (1 + cos(pi * _progress(step, self.warmup, steps)))
        if self.shape == "linear":
            return lowest + (self.peak - lowest) * (1 - _progress(step, self.warmup, steps))
        if self.shape == "wsd":
            var decay_from = Int(WSD_STABLE * Float64(steps))
            return lowest + (self.peak - lowest) * (1 - sqrt(_progress(step, decay_from, steps)))
        return self.peak


def _progress(step: Int, start: Int, end: Int) -> Float64:
    """Tells how far a step is from `start` to `end`, 0 to 1."""
    return max(Float64(step - start), 0) / Float64(max(end - start, 1))
