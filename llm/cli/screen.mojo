"""The screen: plain lines into a pipe or a file; on a terminal also colours and a last line that lives.

All that the programs say goes through here: std's `print` does not tell whether anything has arrived.
"""

from std.ffi import ErrNo, external_call, get_errno
from std.os import getenv

from llm.base.formatting import wrapped
from llm.base.memory import Tensor
from llm.base.strings import part
from llm.text.utf8 import character_at

comptime _ERASE_LINE = "\r\x1b[K"
comptime _RESET = "\x1b[0m"
comptime BOLD = "\x1b[1m"
comptime GREEN = "\x1b[32m"
comptime YELLOW = "\x1b[33m"
comptime RED = "\x1b[31m"

comptime _OUTPUT = Int32(1)
comptime _ERRORS = Int32(2)
comptime _WINDOW_SIZE = 0x5413
"""TIOCGWINSZ."""
comptime _AT_FDCWD = Int32(-100)
comptime _READ_ONLY = Int32(0)
comptime _WRITE_ONLY = Int32(1)
comptime _POLL_OUT = 4
comptime _HEXADECIMAL = "0123456789abcdef"


struct Screen(Movable):
    """Standard output, line by line. Once a write has failed nothing more is written, and `check` tells."""

    var is_terminal: Bool
    var failure: String
    """Why what was written has not arrived; empty as long as all has."""
    var _colours: Bool
    var _live: Int
    """Characters of the line that lives; 0: there is none."""

    def __init__(out self):
        """Looks at what standard output is. NO_COLOR in the environment means none (no-color.org)."""
        self.is_terminal = external_call["isatty", Int32](_OUTPUT) == 1
        self.failure = String()
        self._colours = self.is_terminal and getenv("NO_COLOR") == "" and getenv("TERM") != "dumb"
        self._live = 0

    def line(mut self, text: String):
        """Prints a line, in place of the live one."""
        self._erase()
        self.text(printable(text, colours=self._colours) + "\n")

    def block(mut self, text: String):
        """Prints lines that have names of up to 12 characters in front, and an empty line; on a terminal as they fit, one
        block right behind the other.
        """
        if self.is_terminal:
            self.text(wrapped(printable(text), self.columns(), 12))
        else:
            self.line(text)

    def live(mut self, text: String):
        """Shows a line without colours until the next is printed, cut off where the terminal ends; nowhere else."""
        if self.is_terminal:
            var shown = printable(text)
            if shown.byte_length() >= self.columns():
                shown = part(shown, 0, self.columns() - 1)
            self._erase()
            self.text(shown)
            self._live = shown.byte_length()

    def columns(self) -> Int:
        """Returns how many characters a line of the terminal has now; a number beyond all lines where there is none."""
        if not self.is_terminal:
            return Int(Int32.MAX)
        return _columns(_OUTPUT)

    def _erase(mut self):
        """Removes the line that lives; a terminal that has become narrower shows it in several rows."""
        if self._live > 0:
            var above = (self._live - 1) // self.columns()
            self.text(String(t"\x1b[{above}A\r\x1b[J") if above > 0 else _ERASE_LINE)
            self._live = 0

    def text(mut self, text: String):
        """Prints a text as it is, which may be a part of a line."""
        if not self.failure:
            self.failure = _write(_OUTPUT, text)

    def check(self) raises:
        """Raises if anything that was printed has not arrived."""
        if self.failure:
            raise Error(t"standard output: cannot write: {self.failure}")

    def coloured(self, text: String, colour: String) -> String:
        """Returns the text in a colour, or plain where there are no colours."""
        return colour + text + _RESET if self._colours else text


def complain(text: String, end: String = "\n"):
    """Prints a line on standard error; there is no one to tell if that fails."""
    _ = _write(_ERRORS, printable(text) + end)


def terminal_text(text: String):
    """Writes a text to standard error as it is, which is a terminal and obeys what is in it."""
    _ = _write(_ERRORS, text)


