"""Ctrl-C and SIGTERM: the first asks the run to stop when it is ready, the second stops it at once."""

from std.ffi import external_call, get_errno

comptime SIGHUP = 1
comptime SIGINT = 2
comptime SIGTERM = 15

comptime _SIGXFSZ = Int32(25)
# Mojo has no global variables, and a handler gets no context: the flag is in a page of its own at a fixed address.
comptime _FLAG = 0x5A17_0000_0000
comptime _PROT_READ_WRITE = Int32(3)
comptime _MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = Int32(0x100022)


def watch_for_signals() raises:
    """From here on SIGINT, SIGTERM and a terminal's SIGHUP set the flag that `stop_signal` reads; call it once.

    A file that grows beyond the size that is allowed becomes an ordinary error.

    Raises:
        If the system has no room for the flag.
    """
    _make_flag()
    _ = external_call["signal", Int](Int32(SIGINT), _on_signal)
    _ = external_call["signal", Int](Int32(SIGTERM), _on_signal)
    # Whoever closes a terminal ends its runs, but not those started with nohup, which write to a file. (Whether the
    # signal was ignored at the start cannot be seen: Mojo's runtime has put handlers of its own.)
    if external_call["isatty", Int32](Int32(1)) == 1:
        _ = external_call["signal", Int](Int32(SIGHUP), _on_signal)
    else:
        _ = external_call["signal", Int](Int32(SIGHUP), _do_nothing)
    _ = external_call["signal", Int](_SIGXFSZ, _do_nothing)


def watch_for_interrupts() raises:
    """From here on every Ctrl-C sets the flag that `stop_signal` reads, and ends a wait for input; call it once.

    Raises:
        If the system has no room for the flag.
    """
    _make_flag()
    _ = external_call["signal", Int](Int32(SIGINT), _on_interrupt)
    _ = external_call["siginterrupt", Int32](Int32(SIGINT), Int32(1))


def stop_signal() -> Int:
    """Returns the signal that asked the run to stop, or 0."""
    return Int(_flag().unsafe_load[volatile=True]())


def forget_signal():
    """Goes on as if no signal had come."""
    _flag().unsafe_store[volatile=True](0)


def signal_name(signal: Int) -> String:
    """Returns what people call a signal."""
    if signal == SIGINT:
        return "Ctrl-C"
    return "SIGTERM" if signal == SIGTERM else "SIGHUP"


def _make_flag() raises:
    var page = external_call["mmap", Int](
        Int(_FLAG), Int(4096), _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE, Int32(-1), Int(0)
    )
    if page != _FLAG:
        raise Error(t"signals: no room for a flag at {_FLAG}: {get_errno()}; start the program again")


def _flag() -> Pointer[Int32, MutUntrackedOrigin]:
    return Pointer[Int32, MutUntrackedOrigin](unsafe_from_address=_FLAG)


def _on_signal(signal: Int32) abi("C"):
    if stop_signal() != 0:
        external_call["_exit", NoneType](Int32(128) + signal)
    _flag().unsafe_store[volatile=True](signal)


def _on_interrupt(signal: Int32) abi("C"):
    _flag().unsafe_store[volatile=True](signal)


def _do_nothing(signal: Int32) abi("C"):
    pass
