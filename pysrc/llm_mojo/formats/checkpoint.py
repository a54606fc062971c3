"""Model checkpoints."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    CHECKPOINT_MAGIC,
    HEADER_BYTES,
    INT32_MAX,
    FormatError,
    check_shape,
    check_size,
    map_array,
    num_elements,
    open_file,
    pack_header,
    read_header,
)
from llm_mojo.formats.model import (
    ModelConfig,
    bfloat16_to_float32,
    float32_to_bfloat16,
    num_parameters,
    parameter_shapes,
)

CHECKPOINT_VERSIONS = {3: "float32", 5: "bfloat16"}
CHECKPOINT_BYTES = {"float32": 4, "bfloat16": 2}
BLOCK_VALUES = 1 << 22


def write_checkpoint(
    path: AnyPath, config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: str = "float32"
) -> None:
    """Writes a model. `tensors`: name -> array of the shape that parameter_shapes gives; dtype "float32" or "bfloat16"."""
    for name, shape in parameter_shapes(config).items():
        if name not in tensors:
            raise FormatError(
                f"write_checkpoint: {path}: expected tensors {', '.join(parameter_shapes(config))}; {name} is missing"
            )
        check_shape("write_checkpoint", name, tensors[name], shape)
    write_checkpoint_blocks(path, config, lambda name: [tensors[name]], dtype)


def write_checkpoint_blocks(
    path: AnyPath,
    config: ModelConfig,
    blocks: Callable[[str], Iterable[np.ndarray]],
    dtype: str = "float32",
    replace: bool = True,
) -> None:
    """Writes a model without holding it. `blocks(name)`: arrays which, one after the other, make up that tensor.

    Without `replace` a file that is there stays; it is an error if it is not the same.
    """
    check_config("write_checkpoint", path, config)
    versions = {name: version for version, name in CHECKPOINT_VERSIONS.items()}
    if dtype not in versions:
        raise FormatError(f"write_checkpoint: expected dtype {' or '.join(versions)}, got {dtype}")
    sizes = (
        config.max_seq_len,
        config.vocab_size,
        config.num_layers,
        config.num_heads,
        config.channels,
        config.padded_vocab_size,
    )
    fields = dict(enumerate((CHECKPOINT_MAGIC, versions[dtype], *sizes)))
    with atomic_file(path, replace) as file:
        file.write(pack_header(fields))
        for name, shape in parameter_shapes(config).items():
            written = 0
            for block in blocks(name):
                for rows in _rows(block):
                    file.write(_pack_values(rows, dtype).data)
                written += block.size
            if written != num_elements(shape):
                raise FormatError(
                    f"write_checkpoint: {path}: expected {num_elements(shape):,} values in {name} {shape}, got {written:,}"
                )


def _pack_values(values, dtype):
    return float32_to_bfloat16(values) if dtype == "bfloat16" else np.ascontiguousarray(values, dtype="<f4")


def _rows(block):
    """Cuts an array along its first axis, so that converting it needs little memory."""
    step = max(1, BLOCK_VALUES * len(block) // max(1, block.size))
    for start in range(0, len(block), step):
        yield block[start : start + step]


def read_checkpoint(path: AnyPath) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns (ModelConfig, name -> float32 array). fp32 tensors are read-only memory maps; bf16 are widened copies."""
    config, dtype, tensors = map_checkpoint(path)
    if dtype == "bfloat16":
        tensors = {name: bfloat16_to_float32(bits) for name, bits in tensors.items()}
    return config, tensors


def map_checkpoint(path: AnyPath) -> tuple[ModelConfig, str, dict[str, np.ndarray]]:
    """Returns (ModelConfig, "float32" or "bfloat16", name -> read-only memory map; bf16 as uint16 bit patterns)."""
    who = "read_checkpoint"
    with open_file(who, path) as file:
        header, dtype = read_header(who, path, file, {CHECKPOINT_MAGIC: CHECKPOINT_VERSIONS})
    config = ModelConfig(*(int(value) for value in header[2:8]))
    check_config(who, path, config)
    item = CHECKPOINT_BYTES[dtype]
    because = f"{num_parameters(config):,} {dtype} parameters after the header"
    check_size(who, path, HEADER_BYTES + num_parameters(config) * item, because)
    tensors, offset = {}, HEADER_BYTES
    for name, shape in parameter_shapes(config).items():
        tensors[name] = map_array(path, "<u2" if dtype == "bfloat16" else "<f4", offset, shape)
        offset += num_elements(shape) * item
    return config, dtype, tensors


def check_config(who, path, config):
    problems = [f"{field}={value}" for field, value in vars(config).items() if not 0 < value <= INT32_MAX]
    if not problems and config.channels % config.num_heads:
        problems.append(f"channels={config.channels} is not a multiple of num_heads={config.num_heads}")
    if not problems and config.padded_vocab_size < config.vocab_size:
        problems.append(f"padded_vocab_size={config.padded_vocab_size} is less than vocab_size={config.vocab_size}")
    if problems:
        raise FormatError(
            f"{who}: {path}: not the sizes of a GPT-2: {', '.join(problems)}; the file or the request is wrong"
        )
