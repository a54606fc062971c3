"""Files of tokens: llm.c's shards of uint16 or uint32, nanoGPT's uint16 without a header, .npy files.

Tokens are read with a system call, not through a mapping: a file that becomes shorter is then an error, where touching
a mapping would end the process. Windows of a few hundred tokens cost the same either way.
"""

from std.sys import size_of

from llm.base.file_identity import FileIdentity
from llm.base.files import InputFile
from llm.base.memory import Tensor
from llm.base.numbers import parse_integer
from llm.base.strings import part
from llm.formats.header import HEADER_BYTES, TOKENS_MAGIC, WIDE_TOKENS_MAGIC, is_known, read_header

comptime U8 = DType.uint8
comptime U16 = DType.uint16
comptime U32 = DType.uint32
comptime I32 = DType.int32
comptime TOKENS_VERSION = 1
comptime WIDE_TOKENS_VERSION = 7
comptime _TEXT_BYTES = 64
comptime _NPY_SMALLEST_HEADER = 12
comptime _NPY_LARGEST_HEADER = 4096


struct TokenShard(Movable):
    """One open file of tokens, which may not change while it is."""

    var path: String
    var num_tokens: Int
    var identity: FileIdentity
    """Of the file as it was when it was opened."""
    var _file: InputFile
    var _start: Int
    """Where the tokens begin, in bytes."""
    var _size: Int
    """Bytes of a token: 2 or 4."""

    def __init__(out self, path: String, expected: Optional[FileIdentity] = None) raises:
        """Opens a file; if it has been open before, it has to be the one `expected`, as it was then.

        What begins with no magic number that we know is nanoGPT's if it is called `.bin`.

        Raises:
            If there is none under this name, it has changed, it holds no tokens, or not as many as it says.
        """
        var file = InputFile("data", path)
        if expected:
            file.expect_unchanged(expected.value())
        self.identity = file.identity()
        var magic = _magic(file)
        self.path = path
        self._start = HEADER_BYTES
        self._size = size_of[UInt16]()
        if _is_npy(file):
            var layout = NpyHeader(file)
            self._start = layout.start
            self._size = layout.size
            self.num_tokens = layout.count
        elif path.endswith(".bin") and not is_known(magic) and file.size > 0 and file.size % self._size == 0:
            if _is_text(file):
                raise file.error(
                    "expected tokens, found text; make token shards of it with `python -m llm_mojo prepare`"
                )
            self._start = 0
            self.num_tokens = file.size // self._size
        elif magic == WIDE_TOKENS_MAGIC:
            self._size = size_of[UInt32]()
            self.num_tokens = read_header(file, WIDE_TOKENS_MAGIC, [WIDE_TOKENS_VERSION])[2]
        else:
            self.num_tokens = read_header(file, TOKENS_MAGIC, [TOKENS_VERSION])[2]
        if self.num_tokens < 0:
            raise file.error(
                String(t"expected a number of tokens, found {self.num_tokens} in the header; make the file again")
            )
        file.expect_size(
            self._start + self.num_tokens * self._size, String(t"{self.num_tokens} tokens after the header")
        )
        self._file = file^

    def read_pairs(self, start: Int, inputs: Tensor[I32], targets: Tensor[I32], vocab_size: Int) raises:
        """Copies tokens start, start + 1 ... to the inputs, and those that follow each of them to the targets.

        Raises:
            If one is not in the vocabulary, the file is no longer what it was when it was opened, or the disk fails.
        """
        var largest: Int
        try:
            largest = max(self._read(start, inputs.slice(0, 1)), self._read(start + 1, targets))
        except error:
            # A change says more than that something is missing.
            self._file.expect_unchanged(self.identity)
            raise error^
        self._file.expect_unchanged(self.identity)
        for i in range(1, inputs.size):
            inputs[i] = targets[i - 1]
        if largest >= vocab_size:
            var i = 0
            while i < inputs.size and Int(inputs[i].cast[U32]()) < vocab_size:
                i += 1
            var found = (inputs[i] if i < inputs.size else targets[i - 1]).cast[U32]()
            raise Error(
                t"data: {self.path}: expected tokens below {vocab_size}, the model's vocabulary, found {found} at"
                t" position {start + i}; use data made with the model's own tokenizer"
            )

    def _read(self, start: Int, target: Tensor[I32]) raises -> Int:
        """Copies tokens start, start + 1 ... until `target` is full, and returns the largest of them."""
        var offset = self._start + start * self._size
        if self._size == size_of[UInt32]():
            var wide = Tensor[U32](Tensor[U32].Ptr(unsafe_from_address=Int(target.ptr)), target.size)
            self._file.read(offset, wide)
            return _widen(wide, target)
        # Read into the second half of the target and widened from the front: none is overwritten before its turn.
        var half = Int(target.ptr) + target.size * size_of[UInt16]()
        var narrow = Tensor[U16](Tensor[U16].Ptr(unsafe_from_address=half), target.size)
        self._file.read(offset, narrow)
        return _widen(narrow, target)


