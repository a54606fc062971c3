"""Numbers in text, as flags, settings and JSON write them. std's own are 23,000 lines of IR."""

from std.ffi import external_call

comptime _LONGEST = 63
"""Bytes of the longest number that is read."""


def parse_integer(text: StringSlice) -> Optional[Int]:
    """Reads a decimal integer of at most 18 digits with or without a sign; none if the text is anything else."""
    var signed = text.startswith("-") or text.startswith("+")
    var digits = text.byte_length() - Int(signed)
    if digits < 1 or digits > 18:
        return None
    var value = 0
    for i, c in enumerate(text.as_bytes()):
        if c >= UInt8(ord("0")) and c <= UInt8(ord("9")):
            value = value * 10 + Int(c - UInt8(ord("0")))
        elif i > 0 or not signed:
            return None
    return -value if text.startswith("-") else value


def parse_number(text: StringSlice) -> Optional[Float64]:
    """Reads a decimal number, rounded correctly; none if the text is anything else, `nan` and `inf` among it.

    A number beyond float64 is infinite.
    """
    var length = text.byte_length()
    if length == 0 or length > _LONGEST:
        return None
    var terminated = Array[UInt8, _LONGEST + 1](fill=0)
    var at = 0
    for c in text.as_bytes():
        # C's function would also take spaces in front, hexadecimal numbers and words.
        if (c < UInt8(ord("0")) or c > UInt8(ord("9"))) and not (chr(Int(c)) in "+-.eE"):
            return None
        terminated[at] = c
        at += 1
    var end = Int(0)
    var value = external_call["strtod", Float64](terminated.unsafe_ptr(), Pointer(to=end))
    if end - Int(terminated.unsafe_ptr()) != length:
        return None
    return value
