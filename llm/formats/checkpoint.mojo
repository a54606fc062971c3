"""Model checkpoints in llm.c's format: a header with six sizes, then the tensors one after another.

What the sizes mean and how many tensors there are is the model's affair (`model/checkpoints.mojo`).
"""

from std.sys import size_of

from llm.base.files import InputFile
from llm.base.memory import Arena, Tensor
from llm.base.written_files import AtomicFile
from llm.formats.header import CHECKPOINT_MAGIC, HEADER_BYTES, Header, read_header

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime FP32_VERSION = 3
comptime BF16_VERSION = 5

# No GPT-2 is larger; within these limits the number of parameters cannot overflow.
comptime MAX_LENGTH = 1 << 24
comptime MAX_CHANNELS = 1 << 17
comptime MAX_LAYERS = 1 << 14

comptime _CONVERTED_AT_ONCE = 1 << 16
"""Elements that fit into a near cache while they are turned into another type."""
comptime _LANES = 16


@fieldwise_init
struct CheckpointSizes(Copyable, Movable):
    """The sizes in a header, in the order of the file."""

    var max_seq_len: Int
    var vocab_size: Int
    var num_layers: Int
    var num_heads: Int
    var channels: Int
    var padded_vocab_size: Int


struct CheckpointFile(Movable):
    """A checkpoint that is open for reading."""

    var sizes: CheckpointSizes
    var _file: InputFile
    var _in_bfloat16: Bool

    def __init__(out self, path: String) raises:
        """Opens a checkpoint and reads its header.

        Raises:
            If there is none under this name, or a size in its header is beyond all models.
        """
        self._file = InputFile("read_checkpoint", path)
        var header = read_header(self._file, CHECKPOINT_MAGIC, [FP32_VERSION, BF16_VERSION])
        self._in_bfloat16 = header[1] == BF16_VERSION
        _check_limit(self._file, "max sequence length", header[2], MAX_LENGTH)
        _check_limit(self._file, "vocabulary", header[3], MAX_LENGTH)
        _check_limit(self._file, "number of layers", header[4], MAX_LAYERS)
        _check_limit(self._file, "number of heads", header[5], MAX_CHANNELS)
        _check_limit(self._file, "number of channels", header[6], MAX_CHANNELS)
        _check_limit(self._file, "padded vocabulary", header[7], MAX_LENGTH)
        self.sizes = CheckpointSizes(header[2], header[3], header[4], header[5], header[6], header[7])

    def expect_parameters(self, count: Int) raises:
        """Raises unless the file holds so many parameters after its header, and nothing else."""
        var bytes = size_of[BFloat16]() if self._in_bfloat16 else size_of[Float32]()
        self._file.expect_size(
            HEADER_BYTES + count * bytes, String(t"{count} parameters of {bytes} bytes after the header")
        )

    def read[dtype: DType](self, tensors: List[Tensor[dtype]]) raises:
        """Fills the tensors in turn; fp32 and bfloat16 are turned into each other, to the nearest value.

        Raises:
            If the file is too short, or the disk fails.
        """
        var offset = HEADER_BYTES
        for tensor in tensors:
            if self._in_bfloat16:
                offset += _read_tensor[BF16](self._file, offset, tensor)
            else:
                offset += _read_tensor[F32](self._file, offset, tensor)

    def error(self, what: String) -> Error:
        """Makes an error that names the file."""
        return self._file.error(what)


def checkpoint_file(
    path: String, sizes: CheckpointSizes, tensors: List[Tensor[F32]], in_bfloat16: Bool
) raises -> AtomicFile:
    """Writes a model up to the last byte; it appears under its name when the caller commits the file.

    Raises:
        If the file cannot be written.
    """
    var header = Header(CHECKPOINT_MAGIC, BF16_VERSION if in_bfloat16 else FP32_VERSION)
    header[2] = sizes.max_seq_len
    header[3] = sizes.vocab_size
    header[4] = sizes.num_layers
    header[5] = sizes.num_heads
    header[6] = sizes.channels
    header[7] = sizes.padded_vocab_size
    var file = AtomicFile("write_checkpoint", path)
    header.write(file)
    for tensor in tensors:
        if in_bfloat16:
            _write_bfloat16(file, tensor)
        else:
            file.write(tensor)
    file.flush()
    return file^


def _check_limit(file: InputFile, what: String, value: Int, limit: Int) raises:
    if value < 1 or value > limit:
        raise file.error(
            String(
                t"expected a {what} from 1 to {limit}, found {value} in the header; the file is damaged: make it again"
            )
        )


def _read_tensor[stored: DType, dtype: DType](file: InputFile, offset: Int, target: Tensor[dtype]) raises -> Int:
    """Reads a tensor whose elements are `stored` in the file, and returns the bytes that it takes there."""
    comptime if stored == dtype:
        file.read(offset, target)
    else:
        var buffer = Arena(_CONVERTED_AT_ONCE * size_of[Scalar[stored]]())
        var values = buffer.carve[stored](_CONVERTED_AT_ONCE)
        for first in range(0, target.size, _CONVERTED_AT_ONCE):
            var count = min(_CONVERTED_AT_ONCE, target.size - first)
            file.read(offset + first * size_of[Scalar[stored]](), values.slice(0, count))
            for i in range(0, count - count % _LANES, _LANES):
                target.store(first + i, values.load[_LANES](i).cast[dtype]())
            for i in range(count - count % _LANES, count):
                target[first + i] = values[i].cast[dtype]()
        _ = buffer^
    return target.size * size_of[Scalar[stored]]()


def _write_bfloat16(mut file: AtomicFile, source: Tensor[F32]) raises:
    comptime AT_ONCE = 1 << 20
    var chunk = List[BFloat16](length=min(AT_ONCE, source.size), fill=0)
    for start in range(0, source.size, AT_ONCE):
        var count = min(AT_ONCE, source.size - start)
        for i in range(count):
            chunk[i] = source[start + i].cast[BF16]()
        file.write(Tensor[BF16](viewing=Span(chunk)).slice(0, count))
    _ = chunk^
