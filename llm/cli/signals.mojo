"""Ctrl-C and SIGTERM: the first asks the run to stop when it is ready, the second stops it at once."""

from std.ffi import external_call, get_errno

comptime SIGHUP = 1
comptime SIGINT = 2
comptime SIGTERM = 15

comptime _SIGPIPE = Int32(13)
comptime _SIGXFSZ = Int32(25)
# Mojo has no global variables, and a handler gets no context: the flag is in a page of its own at a fixed address, which
# `watch_for_signals` maps before it sets a handler. Beside the flag stands a word by which the page is known.
comptime _FLAG = 0x5A17_0000_0000
comptime _MARK = Int32(0x5A17F1A6)
comptime _PAGE = 4096
# Behind flag and mark the length of the last words, and the words.
comptime _TEXT = 16
comptime _MS_ASYNC = Int32(1)
comptime _PROT_READ_WRITE = Int32(3)
comptime _MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = Int32(0x100022)


def watch_for_signals() raises:
    """From here on SIGINT, SIGTERM and a terminal's SIGHUP set the flag that `stop_signal` reads.

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
    """From here on every Ctrl-C, SIGTERM and SIGHUP sets the flag that `stop_signal` reads, and ends a wait for input.

    Raises:
        If the system has no room for the flag.
    """
    _make_flag()
    for signal in [Int32(SIGINT), Int32(SIGTERM), Int32(SIGHUP)]:
        _ = external_call["signal", Int](signal, _on_interrupt)
        _ = external_call["siginterrupt", Int32](signal, Int32(1))


def ignore_broken_pipes():
    """From here on a write for which there is no reader left is an error, and no signal that ends the program."""
    _ = external_call["signal", Int](_SIGPIPE, _do_nothing)


def stop_signal() -> Int:
    """Returns the signal that asked the run to stop, or 0; 0 too if nobody watches for signals."""
    return Int(_flag().unsafe_load[volatile=True]()) if _has_flag() else 0


def note_last_words(text: String):
    """Has the second signal, which ends the process at once, print this line to standard error first."""
    if _has_flag():
        # A handler that comes in between finds the old length or none.
        _length().unsafe_store[volatile=True](0)
        var bytes = (text + "\n").as_bytes()
        var length = min(len(bytes), _PAGE - _TEXT)
        for i in range(length):
            Pointer[UInt8, MutUntrackedOrigin](unsafe_from_address=_FLAG + _TEXT + i).unsafe_store[volatile=True](
                bytes[i]
            )
        _length().unsafe_store[volatile=True](Int32(length))


def forget_signal():
    """Goes on as if no signal had come."""
    if _has_flag():
        _flag().unsafe_store[volatile=True](0)


def signal_name(signal: Int) -> String:
    """Returns what people call a signal."""
    if signal == SIGINT:
        return "Ctrl-C"
    return "SIGTERM" if signal == SIGTERM else "SIGHUP"


def _make_flag() raises:
    if _has_flag():
        return
    var page = external_call["mmap", Int](
        Int(_FLAG), Int(_PAGE), _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE, Int32(-1), Int(0)
    )
    if page != _FLAG:
        raise Error(t"signals: no room for a flag at {_FLAG}: {get_errno()}; start the program again")
    _flag().unsafe_store(1, _MARK)


def _has_flag() -> Bool:
    """Tells whether the page is there and ours. The system is asked first: to read what is not mapped is fatal."""
    if external_call["msync", Int32](Int(_FLAG), Int(_PAGE), _MS_ASYNC) != 0:
        return False
    return _flag().unsafe_load(1) == _MARK


def _flag() -> Pointer[Int32, MutUntrackedOrigin]:
    return Pointer[Int32, MutUntrackedOrigin](unsafe_from_address=_FLAG)


def _length() -> Pointer[Int32, MutUntrackedOrigin]:
    return Pointer[Int32, MutUntrackedOrigin](unsafe_from_address=_FLAG + 8)


def _on_signal(signal: Int32) abi("C"):
    if _flag().unsafe_load[volatile=True]() != 0:
        # Only what a handler may call: the text was prepared while there was time.
        var text = Array[Int, 2](fill=0)
        text[0] = _FLAG + _TEXT
        text[1] = Int(_length().unsafe_load[volatile=True]())
        _ = external_call["writev", Int](Int32(2), text.unsafe_ptr(), Int32(1))
        external_call["_exit", NoneType](Int32(128) + signal)
    _flag().unsafe_store[volatile=True](signal)


def _on_interrupt(signal: Int32) abi("C"):
    _flag().unsafe_store[volatile=True](signal)


def _do_nothing(signal: Int32) abi("C"):
    pass
