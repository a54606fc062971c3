"""What is printed: names and texts from files may hold anything, and a reader may go away.

Control characters could move the cursor, set colours or write over what stands there, and marks of direction could show a
name in another order: they are shown as escapes. So are bytes of names that are not UTF-8.
"""

import errno
import os
import re
import sys
from contextlib import contextmanager

# All of Unicode's Cc but tab and new line, its line separators, and the marks that change the direction of writing.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with escapes for what a terminal would obey."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def line(text: str) -> str:
    """The text as part of a line: new lines and tabs too are escapes."""
    return re.sub(r"[\n\t]", lambda match: ascii(match[0])[1:-1], plain(text))


class PlainStream:
    """A text stream on which control characters do nothing. `error` is the first that lost output, or None.

    When the reader of a pipe has gone, output goes nowhere and the work goes on: that is no error.
    """

    def __init__(self, stream):
        self._stream, self._is_gone, self.error = stream, False, None

    def write(self, text):
        """Writes what a terminal shows as it is; escapes for the rest."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = plain(text).encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self):
        """Writes what is still kept."""
        self._try(self._stream.flush)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def _try(self, act):
        if self._is_gone:
            return
        try:
            act()
        except OSError as error:
            self._is_gone = True
            if error.errno != errno.EPIPE:
                self.error = error
            # What the stream still keeps would fail again when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def plain_output():
    """Makes all that is printed plain; yields standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(PlainStream, before)
    try:
        yield sys.stdout, sys.stderr
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """Opens /dev/null where standard input, output or error is closed: a file of ours would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
