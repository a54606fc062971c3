"""UTF-8: characters from bytes that may be anything."""

from llm.base.memory import Tensor

comptime U8 = DType.uint8


@fieldwise_init
struct Character(TrivialRegisterPassable):
    """What begins at a place in some bytes."""

    var code: Int
    """The code point; -1 if no character begins there."""
    var length: Int
    """Its bytes; 1 if no character begins there."""


@always_inline
def character_at(text: Tensor[U8], at: Int) -> Character:
    """Decodes the character that begins at byte `at`, which lies in the text."""
    var first = text[at]
    if first < 0x80:
        return Character(Int(first), 1)
    var length = sequence_length(first)
    if length == 0 or at + length > text.size:
        return Character(-1, 1)
    # The first byte of a sequence of n bytes has n ones and a zero above its part of the code point.
    var code = Int(first) & (0x7F >> length)
    for i in range(1, length):
        if not continues(first, i, text[at + i]):
            return Character(-1, 1)
        code = code << 6 | Int(text[at + i] & 0x3F)
    return Character(code, length)


@always_inline
def sequence_length(first: UInt8) -> Int:
    """Tells from its first byte how many bytes a character has; 0 if none begins so."""
    if first < 0x80:
        return 1
    if first < 0xC2:
        return 0
    if first < 0xE0:
        return 2
    if first < 0xF0:
        return 3
    return 4 if first < 0xF5 else 0


@always_inline
def continues(first: UInt8, i: Int, byte: UInt8) -> Bool:
    """Tells whether a byte may be byte i >= 1 of a character that begins with `first`.

    The second byte is what rules out overlong forms, surrogates and what lies beyond U+10FFFF.
    """
    var lowest = UInt8(0x80)
    var highest = UInt8(0xBF)
    if i == 1:
        if first == 0xE0:
            lowest = 0xA0
        elif first == 0xED:
            highest = 0x9F
        elif first == 0xF0:
            lowest = 0x90
        elif first == 0xF4:
            highest = 0x8F
    return lowest <= byte <= highest
