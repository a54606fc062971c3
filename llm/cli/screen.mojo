"""The screen: plain lines into a pipe or a file; on a terminal also colours and a last line that lives."""

from std.ffi import external_call
from std.os import getenv

comptime _ERASE_LINE = "\r\x1b[K"
comptime _RESET = "\x1b[0m"
comptime BOLD = "\x1b[1m"
comptime GREEN = "\x1b[32m"
comptime YELLOW = "\x1b[33m"
comptime RED = "\x1b[31m"


struct Screen(Movable):
    """Standard output, line by line."""

    var is_terminal: Bool
    var _colours: Bool
    var _live: Bool

    def __init__(out self):
        """Looks at what standard output is. NO_COLOR in the environment means none (no-color.org)."""
        self.is_terminal = external_call["isatty", Int32](Int32(1)) == 1
        self._colours = self.is_terminal and getenv("NO_COLOR") == "" and getenv("TERM") != "dumb"
        self._live = False

    def line(mut self, text: String):
        """Prints a line, in place of the live one."""
        if self._live:
            print(_ERASE_LINE, end="")
            self._live = False
        print(text, flush=True)

    def live(mut self, text: String):
        """Shows a line until the next is printed; only on a terminal."""
        if self.is_terminal:
            print(_ERASE_LINE, text, sep="", end="", flush=True)
            self._live = True

    def coloured(self, text: String, colour: String) -> String:
        """Returns the text in a colour, or plain where there are no colours."""
        return colour + text + _RESET if self._colours else text
