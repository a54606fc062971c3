"""Outliers among the losses and the gradients' norms: llm.c's z-scores over the last 128 values."""

from std.math import sqrt

comptime WINDOW = 128
"""Values that a new one is compared with, itself included."""


struct OutlierDetector(Copyable, Movable):
    """A window of values with their sum and their sum of squares, which follow it value by value."""

    var values: List[Float64]
    """The window; from the 128th value on a ring."""
    var oldest: Int
    """Where the next value goes once the window is full."""
    var sum: Float64
    var sum_of_squares: Float64

    def __init__(out self):
        """Starts with an empty window."""
        self.values = List[Float64](capacity=WINDOW)
        self.oldest = 0
        self.sum = 0
        self.sum_of_squares = 0

    def z_score(mut self, value: Float64) -> Optional[Float64]:
        """Takes a value and tells by how many standard deviations it lies above the mean; nothing until the window is full.
        """
        self.sum += value
        self.sum_of_squares += value * value
        if len(self.values) < WINDOW:
            self.values.append(value)
            return None
        var gone = self.values[self.oldest]
        self.sum -= gone
        self.sum_of_squares -= gone * gone
        self.values[self.oldest] = value
        self.oldest = (self.oldest + 1) % WINDOW
        var mean = self.sum / WINDOW
        var variance = self.sum_of_squares / WINDOW - mean * mean
        # Equal values leave only rounding, which may fall below zero.
        if variance <= 0:
            return Float64(0)
        return (value - mean) / sqrt(variance)