def _widen[dtype: DType](source: Tensor[dtype], target: Tensor[I32]) -> Int:
    """Turns tokens into Int32 in the same memory, and returns the largest."""
    var largest = Scalar[dtype](0)
    for i in range(target.size):
        var token = source[i]
        target[i] = token.cast[I32]()
        largest = max(largest, token)
    return Int(largest)


def _magic(file: InputFile) raises -> Int:
    """Reads the first 4 bytes; 0 if there are fewer."""
    if file.size < size_of[Int32]():
        return 0
    var number = List[Int32](length=1, fill=0)
    file.read(0, Tensor[I32](viewing=Span(number)))
    return Int(number[0])


def _is_npy(file: InputFile) raises -> Bool:
    if file.size < _NPY_SMALLEST_HEADER:
        return False
    var bytes = _bytes(file, 6)
    # The first byte, 0x93, is no character of UTF-8.
    return bytes[0] == 0x93 and StringSlice(unsafe_from_utf8=Span(bytes)[1:]) == "NUMPY"


def _is_text(file: InputFile) raises -> Bool:
    """Tells whether a file begins with text: no bytes of controls, of which tokens have many."""
    if file.size < _TEXT_BYTES:
        return False
    for byte in _bytes(file, min(file.size, 8 * _TEXT_BYTES)):
        if (byte < 0x20 and byte != 0x09 and byte != 0x0A and byte != 0x0D) or byte == 0x7F:
            return False
    return True


def _bytes(file: InputFile, count: Int) raises -> List[UInt8]:
    var bytes = List[UInt8](length=count, fill=0)
    file.read(0, Tensor[U8](viewing=Span(bytes)))
    return bytes^


struct NpyHeader(Movable):
    """What NumPy's header says of a row of numbers: a Python dictionary in text."""

    var start: Int
    """Where the numbers begin, in bytes."""
    var size: Int
    """Bytes of a number."""
    var count: Int

    def __init__(out self, file: InputFile) raises:
        """Reads the header of versions 1 to 3.

        Raises:
            If it is damaged, or the file has anything but one row of uint16 or uint32.
        """
        var bytes = _bytes(file, min(file.size, _NPY_LARGEST_HEADER))
        var wide = bytes[6] > 1
        var length = Int(bytes[8]) | Int(bytes[9]) << 8
        self.start = (12 if wide else 10) + length
        if self.start > len(bytes):
            raise file.error("the header of the .npy file is cut off or damaged; make the file again")
        var dictionary = Span(bytes)[12 if wide else 10 : self.start]
        for byte in dictionary:
            if (byte < 0x20 and byte != 0x0A) or byte >= 0x7F:
                raise file.error(
                    String(t"expected text in the header of the .npy file, found the byte {byte}; make the file again")
                )
        var text = String(StringSlice(unsafe_from_utf8=dictionary))
        self.size = 0
        if "'descr': '<u2'" in text:
            self.size = size_of[UInt16]()
        elif "'descr': '<u4'" in text:
            self.size = size_of[UInt32]()
        var shape = text.find("'shape': (")
        var comma = text.find(",)", shape)
        if self.size == 0 or shape < 0 or comma < 0 or self.start % self.size != 0:
            raise file.error(
                String(t"expected one row of uint16 or uint32, found {text.strip()}; save the tokens as such")
            )
        var count = parse_integer(part(text, shape + 10, comma))
        if not count:
            raise file.error(String(t"expected one row of numbers, found {text.strip()}; save the tokens as such"))
        self.count = count.value()
