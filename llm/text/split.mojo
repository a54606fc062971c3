"""Cuts text into the pieces that BPE works on, as GPT-2's pattern does:

    '(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s

In words: an English ending after an apostrophe; a run of letters, of numbers or of other characters, each with one
space before it if there is one; a run of white space, whose last character stays for what follows.
"""

from llm.base.memory import Tensor
from llm.text.unicode_table import LETTERS, NUMBERS, WHITE_SPACE
from llm.text.utf8 import character_at

comptime U8 = DType.uint8
comptime _CODE_POINTS = 0x110000

# Classes of characters. What is not UTF-8 counts as OTHER, byte by byte.
comptime _OTHER = UInt8(0)
comptime _LETTER = UInt8(1)
comptime _NUMBER = UInt8(2)
comptime _SPACE = UInt8(3)


struct Splitter(Movable):
    """The class of every character."""

    var _classes: List[UInt8]

    def __init__(out self):
        """Unfolds the table of ranges."""
        self._classes = List[UInt8](length=_CODE_POINTS, fill=_OTHER)
        self._set(LETTERS, _LETTER)
        self._set(NUMBERS, _NUMBER)
        self._set(WHITE_SPACE, _SPACE)

    def _set(mut self, ranges: StaticString, kind: UInt8):
        """Gives a class to the ranges of a table: `41-5A AA B5`."""
        var first = 0
        var code = 0
        var is_range = False
        for byte in ranges.as_bytes():
            if byte == UInt8(ord("-")):
                first = code
                code = 0
                is_range = True
            elif byte == UInt8(ord(" ")):
                self._fill(first if is_range else code, code, kind)
                code = 0
                is_range = False
            else:
                var digit = Int(byte) - ord("0")
                code = code * 16 + (digit if digit < 10 else digit - 7)
        self._fill(first if is_range else code, code, kind)

    def _fill(mut self, first: Int, last: Int, kind: UInt8):
        for code in range(first, last + 1):
            self._classes[code] = kind

    @always_inline
    def piece_end(self, text: Tensor[U8], start: Int) -> Int:
        """Returns where the piece ends that begins at byte `start` < text.size.

        What comes before the start has no influence, and a piece never ends within a character.
        """
        var first = text[start]
        if first == UInt8(ord("'")):
            var length = _ending_length(text, start)
            if length > 0:
                return start + length
        elif first == UInt8(ord(" ")) and start + 1 < text.size:
            var kind, length = self._class_at(text, start + 1)
            if kind == _SPACE:
                return self._white_space_end(text, start, start + 1)
            return self._run_end(text, start + 1 + length, kind)
        var kind, length = self._class_at(text, start)
        if kind == _SPACE:
            return self._white_space_end(text, start, start + length)
        return self._run_end(text, start + length, kind)

    def next_cut(self, text: Tensor[U8], start: Int) -> Int:
        """Returns a place at or after byte `start` > 0 where a piece always ends, whatever follows; or the text's end.

        That is before white space after something else: what comes before and what comes after can be encoded apart.
        """
        for at in range(start, text.size):
            if self._class_at(text, at)[0] == _SPACE:
                # The character before begins up to four bytes earlier; where none fits, a stray byte is before.
                var before = at - 1
                while before > max(at - 4, 0) and text[before] & 0xC0 == 0x80:
                    before -= 1
                var kind, length = self._class_at(text, before)
                if kind != _SPACE or before + length != at:
                    return at
        return text.size

    @always_inline
    def _class_at(self, text: Tensor[U8], at: Int) -> Tuple[UInt8, Int]:
        """Returns the class of the character at byte `at`, and its bytes."""
        var byte = text[at]
        var classes = self._classes.unsafe_ptr()
        if byte < 0x80:
            return classes[unsafe_offset=Int(byte)], 1
        var character = character_at(text, at)
        if character.code < 0:
            return _OTHER, 1
        return classes[unsafe_offset=character.code], character.length

    @always_inline
    def _run_end(self, text: Tensor[U8], start: Int, kind: UInt8) -> Int:
        var at = start
        while at < text.size:
            var next_kind, length = self._class_at(text, at)
            if next_kind != kind:
                break
            at += length
        return at

    def _white_space_end(self, text: Tensor[U8], start: Int, second: Int) -> Int:
        """Ends a run of white space whose second character would begin at byte `second`."""
        var last = start
        var at = second
        while at < text.size:
            var kind, length = self._class_at(text, at)
            if kind != _SPACE:
                # The last one goes with what follows, if others are left.
                return last if last > start else at
            last = at
            at += length
        return at


@always_inline
def _ending_length(text: Tensor[U8], start: Int) -> Int:
    """Returns the bytes of 's, 'd, 'm, 't, 'll, 've or 're, with its apostrophe at `start`; 0 if it is none of them."""
    if start + 1 >= text.size:
        return 0
    var a = text[start + 1]
    if a == UInt8(ord("s")) or a == UInt8(ord("d")) or a == UInt8(ord("m")) or a == UInt8(ord("t")):
        return 2
    if start + 2 >= text.size:
        return 0
    var b = text[start + 2]
    if a == UInt8(ord("l")):
        return 3 if b == UInt8(ord("l")) else 0
    if a == UInt8(ord("v")) or a == UInt8(ord("r")):
        return 3 if b == UInt8(ord("e")) else 0
    return 0
