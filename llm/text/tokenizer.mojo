"""Text to tokens and back: llm.c's tokenizer file, which holds the bytes of every token.

Three kinds of vocabulary: byte-level BPE (GPT-2's and one's own), which has a token for every byte; the bytes alone; and
single characters. `TextStream` makes whole characters of tokens that end within one.
"""

from llm.base.files import InputFile
from llm.base.memory import Tensor
from llm.formats.header import HEADER_BYTES, HEADER_INTS, TOKENIZER_MAGIC, Header, read_header
from llm.text.bpe import LONGEST_PIECE, Merges, Workspace
from llm.text.split import Splitter
from llm.text.utf8 import character_at, continues, sequence_length

comptime U8 = DType.uint8
comptime REPLACEMENT = "\uFFFD"
"""Stands for bytes that are not UTF-8."""
comptime _ADDED_AT = 4
comptime LARGEST_FILE = 1 << 28
"""Bytes of the tokens of a vocabulary: room for a million of the longest ones."""


struct Tokenizer(Movable):
    """A vocabulary. Tokens may end within a character: see `TextStream`."""

    var path: String
    """The file, for messages."""
    var vocab_size: Int
    """Number of tokens."""
    var end_of_text: Int
    """The token between documents, or -1 if the vocabulary has none."""
    var _bytes: List[UInt8]
    var _starts: List[Int]
    var _added: List[List[Int32]]
    """Tokens that no merge makes, and that a text has where it has all their bytes, by the first of them; end of text is
    not among them. Empty if there is none."""
    var _splitter: Splitter
    var _merges: Optional[Merges]
    """Of a vocabulary that has every byte."""
    var _characters: List[Int32]
    """Of a vocabulary of characters: the token of each code point, or -1."""

    def __init__(out self, path: String) raises:
        """Reads a tokenizer file, version 1 (GPT-2's vocabulary only) or 2.

        Raises:
            If there is none under this name, or it does not hold what its header says.
        """
        self.path = path
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
        # Checked before memory is reserved: a sparse file of a terabyte takes no room on the disk.
        if size > LARGEST_FILE:
            raise file.error(
                String(t"expected at most {LARGEST_FILE} bytes after the header, found {size}; give the right file")
            )
        self._bytes = List[UInt8](length=size, fill=0)
        self._starts = List[Int](capacity=self.vocab_size)
        file.read(HEADER_BYTES, Tensor[U8](viewing=Span(self._bytes)))
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
        self._added = List[List[Int32]]()
        self._splitter = Splitter()
        self._merges = None
        self._characters = List[Int32]()
        var added = _added_tokens(header, self.vocab_size, self.end_of_text, file)
        var is_added = List[Bool](length=self.vocab_size, fill=False)
        if len(added) > 0:
            self._added = List[List[Int32]](length=256, fill=List[Int32]())
        for token in added:
            is_added[Int(token)] = True
            self._added[Int(self._token(Int(token))[0])].append(token)
        self._learn_merges(is_added)
        if not self._merges:
            self._learn_characters()

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def _learn_merges(mut self, is_added: List[Bool]):
        """Finds out what makes which token, if there is a token for every byte."""
        var byte_tokens = List[Int32](length=256, fill=-1)
        for token in range(self.vocab_size):
            var bytes = self._token(token)
            if bytes.size == 1:
                byte_tokens[Int(bytes[0])] = Int32(token)
        if -1 in byte_tokens:
            return
        var merges = Merges(byte_tokens, self.vocab_size)
        var work = Workspace(text_bytes=0)
        for token in range(self.vocab_size):
            if token != self.end_of_text and not is_added[token]:
                merges.add(self._token(token), token, work)
        self._merges = merges^

    def _learn_characters(mut self):
        """Looks up which character each token is, if all are one."""
        var characters = List[Int32]()
        for token in range(self.vocab_size):
            if token != self.end_of_text:
                var bytes = self._token(token)
                var character = character_at(bytes, 0)
                if character.code < 0 or character.length != bytes.size:
                    return
                if character.code >= len(characters):
                    characters.resize(character.code + 1, -1)
                characters[character.code] = Int32(token)
        self._characters = characters^

    def _token(self, token: Int) -> Tensor[U8]:
        var start = self._starts[token]
        return _view(Span(self._bytes)[start : start + Int(self._bytes[start - 1])])

    def encode(self, text: Span[Byte, _], *, allow_special: Bool = False) raises -> List[Int32]:
        """Returns the tokens of a text, which may be any bytes if the vocabulary has every byte.

        With GPT-2's vocabulary these are tiktoken's `encode_ordinary`. With `allow_special` the characters of the
        end-of-text token, `<|endoftext|>`, become that token, and what is between them is encoded by itself.

        Raises:
            If the vocabulary has only some characters and the text another one, or it has no way to encode.
        """
        var tokens = List[Int32](capacity=len(text) // 3 + 1)
        var work = Workspace(len(text))
        var bytes = _view(text)
        if not allow_special or self.end_of_text < 0:
            self.encode_ordinary(bytes, tokens, work)
            return tokens^
        var special = self._token(self.end_of_text)
        var start = 0
        while True:
            var at = _find(bytes, special, start)
            self.encode_ordinary(bytes.slice(start, at - start), tokens, work)
            if at == bytes.size:
                return tokens^
            tokens.append(Int32(self.end_of_text))
            start = at + special.size

    def encode_ordinary(self, text: Tensor[U8], mut tokens: List[Int32], mut work: Workspace) raises:
        """Appends the tokens of a text, in which nothing is special.

        Raises:
            As `encode` does; with a vocabulary that has every byte only if a word is longer than 2 GB.
        """
        if len(self._added) == 0:
            self._encode_part(text, tokens, work)
            return
        var start = 0
        var at = 0
        while at < text.size:
            var token = self._added_at(text, at)
            if token < 0:
                at += 1
                continue
            self._encode_part(text.slice(start, at - start), tokens, work)
            tokens.append(token)
            at += self._token(Int(token)).size
            start = at
        self._encode_part(text.slice(start, text.size - start), tokens, work)

    def _added_at(self, text: Tensor[U8], at: Int) -> Int32:
        """Returns the longest added token whose bytes begin at byte `at`; -1 if none does."""
        var longest = 0
        var found = Int32(-1)
        for token in self._added[Int(text[at])]:
            var bytes = self._token(Int(token))
            if bytes.size > longest and _begins(text, at, bytes):
                longest = bytes.size
                found = token
        return found

    def _encode_part(self, text: Tensor[U8], mut tokens: List[Int32], mut work: Workspace) raises:
        """Appends the tokens of a text between added ones."""
        if not self._merges:
            self._encode_characters(text, tokens)
            return
        ref merges = self._merges.value()
        var at = 0
        while at < text.size:
            var end = self._splitter.piece_end(text, at)
            if end - at > LONGEST_PIECE:
                raise Error(t"tokenizer: expected words of at most {LONGEST_PIECE} bytes, found one of {end - at}")
            merges.encode_piece(text, at, end, tokens, work)
            at = end

    def next_cut(self, text: Tensor[U8], start: Int) -> Int:
        """Returns a place at or after byte `start` > 0 where a text can be cut without changing its tokens."""
        var cut = self._splitter.next_cut(text, start)
        while cut < text.size and self._is_within_added(text, cut):
            cut = self._splitter.next_cut(text, cut + 1)
        return cut

    def _is_within_added(self, text: Tensor[U8], cut: Int) -> Bool:
        """Tells whether the bytes of an added token lie on both sides of a cut."""
        if len(self._added) == 0:
            return False
        # A token has at most 255 bytes.
        for at in range(max(cut - 254, 0), cut):
            var token = self._added_at(text, at)
            if token >= 0 and at + self._token(Int(token)).size > cut:
                return True
        return False

    def _encode_characters(self, text: Tensor[U8], mut tokens: List[Int32]) raises:
        if len(self._characters) == 0:
            raise Error(
                "tokenizer: expected a vocabulary with every byte or of single characters, found another one; it can"
                " only decode: encode with the tool that made it"
            )
        var at = 0
        while at < text.size:
            var character = character_at(text, at)
            var token = Int32(-1)
            if 0 <= character.code < len(self._characters):
                token = self._characters[character.code]
            if token < 0:
                raise Error(self._unknown(text, at))
            tokens.append(token)
            at += character.length

    def _unknown(self, text: Tensor[U8], at: Int) -> String:
        """Names the first character that the vocabulary does not have, and its place."""
        var position = 0
        var line = 1
        var before = 0
        while before < at:
            position += 1
            line += 1 if text[before] == UInt8(ord("\n")) else 0
            before += character_at(text, before).length
        var character = character_at(text, at)
        var name = String(t"byte 0x{_hexadecimal(Int(text[at]), 2)}, which is not UTF-8,")
        if character.code >= 0:
            var spelled = StringSlice(unsafe_from_utf8=text.slice(at, character.length).span())
            name = String(t"character '{spelled}' (U+{_hexadecimal(character.code, 4)})")
        return String(
            t"tokenizer: {name} at position {position} (line {line}) is not among the {self.vocab_size} characters of"
            t" the vocabulary; remove it, or use a vocabulary of bytes or GPT-2's"
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


struct TextStream(Copyable, Movable):
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
            if len(self._held) > 0 and not continues(self._held[0], len(self._held), byte):
                text += REPLACEMENT
                self._held.clear()
            self._held.append(byte)
            var length = sequence_length(self._held[0])
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


def _is_control(character: List[UInt8]) -> Bool:
    var first = character[0]
    if len(character) == 1:
        return (first < 0x20 and first != 0x09 and first != 0x0A and first != 0x0D) or first == 0x7F
    return first == 0xC2 and character[1] < 0xA0


def _view(bytes: Span[Byte, _]) -> Tensor[U8]:
    """Views bytes that the caller keeps alive."""
    return Tensor[U8](viewing=bytes)


def _added_tokens(header: Header, vocab_size: Int, end_of_text: Int, file: InputFile) raises -> List[Int32]:
    """Reads the ranges of added tokens, in fields that llm.c leaves zero: how many, then the first and last of each."""
    var added = List[Int32]()
    var last = -1
    for i in range(min(header[_ADDED_AT], (HEADER_INTS - _ADDED_AT - 1) // 2)):
        var begin, end = header[_ADDED_AT + 1 + 2 * i], header[_ADDED_AT + 2 + 2 * i]
        if not last < begin <= end < vocab_size or begin <= end_of_text <= end:
            raise file.error(
                String(
                    t"expected added tokens from {last + 1} to {vocab_size - 1}, found {begin} to {end} in the header;"
                    t" the file is damaged: make it again"
                )
            )
        for token in range(begin, end + 1):
            added.append(Int32(token))
        last = end
    return added^


def _begins(text: Tensor[U8], at: Int, bytes: Tensor[U8]) -> Bool:
    """Tells whether some bytes stand at byte `at` of a text."""
    if at + bytes.size > text.size:
        return False
    for i in range(bytes.size):
        if text[at + i] != bytes[i]:
            return False
    return True


def _find(text: Tensor[U8], wanted: Tensor[U8], start: Int) -> Int:
    """Returns where some bytes are first found at or after `start`; the end of the text if they are not."""
    for at in range(start, text.size - wanted.size + 1):
        var i = 0
        while i < wanted.size and text[at + i] == wanted[i]:
            i += 1
        if i == wanted.size:
            return at
    return text.size


def _hexadecimal(value: Int, digits: Int) -> String:
    return hex(value, prefix="").upper().ascii_rjust(digits, "0")


def first_token(tokenizer: Tokenizer) raises -> Int:
    """Returns the token that a text begins with: end-of-text, or in a vocabulary without one the newline, else token 0.
    """
    if tokenizer.end_of_text >= 0:
        return tokenizer.end_of_text
    for token in range(tokenizer.vocab_size):
        var bytes = tokenizer.decode(token)
        if len(bytes) == 1 and bytes[0] == UInt8(ord("\n")):
            return token
    return 0
