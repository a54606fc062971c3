"""Tokens to text: llm.c's tokenizer file, which holds the bytes of every token, and a stream of whole characters."""

from llm.files import InputFile
from llm.header import HEADER_BYTES, TOKENIZER_MAGIC, read_header
from llm.memory import Tensor

comptime U8 = DType.uint8
comptime REPLACEMENT = "\uFFFD"
"""Stands for bytes that are not UTF-8."""


struct Tokenizer(Movable):
    """The bytes of every token of a vocabulary. Tokens may end within a character: see `TextStream`."""

    var vocab_size: Int
    """Number of tokens."""
    var end_of_text: Int
    """The token between documents, or -1 if the vocabulary has none."""
    var _bytes: List[UInt8]
    var _starts: List[Int]

    def __init__(out self, path: String) raises:
        """Reads a tokenizer file, version 1 (GPT-2's vocabulary only) or 2.

        Raises:
            If there is none under this name, or it does not hold what its header says.
        """
        var file = InputFile("tokenizer", path)
        var header = read_header(file, TOKENIZER_MAGIC, [2, 1])
        self.vocab_size = header[2]
        self.end_of_text = header[3]
        if header[1] == 1:
            self.end_of_text = 50256
        var size = file.size - HEADER_BYTES
        # A token takes at least two bytes: its length and itself.
        if self.vocab_size < 1 or self.vocab_size > size // 2:
            raise file.error(
                String(
                    t"expected a vocabulary that fits into {size} bytes, found {self.vocab_size} tokens in the header;"
                    t" the file is damaged: make it again"
                )
            )
        if self.end_of_text < -1 or self.end_of_text >= self.vocab_size:
            raise file.error(
                String(
                    t"expected an end-of-text token below {self.vocab_size}, found {self.end_of_text} in the header;"
                    t" the file is damaged: make it again"
                )
            )
        self._bytes = List[UInt8](length=size, fill=0)
        self._starts = List[Int](capacity=self.vocab_size)
        file.read(HEADER_BYTES, Tensor[U8](Tensor[U8].Ptr(unsafe_from_address=Int(self._bytes.unsafe_ptr())), size))
        var position = 0
        while len(self._starts) < self.vocab_size and position < size and self._bytes[position] > 0:
            self._starts.append(position + 1)
            position += 1 + Int(self._bytes[position])
        if len(self._starts) < self.vocab_size or position != size:
            raise file.error(
                String(
                    t"expected {self.vocab_size} tokens in {size} bytes after the header, found {len(self._starts)} in"
                    t" {min(position, size)}; the file is damaged: make it again"
                )
            )

    def decode(self, token: Int) raises -> Span[UInt8, origin_of(self._bytes)]:
        """Returns the bytes of a token.

        Raises:
            If it is not in the vocabulary.
        """
        if token < 0 or token >= self.vocab_size:
            raise Error(
                t"tokenizer: expected a token from 0 to {self.vocab_size - 1}, got {token}; use the tokenizer file that"
                t" was made with the model's data"
            )
        var start = self._starts[token]
        return Span(self._bytes)[start : start + Int(self._bytes[start - 1])]


struct TextStream(Movable):
    """Turns bytes that arrive in pieces into text for a screen.

    A character whose bytes are still incomplete is held back. What is not UTF-8 becomes U+FFFD, one for each longest
    piece that begins a character (the Unicode standard's recommendation, and Python's way). Control characters other
    than tab and newlines are left out: a terminal would obey them.
    """

    var _held: List[UInt8]

    def __init__(out self):
        """Starts with nothing held back."""
        self._held = List[UInt8]()

    def push(mut self, bytes: Span[UInt8, _]) -> String:
        """Takes more bytes and returns the text that is complete."""
        var text = String()
        for byte in bytes:
            if len(self._held) > 0 and not _continues(self._held, byte):
                text += REPLACEMENT
                self._held.clear()
            self._held.append(byte)
            var length = _sequence_length(self._held[0])
            if length == 0:
                text += REPLACEMENT
                self._held.clear()
            elif len(self._held) == length:
                if not _is_control(self._held):
                    text += StringSlice(unsafe_from_utf8=Span(self._held))
                self._held.clear()
        return text^

    def finish(mut self) -> String:
        """Ends the text: U+FFFD if a character has stayed incomplete."""
        var text = String(REPLACEMENT) if len(self._held) > 0 else String()
        self._held.clear()
        return text^


def _sequence_length(first: UInt8) -> Int:
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


def _continues(held: List[UInt8], byte: UInt8) -> Bool:
    """Tells whether a byte may follow those of an incomplete character.

    The second byte is what rules out overlong forms, surrogates and what lies beyond U+10FFFF.
    """
    var lowest = UInt8(0x80)
    var highest = UInt8(0xBF)
    if len(held) == 1:
        if held[0] == 0xE0:
            lowest = 0xA0
        elif held[0] == 0xED:
            highest = 0x9F
        elif held[0] == 0xF0:
            lowest = 0x90
        elif held[0] == 0xF4:
            highest = 0x8F
    return lowest <= byte <= highest


def _is_control(character: List[UInt8]) -> Bool:
    var first = character[0]
    if len(character) == 1:
        return (first < 0x20 and first != 0x09 and first != 0x0A and first != 0x0D) or first == 0x7F
    return first == 0xC2 and character[1] < 0xA0
