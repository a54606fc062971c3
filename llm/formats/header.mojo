"""The header of every llm.c file: 256 int32, of which the first two are a magic number and a version.

The one Mojo file that knows the magic numbers.
"""

from llm.base.files import InputFile
from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile

comptime HEADER_INTS = 256
comptime HEADER_BYTES = HEADER_INTS * 4

comptime CHECKPOINT_MAGIC = 20240326
comptime DEBUG_STATE_MAGIC = 20240327
comptime TOKENIZER_MAGIC = 20240328
comptime TOKENS_MAGIC = 20240520
comptime CHOICES_MAGIC = 20240522
comptime STATE_MAGIC = 20240527
comptime WIDE_TOKENS_MAGIC = 20240801

comptime _UNKNOWN = "something unknown"


struct Header(Movable):
    """The 256 numbers, unused ones zero."""

    var _fields: List[Int32]

    def __init__(out self):
        """Makes a header of zeros."""
        self._fields = List[Int32](length=HEADER_INTS, fill=0)

    def __init__(out self, magic: Int, version: Int):
        """Starts the header of a file to be written."""
        self = Self()
        self[0] = magic
        self[1] = version

    def __getitem__(self, i: Int) -> Int:
        """Reads field i."""
        return Int(self._fields[i])

    def __setitem__(mut self, i: Int, value: Int):
        """Sets field i."""
        self._fields[i] = Int32(value)

    def get64(self, i: Int) -> UInt64:
        """Reads the 64-bit number in fields i and i + 1."""
        return UInt64(self._fields[i].cast[DType.uint32]()) | UInt64(self._fields[i + 1].cast[DType.uint32]()) << 32

    def set64(mut self, i: Int, value: UInt64):
        """Sets the 64-bit number in fields i and i + 1."""
        self._fields[i] = value.cast[DType.int32]()
        self._fields[i + 1] = (value >> 32).cast[DType.int32]()

    def write(mut self, mut file: AtomicFile) raises:
        """Writes the header at the start of a file."""
        file.write(self._view())

    def _view(mut self) -> Tensor[DType.int32]:
        return Tensor[DType.int32](viewing=Span(self._fields))


def read_header(file: InputFile, magic: Int, versions: List[Int]) raises -> Header:
    """Reads the header of a file that should be of this kind.

    Raises:
        If the file is shorter than a header, of another kind, or of a version that is not in the list.
    """
    var kind = _kind(magic)
    if file.size < HEADER_BYTES:
        raise file.error(
            String(
                t"expected {kind} with a header of {HEADER_BYTES} bytes, found {file.size} bytes; the file is cut off"
                t" or of another kind: make it again"
            )
        )
    var header = Header()
    file.read(0, header._view())
    if header[0] != magic:
        raise file.error(
            String(
                t"expected {kind} (magic number {magic}), found {_kind(header[0])} ({header[0]}); give the right file"
            )
        )
    if header[1] not in versions:
        var known = String(versions[0])
        for i in range(1, len(versions)):
            known += String(t" or {versions[i]}")
        raise file.error(
            String(
                t"expected version {known} of {kind}, found version {header[1]}; make the file again with these tools"
            )
        )
    return header^


def is_known(magic: Int) -> Bool:
    """Tells whether a kind of file begins with this number."""
    return _kind(magic) != _UNKNOWN


def _kind(magic: Int) -> String:
    if magic == CHECKPOINT_MAGIC:
        return "a model checkpoint"
    if magic == DEBUG_STATE_MAGIC:
        return "a debug state"
    if magic == TOKENIZER_MAGIC:
        return "a tokenizer file"
    if magic == TOKENS_MAGIC:
        return "a token shard"
    if magic == WIDE_TOKENS_MAGIC:
        return "a token shard of Llama 3"
    if magic == CHOICES_MAGIC:
        return "a multiple-choice evaluation"
    if magic == STATE_MAGIC:
        return "a training state"
    return _UNKNOWN
