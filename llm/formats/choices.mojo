"""llm.c's evaluation file of questions with four endings (HellaSwag).

The file is a header and a stream of uint16, for each example: 65535, its size in bytes, its index, the label, 4, and then
the context and the four endings, their tokens preceded by how many there are.
"""

from std.sys import size_of

from llm.base.file_identity import FileIdentity
from llm.base.files import InputFile
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.formats.header import CHOICES_MAGIC, HEADER_BYTES, read_header

comptime U16 = DType.uint16
comptime NUM_ENDINGS = 4
comptime CHOICES_VERSION = 1
comptime _START = 65535
comptime _FIELDS = 5
"""Numbers of an example before its context."""
comptime _MOST = 65535 // 2
"""Numbers of an example, whose bytes are counted in one of them."""


struct ChoicesFile(Movable):
    """The examples of an open file, all of them checked beforehand; one of them at a time is in memory."""

    var path: String
    var num_examples: Int
    var longest: Int
    """Positions of the longest context with an ending."""
    var has_failed: Bool
    """An example could not be read again, or was another."""
    var _file: InputFile
    var _identity: FileIdentity
    var _vocab_size: Int
    var _starts: List[Int]
    """Where in the file each example begins, in bytes, and where the last one ends."""
    var _room: Tensor[U16]
    var _arena: Arena
    var _example: Tensor[U16]
    """The one that was read last, within the room."""

    def __init__(out self, path: String, *, vocab_size: Int, context: Int) raises:
        """Opens a file for models of this vocabulary and context.

        Raises:
            If there is no such file, it is damaged, has a token beyond the vocabulary or an example that is too long.
        """
        var file = InputFile("hellaswag", path)
        var header = read_header(file, CHOICES_MAGIC, [CHOICES_VERSION])
        self.path = path
        self.num_examples = header[2]
        if self.num_examples < 1:
            raise file.error(
                String(t"expected at least 1 example, found {self.num_examples} in the header; make the file again")
            )
        self._identity = file.identity()
        self._vocab_size = vocab_size
        self._arena = Arena(aligned_bytes[U16](_MOST))
        self._room = self._arena.carve[U16](_MOST)
        self._example = self._room.slice(0, 0)
        self._starts = [HEADER_BYTES]
        self._file = file^
        self.has_failed = False
        self.longest = 0
        for i in range(self.num_examples):
            var positions: Int
            try:
                var end = self._starts[i] + self._size_of_next(self._starts[i])
                self._starts.append(end)
                positions = self._load(i)
            except error:
                raise self._file.error(String(t"example {i} of {self.num_examples}: {error}"))
            if positions > context:
                raise self._file.error(
                    String(
                        t"example {i} takes {positions} positions, the context has {context}; use a model with a longer"
                        t" context (in training, a larger --seq-len)"
                    )
                )
            self.longest = max(self.longest, positions)
        self._file.expect_size(
            self._starts[self.num_examples], String(t"{self.num_examples} examples after the header")
        )

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def read(mut self, example: Int) raises:
        """Makes an example the one that the other methods tell about.

        Raises:
            If the file has changed since it was checked, or the disk fails.
        """
        try:
            if self._load(example) > self.longest:
                raise Error(t"expected at most {self.longest} positions; the file has changed: leave it alone")
            self._file.expect_unchanged(self._identity)
        except error:
            self.has_failed = True
            # A change says more than what has become of the example.
            self._file.expect_unchanged(self._identity)
            raise self._file.error(String(t"example {example} of {self.num_examples}: {error}"))

    def label(self) -> Int:
        """Returns the ending that is right."""
        return Int(self._example[3])

    def context(self) -> Tensor[U16]:
        """Views the tokens of the question, until the next one is read."""
        return self._tokens(_FIELDS)

    def endings(self) -> List[Tensor[U16]]:
        """Views the tokens of each answer, until the next ones are read."""
        var endings = List[Tensor[U16]]()
        var position = _FIELDS + 1 + self.context().size
        for _ in range(NUM_ENDINGS):
            endings.append(self._tokens(position))
            position += 1 + endings[len(endings) - 1].size
        return endings^

    def _tokens(self, position: Int) -> Tensor[U16]:
        """Views the tokens that follow their number."""
        return self._example.slice(position + 1, Int(self._example[position]))

    def _size_of_next(self, start: Int) raises -> Int:
        """Returns the bytes of the example that begins there, which the file has."""
        var left = self._file.size - start
        if left >= _FIELDS * size_of[UInt16]():
            var fields = self._room.slice(0, _FIELDS)
            self._file.read(start, fields)
            var size = Int(fields[1]) // size_of[UInt16]()
            if _FIELDS <= size and size * size_of[UInt16]() <= left:
                return size * size_of[UInt16]()
        raise Error("expected an example, found the end of the file; it is cut off or damaged: make it again")

    def _load(mut self, example: Int) raises -> Int:
        """Reads and checks an example, and returns the positions that its longest sequence takes."""
        var start = self._starts[example]
        self._example = self._room.slice(0, (self._starts[example + 1] - start) // size_of[UInt16]())
        self._file.read(start, self._example)
        _check_example(self._example, example)
        return _check_tokens(self._example, self._vocab_size)


def _check_example(stream: Tensor[U16], index: Int) raises:
    """Checks the numbers of an example against each other."""
    var size = Int(stream[1]) // size_of[UInt16]()
    if Int(stream[0]) != _START or Int(stream[2]) != index or size != stream.size:
        raise Error(
            t"expected 65535 and the index, found {stream[0]} and {stream[2]}; the file is damaged: make it again"
        )
    if Int(stream[3]) >= NUM_ENDINGS or Int(stream[4]) != NUM_ENDINGS:
        raise Error(
            t"expected {NUM_ENDINGS} endings and a label below, found {stream[4]} endings and label"
            t" {stream[3]}; this evaluation takes questions with four answers"
        )
    var position = _FIELDS
    for _ in range(1 + NUM_ENDINGS):
        var count = Int(stream[position]) if position < size else 0
        if count < 1 or position + 1 + count > size:
            raise Error(
                t"expected a context and {NUM_ENDINGS} endings of at least 1 token in its {2 * size} bytes, found"
                t" otherwise; the file is damaged: make it again"
            )
        position += 1 + count
    if position != size:
        raise Error(t"expected {2 * position} bytes, found {2 * size}; the file is damaged: make it again")


def _check_tokens(stream: Tensor[U16], vocab_size: Int) raises -> Int:
    """Checks the tokens of a good example and returns the positions that its longest sequence takes.

    The last token of an ending is only ever a target.
    """
    var position = _FIELDS
    var context = Int(stream[position])
    var longest = 0
    for part in range(1 + NUM_ENDINGS):
        var count = Int(stream[position])
        if part > 0:
            longest = max(longest, context + count - 1)
        for i in range(position + 1, position + 1 + count):
            if Int(stream[i]) >= vocab_size:
                raise Error(
                    t"expected tokens below {vocab_size}, the model's vocabulary, found {stream[i]}; make the file with"
                    t" the model's own tokenizer"
                )
        position += 1 + count
    return longest
