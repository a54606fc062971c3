"""Learning rate over the steps of a run: the shapes of llm.c's CUDA trainer."""

from std.math import cos, isfinite, pi, sqrt

comptime WSD_STABLE = 0.8
"""Part of a wsd run before its decay begins."""


struct Turn(ImplicitlyCopyable, Movable, TrivialRegisterPassable):
    """From here on the run is to take another number of steps than before."""

    var step: Int
    """Steps done when that was decided."""
    var steps: Int
    """Steps of the run."""

    def __init__(out self, step: Int, steps: Int):
        """Takes the numbers as they are."""
        self.step = step
        self.steps = steps


struct Schedule(Copyable, Movable):
    """A linear warm-up to the peak, then one of four ways down to final_fraction * peak at the last step."""

    var shape: String
    """One of cosine, linear, constant, wsd (warm-up, stable, decay along 1 - sqrt)."""
    var peak: Float64
    var warmup: Int
    """Steps of the warm-up."""
    var final_fraction: Float64
    var turns: List[Turn]
    """How the number of steps was decided while the run went on; none: it was known from the start."""

    def __init__(
        out self, shape: String = "constant", *, peak: Float64 = 1e-4, warmup: Int = 0, final_fraction: Float64 = 1
    ):
        """Takes the values as they are; `validate` looks at them."""
        self.shape = shape
        self.peak = peak
        self.warmup = warmup
        self.final_fraction = final_fraction
        self.turns = List[Turn]()

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
            return lowest + (self.peak - lowest) * 0.5 * (1 + cos(pi * self._decayed(step, steps)))
        if self.shape == "linear":
            return lowest + (self.peak - lowest) * (1 - self._decayed(step, steps))
        if self.shape == "wsd":
            return lowest + (self.peak - lowest) * (1 - sqrt(self._decayed(step, steps)))
        return self.peak

    def wait(mut self):
        """Leaves the number of steps open: the rate stays at its peak until the first turn."""
        self.turns = [Turn(Int(Int32.MAX), Int(Int32.MAX))]

    def turn(mut self, step: Int, steps: Int):
        """Changes the number of steps after `step` of them: what is left of the decay is stretched or pressed to the new end.

        As long as no decay has begun, the rate is that of a run for which the new number was known from the start, unless
        there would have been decay already.
        """
        if self._decayed(step, steps) == 0:
            self.turns.clear()
        self.turns.append(Turn(step, steps))

    def _decayed(self, step: Int, steps: Int) -> Float64:
        """Tells how far the decay is, 0 to 1."""
        if len(self.turns) == 0:
            return _progress(step, self._decay_start(steps), steps)
        # Of the decay between two turns: from which step to which, and how far it was before.
        var start = max(self._decay_start(self.turns[0].steps), self.turns[0].step)
        var end = self.turns[0].steps
        var before = Float64(0)
        for turn in self.turns[1:]:
            if step < turn.step:
                break
            before += (1 - before) * _progress(turn.step, start, end)
            start = turn.step
            end = turn.steps
        return before + (1 - before) * _progress(step, start, end)

    def _decay_start(self, steps: Int) -> Int:
        return Int(WSD_STABLE * Float64(steps)) if self.shape == "wsd" else self.warmup


def _progress(step: Int, start: Int, end: Int) -> Float64:
    """Tells how far a step is from `start` to `end`, 0 to 1."""
    return max(Float64(step - start), 0) / Float64(max(end - start, 1))
