"""How far something long is: a line that lives on a terminal, a line now and then elsewhere."""

from std.time import perf_counter_ns

from llm.base.formatting import duration, grouped
from llm.cli.screen import Screen

comptime _TERMINAL_NS = 200_000_000
comptime _PIPE_NS = 60_000_000_000


struct Ticker(Movable):
    """The progress of one job of so many parts."""

    var _name: String
    var _total: Int
    var _start: Int
    var _last: Int
    var _every: Int

    def __init__(out self, name: String, total: Int, screen: Screen):
        """Starts the clock."""
        self._name = name
        self._total = total
        self._start = Int(perf_counter_ns())
        self._last = self._start
        self._every = _TERMINAL_NS if screen.is_terminal else _PIPE_NS

    def is_due(self) -> Bool:
        """Tells whether it is time to show something."""
        return Int(perf_counter_ns()) - self._last >= self._every

    def show(mut self, mut screen: Screen, done: Int, what: String):
        """Shows how many parts are done, what has come out so far, and how long the rest will take."""
        self._last = Int(perf_counter_ns())
        var left = Float64(self._last - self._start) / 1e9 * Float64(self._total - done) / Float64(done)
        var text = String(t"{self._name} {grouped(done)}/{grouped(self._total)} | {what} | ETA {duration(left)}")
        if screen.is_terminal:
            screen.live(text)
        else:
            screen.line(text)
