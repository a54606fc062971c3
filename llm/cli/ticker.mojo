"""How far something long is: a line that lives on a terminal, a line now and then elsewhere. A signal ends it."""

from std.time import perf_counter_ns

from llm.base.formatting import duration, grouped
from llm.cli.screen import Screen
from llm.cli.signals import stop_signal
from llm.eval.watcher import Watcher

comptime _TERMINAL_NS = 200_000_000
comptime _PIPE_NS = 60_000_000_000


struct Ticker[origin: MutOrigin](Watcher):
    """Shows the progress of one job on a screen."""

    var _name: String
    var _screen: Pointer[Screen, Self.origin]
    var _start: Int
    var _last: Int
    var _every: Int

    def __init__(out self, name: String, ref[Self.origin] screen: Screen):
        """Starts the clock."""
        self._name = name
        self._screen = Pointer(to=screen)
        self._start = Int(perf_counter_ns())
        self._last = self._start
        self._every = _TERMINAL_NS if screen.is_terminal else _PIPE_NS

    def stopped(self) -> Bool:
        """Tells whether a signal has asked to stop, or nobody is there any more to see what comes out."""
        return stop_signal() != 0 or Bool(self._screen[].failure)

    def show(mut self, done: Int, total: Int, what: String):
        """Shows, when it is time to, how many parts are done, what has come out so far, and how long the rest will take.
        """
        var now = Int(perf_counter_ns())
        if now - self._last < self._every:
            return
        self._last = now
        var left = Float64(now - self._start) / 1e9 * Float64(total - done) / Float64(max(done, 1))
        var text = String(t"{self._name} {grouped(done)}/{grouped(total)} | {what} | ETA {duration(left)}")
        if self._screen[].is_terminal:
            self._screen[].live(text)
        else:
            self._screen[].line(text)
