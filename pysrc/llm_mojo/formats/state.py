"""Training state, which lies beside the model that it belongs to."""

import math
import os
from dataclasses import dataclass

import numpy as np

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    HEADER_BYTES,
    INT32_MAX,
    STATE_MAGIC,
    FormatError,
    check_size,
    open_file,
    pack_header,
    read_header,
)
from llm_mojo.formats.model import ModelConfig, num_parameters, parameter_shapes

STATE_VERSIONS = {1: None}
MUON_TENSORS = ("qkvw", "attprojw", "fcw", "fcprojw")
STATE_RNG = np.dtype([("seed", "<u8"), ("left", "<i4"), ("next", "<u4"), ("words", "<u4", 624), ("matrix", "<u4", 2)])


@dataclass
class TrainingState:
    """Where a run is. `m`, `v` and `master` (or None) are flat float32 arrays, all 16 tensors one after the other.

    Muon has no `v` for the tensors of MUON_TENSORS.
    """

    step: int
    shard: int
    sample: int
    m: np.ndarray
    v: np.ndarray
    master: np.ndarray | None = None
    shard_order: np.ndarray | None = None  # None: the data is not shuffled
    sample_order: np.ndarray | None = None
    rng: np.ndarray | None = None  # one STATE_RNG
    processes: int = 1
    rank: int = 0


def write_state(path: AnyPath, state: TrainingState) -> None:
    """Writes a training state."""
    shuffled = state.shard_order is not None
    fields = {0: STATE_MAGIC, 1: min(STATE_VERSIONS), 2: state.processes, 3: state.rank, 10: state.step}
    fields |= {4: int(state.master is not None), 5: int(shuffled), 30: state.shard, 32: state.sample}
    with atomic_file(path) as file:
        file.write(pack_header(fields))
        for values in (state.m, state.v, state.master):
            if values is not None:
                file.write(np.ascontiguousarray(values, dtype="<f4").data)
        if shuffled:
            for order in (state.shard_order, state.sample_order):
                assert order is not None  # there are both or none
                file.write(np.array([len(order)], dtype="<u8").tobytes())
                file.write(np.ascontiguousarray(order, dtype="<i4").tobytes())
            file.write(np.asarray(state.rng, dtype=STATE_RNG).tobytes())


def read_state(path: AnyPath, config: ModelConfig, optimizer: str = "adamw") -> TrainingState:
    """Reads the training state of a model of these sizes, of "adamw" or "muon"."""
    who = "read_state"
    shapes = parameter_shapes(config)
    count, left_out = num_parameters(config), MUON_TENSORS if optimizer == "muon" else ()
    count_v = count - sum(math.prod(shapes[name]) for name in left_out)
    with open_file(who, path) as file:
        header, _ = read_header(who, path, file, {STATE_MAGIC: STATE_VERSIONS})
        scalars = count + count_v + (count if header[4] else 0)
        _check_state_size(who, path, file, scalars, shuffled=bool(header[5]))
        m, v = (_read_array(who, path, file, "<f4", each) for each in (count, count_v))
        master = _read_array(who, path, file, "<f4", count) if header[4] else None
        state = TrainingState(int(header[10]), int(header[30]), int(header[32]), m, v, master)
        state.processes, state.rank = int(header[2]), int(header[3])
        if header[5]:
            for name in ("shard_order", "sample_order"):
                length = int(_read_array(who, path, file, "<u8", 1)[0])
                setattr(state, name, _read_array(who, path, file, "<i4", length))
            state.rng = _read_array(who, path, file, STATE_RNG, 1)[0]
    return state


def _check_state_size(who, path, file, scalars, shuffled):
    """Compares the sizes in a state with that of the file before anything is read."""
    size, left = HEADER_BYTES + 4 * scalars, os.path.getsize(path)
    for _ in range(2 if shuffled else 0):
        file.seek(size)
        length = int.from_bytes(file.read(8), "little")
        size += 8 + 4 * length
        if length > INT32_MAX or size > left:
            raise FormatError(
                f"{who}: {path}: expected an order of {length:,} at byte {size:,}, found a file of {left:,} bytes; the file"
                " is cut off or damaged"
            )
    check_size(who, path, size + (STATE_RNG.itemsize if shuffled else 0), "what the header says")
    file.seek(HEADER_BYTES)


def _read_array(who, path, file, dtype, count):
    left = os.path.getsize(path) - file.tell()
    if count * np.dtype(dtype).itemsize > left:
        raise FormatError(
            f"{who}: {path}: expected {count:,} values, found {left:,} bytes; the file is cut off or damaged"
        )
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype=dtype)
