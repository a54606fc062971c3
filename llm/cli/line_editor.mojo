"""A line that is typed on a terminal: it can be edited, earlier ones come back, and a paste is one line, however long."""

from std.ffi import external_call

from llm.cli.screen import complain, errors_are_seen, printable, terminal_columns, terminal_text
from llm.cli.standard_input import read_line, read_some

# What the keys are called: bytes from 0 on, others below.
comptime _UP = -1
comptime _DOWN = -2
comptime _LEFT = -3
comptime _RIGHT = -4
comptime _HOME = -5
comptime _END = -6
comptime _DELETE = -7
comptime _PASTE = -8
comptime _PASTE_END = -9
comptime _OTHER = -10
comptime _NO_MORE = -11
comptime _INTERRUPTED = -12

comptime _ESCAPE = 0x1B
comptime _TERMIOS_BYTES = 64
# Offsets in a struct termios, and the flags of a driver that edits lines itself: ICANON, ECHO, IEXTEN; IXON takes Ctrl-S.
comptime _LOCAL_FLAGS = 3
comptime _LINE_FLAGS = UInt32(0o2 | 0o10 | 0o100000)
comptime _FLOW_FLAG = UInt32(0o2000)
comptime _AFTER_OUTPUT = Int32(1)


struct LineEditor(Movable):
    """Reads lines from the terminal on standard input, and shows them on standard error."""

    var _history: List[List[UInt8]]
    var _pending: List[UInt8]
    """What has been read and not looked at, last first."""

    def __init__(out self):
        """Starts without a history."""
        self._history = List[List[UInt8]]()
        self._pending = List[UInt8]()

    def read_line(mut self, prompt: String) raises -> Optional[List[UInt8]]:
        """Reads a line, without its end.

        Returns:
            None when the input has ended (Ctrl-D on an empty line). A signal ends the line that is being typed, which is
            then empty.

        Raises:
            If the terminal is gone.
        """
        var before = List[UInt32](length=_TERMIOS_BYTES // 4, fill=0)
        var can_edit = errors_are_seen() and external_call["tcgetattr", Int32](Int32(0), before.unsafe_ptr()) == 0
        if not can_edit:
            complain(prompt, end="")
            return read_line()
        var raw = before.copy()
        raw[0] &= ~_FLOW_FLAG
        raw[_LOCAL_FLAGS] &= ~_LINE_FLAGS
        _ = external_call["tcsetattr", Int32](Int32(0), _AFTER_OUTPUT, raw.unsafe_ptr())
        # From here on the terminal says where a paste begins and ends.
        terminal_text("\x1b[?2004h")
        var line = Optional[List[UInt8]](None)
        var failure = String()
        try:
            line = self._edit(prompt)
        except error:
            failure = String(error)
        terminal_text("\x1b[?2004l")
        _ = external_call["tcsetattr", Int32](Int32(0), _AFTER_OUTPUT, before.unsafe_ptr())
        if failure:
            raise Error(failure)
        if line and len(line.value()) > 0:
            if len(self._history) == 0 or self._history[len(self._history) - 1] != line.value():
                self._history.append(line.value().copy())
        return line^

    def _edit(mut self, prompt: String) raises -> Optional[List[UInt8]]:
        var line = List[UInt8]()
        var draft = List[UInt8]()
        var at = 0
        var place = len(self._history)
        var pastes = False
        var is_drawn = False
        while True:
            if len(self._pending) == 0 and not is_drawn:
                _draw(prompt, line, at)
                is_drawn = True
            var key = self._next_key()
            if key == _INTERRUPTED:
                terminal_text("\n")
                return List[UInt8]()
            if key == _NO_MORE or (key == 4 and len(line) == 0):
                return None if len(line) == 0 else Optional(line^)
            if (key == 10 or key == 13) and not pastes:
                if not is_drawn or at < len(line):
                    _draw(prompt, line, len(line))
                terminal_text("\n")
                return line^
            is_drawn = False
            if key == _PASTE or key == _PASTE_END:
                pastes = key == _PASTE
            elif pastes and key >= 0:
                line.insert(at, UInt8(10) if key == 13 else UInt8(key))
                at += 1
            elif key == _UP or key == _DOWN or key == 16 or key == 14:
                var next = place - 1 if key == _UP or key == 16 else place + 1
                if 0 <= next <= len(self._history):
                    if place == len(self._history):
                        draft = line.copy()
                    line = draft.copy() if next == len(self._history) else self._history[next].copy()
                    place = next
                    at = len(line)
            elif key == _LEFT or key == 2:
                at = _before(line, at)
            elif key == _RIGHT or key == 6:
                at = _behind(line, at)
            elif key == _HOME or key == 1:
                at = 0
            elif key == _END or key == 5:
                at = len(line)
            elif key == 8 or key == 127:
                var start = _before(line, at)
                _remove(line, start, at)
                at = start
            elif key == _DELETE or key == 4:
                _remove(line, at, _behind(line, at))
            elif key == 21:
                _remove(line, 0, at)
                at = 0
            elif key == 11:
                _remove(line, at, len(line))
            elif key == 23:
                var start = at
                while start > 0 and line[start - 1] == UInt8(ord(" ")):
                    start -= 1
                while start > 0 and line[start - 1] != UInt8(ord(" ")):
                    start -= 1
                _remove(line, start, at)
                at = start
            elif key >= 32 or key == 9:
                line.insert(at, UInt8(key))
                at += 1

    def _next_key(mut self) raises -> Int:
        var byte = self._next_byte()
        if byte != _ESCAPE:
            return byte
        byte = self._next_byte()
        if byte != ord("[") and byte != ord("O"):
            return _OTHER
        var number = 0
        while True:
            byte = self._next_byte()
            if byte < 0:
                return byte
            if ord("0") <= byte <= ord("9"):
                number = min(10 * number + byte - ord("0"), 1000)
            elif byte >= 0x40:
                break
        var letters: List[Int] = [ord("A"), ord("B"), ord("D"), ord("C"), ord("H"), ord("F")]
        for i, letter in enumerate(letters):
            if byte == letter:
                return _UP - i
        if byte != ord("~"):
            return _OTHER
        var numbers: List[Tuple[Int, Int]] = [
            (1, _HOME),
            (7, _HOME),
            (4, _END),
            (8, _END),
            (3, _DELETE),
            (200, _PASTE),
            (201, _PASTE_END),
        ]
        for ref each in numbers:
            if number == each[0]:
                return each[1]
        return _OTHER

    def _next_byte(mut self) raises -> Int:
        """Returns the next byte, waiting for it; _NO_MORE or _INTERRUPTED if there is none."""
        if len(self._pending) == 0:
            var bytes = read_some()
            if not bytes:
                return _INTERRUPTED
            if len(bytes.value()) == 0:
                return _NO_MORE
            self._pending = bytes.take()
            self._pending.reverse()
        return Int(self._pending.pop())


def _before(line: List[UInt8], at: Int) -> Int:
    """Returns where the character before a place begins; UTF-8 goes on with bytes 10xxxxxx."""
    var start = at - 1
    while start > 0 and line[start] & 0xC0 == 0x80:
        start -= 1
    return max(start, 0)


def _behind(line: List[UInt8], at: Int) -> Int:
    var end = at + 1
    while end < len(line) and line[end] & 0xC0 == 0x80:
        end += 1
    return min(end, len(line))


def _remove(mut line: List[UInt8], start: Int, end: Int):
    for _ in range(start, end):
        _ = line.pop(start)


def _draw(prompt: String, line: List[UInt8], at: Int):
    """Shows as much of a line as fits around the cursor: it never wraps, so that it can be drawn again in its place."""
    var width = max(terminal_columns() - prompt.byte_length() - 1, 1)
    var start = at
    var cursor = 0
    while start > 0 and cursor < width - 1:
        start = _before(line, start)
        cursor += 1
    var end = at
    var count = cursor
    while end < len(line) and count < width - 1:
        end = _behind(line, end)
        count += 1
    var text = String(StringSlice(unsafe_from_utf8=Span(line)[start:end]))
    # A control character takes as much room as any other.
    var shown = printable(text.replace("\n", "\u23CE").replace("\t", " "))
    var back = String(t"\r\x1b[{prompt.byte_length() + cursor}C")
    terminal_text("\r\x1b[K" + prompt + shown + back)
