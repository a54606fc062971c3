"""Reads and writes .safetensors files, without PyTorch.

The file is the length of a JSON text as u64, that text (name -> dtype, shape and place), and the data. It is
memory-mapped, and written tensor by tensor.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_mojo.files import fingerprint
from llm_mojo.formats import FormatError, bfloat16_to_float32

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST_HEADER = 100_000_000  # bytes, as in Hugging Face's own reader
ALIGNMENT = 8  # of the data, by spaces after the JSON text


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple
    offset: int
    end: int


class Safetensors:
    """The tensors of one or more .safetensors files: `places`, name -> Place, `metadata`, name -> text, and `read`."""

    def __init__(self, paths):
        self.paths = paths
        self.places: dict[str, Place] = {}
        self.metadata: dict[str, str] = {}
        self._marks = [fingerprint(path) for path in paths]
        for path in paths:
            places, metadata = _read_header(path)
            self.places |= places
            self.metadata |= metadata

    def __str__(self):
        return ", ".join(map(str, self.paths))

    def check_unchanged(self) -> None:
        """Raises FormatError if a file has been written to since it was opened: its tensors may be of two models."""
        for path, mark in zip(self.paths, self._marks):
            if fingerprint(path) != mark:
                raise FormatError(f"safetensors: {path}: the file changed while it was read; run the command again")

    def read(self, name, shape):
        """Returns a tensor as float32: a memory map if it is stored so, else a copy. It must have this shape."""
        place = self.places[name]
        if place.shape != tuple(shape):
            raise FormatError(
                f"safetensors: {place.path}: expected {name} of shape {tuple(shape)}, found {place.shape};"
                " does config.json belong to it?"
            )
        if place.dtype not in DTYPES:
            raise FormatError(
                f"safetensors: {place.path}: expected {name} as {' or '.join(DTYPES)}, found {place.dtype};"
                " save it as one of these"
            )
        values = np.memmap(place.path, dtype=DTYPES[place.dtype], mode="r", offset=place.offset, shape=place.shape)
        return bfloat16_to_float32(values) if place.dtype == "BF16" else values.astype("<f4", copy=False)


def _read_header(path):
    """Reads the header of a .safetensors file and checks it against the length of the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise FormatError(
                f"safetensors: {path}: expected a header of {8 + length:,} bytes, found a file of {size:,};"
                " it is cut off or not safetensors"
            )
        if length > LARGEST_HEADER:
            raise FormatError(
                f"safetensors: {path}: expected a header of up to {LARGEST_HEADER:,} bytes, found {length:,};"
                " it is not safetensors"
            )
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            places = {name: _place(path, 8 + length, **entry) for name, entry in header.items()}
            if not isinstance(metadata, dict):
                raise ValueError("metadata that is no object")
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f"safetensors: {path}: expected the JSON header of a .safetensors file, found something else;"
                " get the file again"
            ) from None
    end = max((place.end for place in places.values()), default=0)
    if end > size:
        raise FormatError(
            f"safetensors: {path}: expected {end:,} bytes, found {size:,}; the file is cut off: get it again"
        )
    return places, metadata


def _place(path, start, dtype, shape, data_offsets):
    begin, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)) or not isinstance(dtype, str):
        raise ValueError("numbers that are no sizes")
    item = np.dtype(DTYPES.get(dtype, "u1")).itemsize
    if begin > end or (dtype in DTYPES and end - begin != math.prod(shape) * item):
        raise ValueError("the shape does not fit its place")
    return Place(path, dtype, tuple(shape), start + begin, start + end)


def write_safetensors(file, tensors, metadata):
    """Writes a whole .safetensors file, open for writing bytes. `metadata`: name -> text.

    `tensors`: name -> (dtype, one of DTYPES; shape; a function that returns the array, called when its turn has come).
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name, (dtype, shape, read) in tensors.items():
        values = np.ascontiguousarray(read(), dtype=DTYPES[dtype])
        if values.shape != tuple(shape):
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {values.shape}")
        file.write(values.data)
