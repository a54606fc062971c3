"""Learning rate over the steps of a run: the shapes of llm.c's CUDA trainer."""

from std.math import cos, pi, sqrt

comptime WSD_STABLE = 0.8
"""Part of a wsd run before its decay begins."""


@fieldwise_init
struct Schedule(Copyable, Movable):
    """A linear warm-up to the peak, then one of four ways down to final_fraction * peak at the last step."""

    var shape: String
    """One of cosine, linear, constant, wsd (warm-up, stable, decay along 1 - sqrt)."""
    var peak: Float64
    var warmup: Int
    """Steps of the warm-up."""
    var steps: Int
    """Steps of the run."""
    var final_fraction: Float64

    def learning_rate(self, step: Int) -> Float64:
        """Returns the learning rate of a step; steps count from 0."""
        if step < self.warmup:
            return self.peak * Float64(step + 1) / Float64(self.warmup)
        var lowest = self.peak * self.final_fraction
        if self.shape == "cosine":
            return lowest + (self.peak - lowest) * 0.5 * (1 + cos(pi * self._progress(step, self.warmup)))
        if self.shape == "linear":
            return lowest + (self.peak - lowest) * (1 - self._progress(step, self.warmup))
        if self.shape == "wsd":
            var decay_from = Int(WSD_STABLE * Float64(self.steps))
            return lowest + (self.peak - lowest) * (1 - sqrt(self._progress(step, decay_from)))
        return self.peak

    def _progress(self, step: Int, start: Int) -> Float64:
        """Tells how far a step is from `start` to the end of the run, 0 to 1."""
        return max(Float64(step - start), 0) / Float64(max(self.steps - start, 1))
