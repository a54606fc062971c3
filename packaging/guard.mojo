"""The first code of a program of the wheel: ends it in words where the processor lacks what the rest is compiled for.

Compiled for any x86-64, linked into each program, and named to the linker as what runs before everything else (DT_INIT). It asks
Linux, as `llm_mojo.processor` does, with the same names; `-D NEEDED` has them, in spaces, `-D BUILD` the name of the build, and
`-D INSTEAD` what a user can do.
"""

from std.ffi import external_call
from std.sys.defines import get_defined_string

comptime NEEDED = get_defined_string["NEEDED"]()
comptime BUILD = get_defined_string["BUILD"]()
comptime INSTEAD = get_defined_string["INSTEAD"]()
comptime _SIZE = 16384
comptime Bytes = Pointer[UInt8, MutUntrackedOrigin]


@export
def llm_mojo_guard() abi("C"):
    """Returns if the processor has everything, or if Linux does not say."""
    var buffer = Array[UInt8, _SIZE](fill=0)
    var text = Bytes(unsafe_from_address=Int(Pointer(to=buffer)))
    var size = _read_cpuinfo(text)
    var start = _find(text, 0, size, "\nflags")
    if start < 0:
        return
    var end = _find(text, start + 1, size, "\n")
    if end < 0:
        return
    # So that each name stands between spaces, the last too.
    text[unsafe_offset=end] = UInt8(ord(" "))
    comptime for name in NEEDED.split(" "):
        if _find(text, start, end + 1, name, between_spaces=True) < 0:
            _say("this program is the build for ")
            _say(BUILD)
            _say(", and the processor lacks ")
            _say(name)
            _say("; ")
            _say(INSTEAD)
            _say("\n")
            _ = external_call["_exit", Int32](Int32(1))


def _read_cpuinfo(text: Bytes) -> Int:
    """Reads as much as there is room for; the first processor is at the beginning."""
    var path = StaticString("/proc/cpuinfo")
    var file = external_call["openat", Int32](Int32(-100), path.unsafe_ptr(), Int32(0))
    var size = 0
    while size < _SIZE - 1:
        var count = external_call["read", Int](file, text.unsafe_offset(size), _SIZE - 1 - size)
        if count <= 0:
            break
        size += count
    _ = external_call["close", Int32](file)
    return size


def _find(text: Bytes, start: Int, end: Int, word: StaticString, *, between_spaces: Bool = False) -> Int:
    """Returns where a word begins, or -1."""
    var wanted = word.unsafe_ptr()
    var length = word.byte_length()
    var margin = Int(between_spaces)
    for at in range(start + margin, end - length - margin + 1):
        var same = True
        for i in range(length):
            same = same and text[unsafe_offset=at + i] == wanted[unsafe_offset=i]
        if between_spaces:
            same = same and text[unsafe_offset=at - 1] == UInt8(ord(" "))
            same = same and text[unsafe_offset=at + length] == UInt8(ord(" "))
        if same:
            return at
    return -1


def _say(text: StaticString):
    _ = external_call["write", Int](Int32(2), text.unsafe_ptr(), text.byte_length())