def terminal_columns() -> Int:
    """Returns how many characters a line of the terminal on standard error has now; 80 if it does not tell."""
    return _columns(_ERRORS)


def errors_are_seen() -> Bool:
    """Tells whether standard error is a terminal."""
    return external_call["isatty", Int32](_ERRORS) == 1


def open_standard_streams():
    """Opens those of the descriptors 0 to 2 that are closed, so that no file of ours gets one and the screen's text.

    They lead to /dev/null, 0 and 1 the wrong way round: to read or write there is an error, as it was before.
    """
    for fd in range(3):
        # The new descriptor is the lowest that is free: this one.
        if external_call["dup", Int32](Int32(fd)) < 0:
            var null = String("/dev/null")
            _ = external_call["openat", Int32](
                _AT_FDCWD, null.as_c_string_span().ptr(), _READ_ONLY if fd == 1 else _WRITE_ONLY, Int32(0)
            )


def printable(text: String, *, colours: Bool = False) -> String:
    """Returns a text of which a terminal obeys nothing but newlines and tabs, and our own colours if it may.

    Other control characters are spelled: \\x1b. Bytes that are not UTF-8 become U+FFFD.
    """
    var bytes = Tensor[DType.uint8](viewing=text.as_bytes())
    var shown = List[UInt8](capacity=bytes.size)
    var at = 0
    while at < bytes.size:
        var character = character_at(bytes, at)
        var code = character.code
        var own = _own_sequence(bytes, at) if colours and code == 0x1B else 0
        if own > 0:
            shown.extend(bytes.slice(at, own).span())
            at += own
            continue
        if code < 0:
            shown.extend("\uFFFD".as_bytes())
        elif (code < 0x20 and code != 0x09 and code != 0x0A) or 0x7F <= code < 0xA0:
            shown.extend("\\x".as_bytes())
            shown.append(_HEXADECIMAL.as_bytes()[code >> 4])
            shown.append(_HEXADECIMAL.as_bytes()[code & 15])
        else:
            shown.extend(bytes.slice(at, character.length).span())
        at += character.length
    # A view keeps nothing alive.
    _ = text
    return String(StringSlice(unsafe_from_utf8=Span(shown)))


def _columns(fd: Int32) -> Int:
    # A struct winsize: rows, columns, and twice what nobody fills in.
    var size = Array[UInt16, 4](fill=0)
    if external_call["ioctl", Int32](fd, Int(_WINDOW_SIZE), size.unsafe_ptr()) != 0 or size[1] == 0:
        return 80
    return max(Int(size[1]), 2)


def _own_sequence(bytes: Tensor[DType.uint8], at: Int) -> Int:
    """Returns the length of the colour that begins at byte `at`; 0 if none does."""
    var sequences: List[String] = [BOLD, GREEN, YELLOW, RED, _RESET]
    for ref sequence in sequences:
        var length = sequence.byte_length()
        if at + length <= bytes.size and bytes.slice(at, length).span() == sequence.as_bytes():
            return length
    return 0


def _write(fd: Int32, text: String) -> String:
    """Writes all of a text; returns why that failed, or nothing."""
    var done = 0
    while done < text.byte_length():
        # A struct iovec: `write` itself clashes with the standard library's.
        var rest = Array[Int, 2](fill=0)
        rest[0] = Int(text.unsafe_ptr()) + done
        rest[1] = text.byte_length() - done
        var count = external_call["writev", Int](fd, rest.unsafe_ptr(), Int32(1))
        if count >= 0:
            done += count
            continue
        var reason = get_errno()
        if reason == ErrNo.EAGAIN:
            # A struct pollfd: the descriptor, and what to wait for.
            var wanted = Array[Int, 1](fill=Int(fd) | _POLL_OUT << 32)
            _ = external_call["poll", Int32](wanted.unsafe_ptr(), Int(1), Int32(-1))
        elif reason != ErrNo.EINTR:
            return String(reason)
    return ""
