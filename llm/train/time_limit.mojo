"""How many steps fit into a time, by how long the steps so far have taken; chosen anew when the machine gets slower or faster."""

comptime _WINDOW = 0.02
"""Part of the time after which the number of steps is looked at again."""
comptime _TOLERANCE = 0.02
"""Part of the time by which the end may be off before the number changes."""
comptime _WEIGHT = 0.3
"""Of the newest steps, beside those before, in what a step is expected to take."""
comptime _MARGIN = 0.004
"""Part of the time for what comes last: the logs, a sample, the end of the program."""
comptime _FEWEST = 3
"""Steps before the first choice: the first of all touches its memory for the first time."""


struct TimeLimit(Movable):
    """What is known of the time of a run. All of it follows from the numbers that `after_step` is given, in seconds.

    Pauses are what happens between steps, now and then: validations, samples, checkpoints. After the last step is one too.
    """

    var seconds: Float64
    """The time that there is, from the start of the program to its end."""
    var elapsed: Float64
    """How much of it has gone."""
    var _pauses_a_step: Float64
    var _step: Float64
    """Seconds of a step, the newest counting most; 0: not known yet."""
    var _sum: Float64
    """Of the steps since the number was last looked at."""
    var _count: Int
    var _pause: Float64
    """Seconds of a pause: the mean of those seen, the first of all aside."""
    var _pauses: Int
    var _seen: Int
    var _next: Float64
    """When the number is looked at next."""

    def __init__(out self, seconds: Float64, *, pause_every: Int):
        """Starts the clock; `pause_every` is the number of steps between pauses, 0: there are none."""
        self.seconds = seconds
        self.elapsed = 0
        self._pauses_a_step = 1 / Float64(pause_every) if pause_every > 0 else 0
        self._step = 0
        self._sum = 0
        self._count = 0
        self._pause = 0
        self._pauses = 0
        self._seen = 0
        self._next = _WINDOW * seconds

    def after_step(mut self, step: Int, steps: Int, seconds: Float64, *, paused: Bool) -> Optional[Int]:
        """Takes the time since the last call, or since the start of the program, in which one step was taken.

        Args:
            step: Steps done.
            steps: Those that the run is to take as things stand; 0: nothing has been chosen yet.
            seconds: The time since the last call.
            paused: Whether a pause came before the step.

        Returns:
            The steps that the run is to take from now on, if that is another number.
        """
        self.elapsed += seconds
        self._seen += 1
        # The first call has the start of the program in it, and no pause is known by itself.
        if self._seen > 1:
            if not paused:
                self._sum += seconds
                self._count += 1
            elif self._known() > 0:
                self._pauses += 1
                self._pause += (max(seconds - self._known(), 0) - self._pause) / Float64(self._pauses)
        if self.elapsed < self._next or self._seen < _FEWEST or self._known() == 0:
            return None
        self._next = self.elapsed + _WINDOW * self.seconds
        if self._count > 0:
            var newest = self._sum / Float64(self._count)
            self._step = newest if self._step == 0 else self._step + _WEIGHT * (newest - self._step)
            self._sum = 0
            self._count = 0
        var chosen = self.choose(step, self._step)
        var off = Float64(abs(chosen - steps)) * self._cost(self._step)
        if steps > 0 and off <= _TOLERANCE * self.seconds:
            return None
        return chosen if chosen != steps else Optional[Int](None)

    def choose(self, step: Int, seconds_a_step: Float64) -> Int:
        """Returns how many steps a run takes in all that has done `step` of them and takes so long for each of the rest.
        """
        var left = self.seconds * (1 - _MARGIN) - self.elapsed - self._pause
        return step + max(Int(left / self._cost(seconds_a_step)), 1)

    def _cost(self, seconds_a_step: Float64) -> Float64:
        """Returns the time of a step with its share of the pauses."""
        return seconds_a_step + self._pauses_a_step * self._pause

    def _known(self) -> Float64:
        """Returns the seconds of a step, as far as they are known."""
        if self._step > 0:
            return self._step
        return self._sum / Float64(self._count) if self._count > 0 else 0
