"""llm.c's evaluation file of questions with four endings (HellaSwag).

The file is a header and a stream of uint16, for each example: 65535, its size in bytes, its index, the label, 4, and then
the context and the four endings, their tokens preceded by how many there are.
"""

from std.sys import size_of

from llm.base.files import InputFile, MappedFile
from llm.base.memory import Tensor
from llm.formats.header import CHOICES_MAGIC, HEADER_BYTES, read_header

comptime U16 = DType.uint16
comptime NUM_ENDINGS = 4
comptime CHOICES_VERSION = 1
comptime _START = 65535
comptime _FIELDS = 5
"""Numbers of an example before its context."""


struct ChoicesFile(Movable):
    """The examples of a file, mapped, all of them checked beforehand."""

    var path: String
    var num_examples: Int
    var longest: Int
    """Positions of the longest context with an ending."""
    var _file: MappedFile
    var _stream: Tensor[U16]
    var _starts: List[Int]
    """Where in the stream each example begins."""

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
        self._file = MappedFile(file)
        var size = (file.size - HEADER_BYTES) // size_of[UInt16]()
        self._stream = self._file.view[U16](HEADER_BYTES, size)
        self._starts = List[Int]()
        self.longest = 0
        var position = 0
        for i in range(self.num_examples):
            var positions: Int
            try:
                var end = _check_example(self._stream, position, i)
                positions = _check_tokens(self._stream, position, vocab_size)
                self._starts.append(position)
                position = end
            except error:
                raise file.error(String(t"example {i} of {self.num_examples}: {error}"))
            if positions > context:
                raise file.error(
                    String(
                        t"example {i} takes {positions} positions, the context has {context}; use a model with a longer"
                        t" context (in training, a larger --seq-len)"
                    )
                )
            self.longest = max(self.longest, positions)
        file.expect_size(
            HEADER_BYTES + position * size_of[UInt16](), String(t"{self.num_examples} examples after the header")
        )

    def label(self, example: Int) -> Int:
        """Returns the ending that is right."""
        return Int(self._stream[self._starts[example] + 3])

    def context(self, example: Int) -> Tensor[U16]:
        """Views the tokens of the question."""
        return self._tokens(self._starts[example] + _FIELDS)

    def endings(self, example: Int) -> List[Tensor[U16]]:
        """Views the tokens of each answer."""
        var endings = List[Tensor[U16]]()
        var position = self._starts[example] + _FIELDS
        position += 1 + self._tokens(position).size
        for _ in range(NUM_ENDINGS):
            endings.append(self._tokens(position))
            position += 1 + endings[len(endings) - 1].size
        return endings^

    def _tokens(self, position: Int) -> Tensor[U16]:
        """Views the tokens that follow their number."""
        return self._stream.slice(position + 1, Int(self._stream[position]))


def _check_example(stream: Tensor[U16], start: Int, index: Int) raises -> Int:
    """Checks the numbers of an example against each other and returns where the next one begins."""
    var left = stream.size - start
    var size = Int(stream[start + 1]) // size_of[UInt16]() if left >= _FIELDS else 0
    if size < _FIELDS or size > left:
        raise Error("expected an example, found the end of the file; it is cut off or damaged: make it again")
    if Int(stream[start]) != _START or Int(stream[start + 2]) != index:
        raise Error(
            t"expected 65535 and the index, found {stream[start]} and {stream[start + 2]}; the file is damaged: make it"
            t" again"
        )
    if Int(stream[start + 3]) >= NUM_ENDINGS or Int(stream[start + 4]) != NUM_ENDINGS:
        raise Error(
            t"expected {NUM_ENDINGS} endings and a label below, found {stream[start + 4]} endings and label"
            t" {stream[start + 3]}; this evaluation takes questions with four answers"
        )
    var position = start + _FIELDS
    var end = start + size
    for _ in range(1 + NUM_ENDINGS):
        var count = Int(stream[position]) if position < end else 0
        if count < 1 or position + 1 + count > end:
            raise Error(
                t"expected a context and {NUM_ENDINGS} endings of at least 1 token in its {2 * size} bytes, found"
                t" otherwise; the file is damaged: make it again"
            )
        position += 1 + count
    if position != end:
        raise Error(t"expected {2 * (position - start)} bytes, found {2 * size}; the file is damaged: make it again")
    return end


def _check_tokens(stream: Tensor[U16], start: Int, vocab_size: Int) raises -> Int:
    """Checks the tokens of a good example and returns the positions that its longest sequence takes.

    The last token of an ending is only ever a target.
    """
    var position = start + _FIELDS
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
