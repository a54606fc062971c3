"""Debug states: what PyTorch makes of one batch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    DEBUG_STATE_MAGIC,
    HEADER_BYTES,
    FormatError,
    check_shape,
    check_size,
    map_array,
    num_elements,
    open_file,
    pack_header,
    read_header,
)
from llm_mojo.formats.model import ModelConfig, parameter_shapes

DEBUG_STATE_VERSIONS = {2: None}


class DebugState(NamedTuple):
    """One training step of the reference: x, y int32 (B,T); logits float32 (B,T,V); loss float; grads name -> float32."""

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict[str, np.ndarray]


def write_debug_state(
    path: AnyPath,
    x: ArrayLike,
    y: ArrayLike,
    logits: np.ndarray,
    loss: float,
    grads: Mapping[str, np.ndarray],
    config: ModelConfig,
) -> None:
    """Writes one step. x, y int (B,T); logits (B,T,V), not padded; loss a number; grads as parameter_shapes(config)."""
    who = "write_debug_state"
    x, y = np.asarray(x), np.asarray(y)
    B, T = x.shape
    check_shape(who, "y", y, (B, T))
    check_shape(who, "logits", logits, (B, T, config.vocab_size))
    for name, shape in parameter_shapes(config).items():
        check_shape(who, f"gradient of {name}", grads[name], shape)
    with atomic_file(path) as file:
        file.write(pack_header(dict(enumerate((DEBUG_STATE_MAGIC, min(DEBUG_STATE_VERSIONS), B, T)))))
        for tokens in (x, y):
            file.write(np.ascontiguousarray(tokens, dtype="<i4").data)
        for values in (logits, [float(loss)], *(grads[name] for name in parameter_shapes(config))):
            file.write(np.ascontiguousarray(values, dtype="<f4").data)


def read_debug_state(path: AnyPath, config: ModelConfig) -> DebugState:
    """Returns a DebugState of memory maps. The file holds no sizes but B and T: `config` must be its model's."""
    who = "read_debug_state"
    with open_file(who, path) as file:
        header, _ = read_header(who, path, file, {DEBUG_STATE_MAGIC: DEBUG_STATE_VERSIONS})
    B, T = int(header[2]), int(header[3])
    if B <= 0 or T <= 0:
        raise FormatError(f"{who}: {path}: expected B and T of at least 1, found B={B} T={T}; make the file again")
    shapes = {"x": (B, T), "y": (B, T), "logits": (B, T, config.vocab_size), "loss": (1,)}
    dtypes = {"x": "<i4", "y": "<i4"}
    shapes.update(parameter_shapes(config))
    total = 4 * sum(num_elements(shape) for shape in shapes.values())
    check_size(who, path, HEADER_BYTES + total, f"B={B} T={T} and a model of {config}")
    arrays, offset = {}, HEADER_BYTES
    for name, shape in shapes.items():
        arrays[name] = map_array(path, dtypes.get(name, "<f4"), offset, shape)
        offset += 4 * num_elements(shape)
    grads = {name: arrays[name] for name in parameter_shapes(config)}
    return DebugState(arrays["x"], arrays["y"], arrays["logits"], float(arrays["loss"][0]), grads)
