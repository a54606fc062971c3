"""Standard input: all of it, or line by line from a terminal."""

from std.ffi import ErrNo, external_call, get_errno
from std.io import FileDescriptor

comptime _AT_ONCE = 65536


def is_terminal() -> Bool:
    """Tells whether a person is typing."""
    return external_call["isatty", Int32](Int32(0)) == 1


def read_all() raises -> List[UInt8]:
    """Reads to the end.

    Raises:
        If the input fails.
    """
    var all = List[UInt8]()
    while True:
        var bytes = read_some()
        if len(bytes.value()) == 0:
            return all^
        all.extend(bytes.take())


def read_line() raises -> Optional[List[UInt8]]:
    """Reads a line from a terminal, without its end.

    Returns:
        None when the input has ended (Ctrl-D). A signal ends the line that is being typed, which is then empty.

    Raises:
        If the terminal is gone.
    """
    var line = List[UInt8]()
    while True:
        var bytes = read_some()
        if not bytes:
            return List[UInt8]()
        if len(bytes.value()) == 0:
            return None if len(line) == 0 else Optional(line^)
        # A terminal hands out lines one by one; one of more bytes than fit comes in pieces.
        line.extend(bytes.take())
        if line[len(line) - 1] == UInt8(ord("\n")):
            _ = line.pop()
            return line^


def read_some() raises -> Optional[List[UInt8]]:
    """Reads what is there; no bytes at the end, and None if a signal came first."""
    var bytes = List[UInt8](length=_AT_ONCE, fill=0)
    var count = external_call["read", Int](Int32(0), bytes.unsafe_ptr(), len(bytes))
    if count < 0:
        var reason = get_errno()
        if reason == ErrNo.EINTR:
            return None
        raise Error(t"standard input: cannot read: {reason}")
    bytes.shrink(count)
    return bytes^
