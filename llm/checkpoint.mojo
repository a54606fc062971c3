"""Model checkpoints in llm.c's format: a header with the sizes, then the 16 tensors (`parameter_specs`) in order."""

from std.sys import size_of

from llm.config import MAX_CHANNELS, MAX_LAYERS, MAX_LENGTH, GPT2Config
from llm.files import AtomicFile, InputFile
from llm.header import CHECKPOINT_MAGIC, HEADER_BYTES, Header, read_header
from llm.memory import Arena, Tensor
from llm.tensors import NUM_TENSORS, ParameterSpec, ParameterTensors, parameter_specs

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime FP32_VERSION = 3
comptime BF16_VERSION = 5

comptime _CONVERTED_AT_ONCE = 1 << 16
"""Elements that fit into a near cache while they are turned into another type."""
comptime _LANES = 16


def read_config(path: String) raises -> GPT2Config:
    """Reads the sizes of the model in a checkpoint.

    Raises:
        If there is no checkpoint under this name, or its header, sizes and length do not agree.
    """
    var file = InputFile("read_checkpoint", path)
    var header = read_header(file, CHECKPOINT_MAGIC, [FP32_VERSION, BF16_VERSION])
    return _checked_config(file, header)


def read_parameters[dtype: DType](path: String, mut params: ParameterTensors[dtype]) raises:
    """Fills the parameters from a checkpoint; fp32 and bfloat16 are turned into each other, to the nearest value.

    Raises:
        If there is no good checkpoint under this name, or its model has other sizes.
    """
    var file = InputFile("read_checkpoint", path)
    var header = read_header(file, CHECKPOINT_MAGIC, [FP32_VERSION, BF16_VERSION])
    var found = parameter_specs(_checked_config(file, header))
    for i in range(NUM_TENSORS):
        if _shape(found[i]) != _shape(params.specs[i]):
            raise file.error(
                String(
                    t"expected {found[i].name} of shape {_shape(params.specs[i])}, found {_shape(found[i])}; give the"
                    t" checkpoint of a model with the same sizes"
                )
            )
    var offset = HEADER_BYTES
    for i in range(NUM_TENSORS):
        if header[1] == BF16_VERSION:
            offset += _read_tensor[BF16](file, offset, params[i])
        else:
            offset += _read_tensor[F32](file, offset, params[i])


def write_checkpoint(path: String, config: GPT2Config, params: ParameterTensors[F32], in_bfloat16: Bool = False) raises:
    """Writes a model in fp32, or rounded to bfloat16: the whole file, or nothing.

    Raises:
        If the file cannot be written; what was there before is unchanged.
    """
    var file = checkpoint_file(path, config, params, in_bfloat16)
    file.commit()


def checkpoint_file(
    path: String, config: GPT2Config, params: ParameterTensors[F32], in_bfloat16: Bool
) raises -> AtomicFile:
    """Writes a model up to the last byte; it appears under its name when the caller commits the file.

    Raises:
        If the file cannot be written.
    """
    var header = Header(CHECKPOINT_MAGIC, BF16_VERSION if in_bfloat16 else FP32_VERSION)
    header[2] = config.max_seq_len
    header[3] = config.vocab_size
    header[4] = config.num_layers
    header[5] = config.num_heads
    header[6] = config.channels
    header[7] = config.padded_vocab_size
    var file = AtomicFile("write_checkpoint", path)
    header.write(file)
    for i in range(NUM_TENSORS):
        if in_bfloat16:
            _write_bfloat16(file, params[i])
        else:
            file.write(params[i])
    file.flush()
    return file^


def _checked_config(file: InputFile, header: Header) raises -> GPT2Config:
    """Takes the sizes from a header; they are those of a GPT-2 and agree with the length of the file."""
    _check_limit(file, "max sequence length", header[2], MAX_LENGTH)
    _check_limit(file, "vocabulary", header[3], MAX_LENGTH)
    _check_limit(file, "number of layers", header[4], MAX_LAYERS)
    _check_limit(file, "number of heads", header[5], MAX_CHANNELS)
    _check_limit(file, "number of channels", header[6], MAX_CHANNELS)
    _check_limit(file, "padded vocabulary", header[7], MAX_LENGTH)
    var config = GPT2Config(header[2], header[3], header[7], header[4], header[5], header[6])
    try:
        config.validate()
    except error:
        raise file.error(String(t"not the sizes of a GPT-2: {error}; the file is damaged: make it again"))
    var count = config.num_parameters()
    var bytes = size_of[BFloat16]() if header[1] == BF16_VERSION else size_of[Float32]()
    file.expect_size(HEADER_BYTES + count * bytes, String(t"{count} parameters of {bytes} bytes after the header"))
    return config^


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
        file.write(Tensor[BF16](Tensor[BF16].Ptr(unsafe_from_address=Int(chunk.unsafe_ptr())), count))
    _ = chunk^


def _shape(spec: ParameterSpec) -> String:
    return String(t"({spec.layers}, {spec.rows}, {spec.columns})")
