"""The header of llm.c's files, and what readers check of a file before they believe it.

256 int32 (1024 bytes): the magic number, the version, sizes; unused fields are zero.
"""

import os

import numpy as np

from llm_mojo import Error

HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
INT32_MAX = 2**31 - 1

CHECKPOINT_MAGIC = 20240326
DEBUG_STATE_MAGIC = 20240327
TOKENIZER_MAGIC = 20240328
TOKENS_MAGIC = 20240520
TOKENS_UINT32_MAGIC = 20240801
CHOICES_MAGIC = 20240522
STATE_MAGIC = 20240527

KINDS = {
    CHECKPOINT_MAGIC: "a model checkpoint",
    DEBUG_STATE_MAGIC: "a debug state",
    TOKENIZER_MAGIC: "a tokenizer file",
    TOKENS_MAGIC: "a token shard (uint16)",
    TOKENS_UINT32_MAGIC: "a token shard (uint32)",
    CHOICES_MAGIC: "a multiple-choice evaluation",
    STATE_MAGIC: "a training state",
}


class FormatError(Error):
    """A file is missing, damaged, of another kind, or cannot hold what it is asked to hold."""


def pack_header(fields):
    """fields: index -> value. Returns the 1024 bytes."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    for index, value in fields.items():
        header[index] = value
    return header.tobytes()


def open_file(who, path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise FormatError(f"{who}: cannot open {path}: {error.strerror}; check the path or make the file") from None


def read_header(who, path, file, kinds):
    """Returns (header, what kinds says about this magic and version). kinds: magic -> {version: anything}."""
    raw = file.read(HEADER_BYTES)
    wanted = " or ".join(KINDS[magic] for magic in kinds)
    if len(raw) < HEADER_BYTES:
        raise FormatError(
            f"{who}: {path}: expected {wanted} with a header of {HEADER_BYTES} bytes, found {len(raw)} bytes;"
            " the file is cut off or not of this kind: make it again"
        )
    header = np.frombuffer(raw, dtype="<i4")
    magic, version = int(header[0]), int(header[1])
    if magic not in kinds:
        found = f"{KINDS[magic]} ({magic})" if magic in KINDS else f"unknown magic number {magic}"
        wanted = " or ".join(f"{KINDS[magic]} ({magic})" for magic in kinds)
        raise FormatError(f"{who}: {path}: expected {wanted}, found {found}; give the right file")
    if version not in kinds[magic]:
        versions = " or ".join(str(known) for known in kinds[magic])
        raise FormatError(
            f"{who}: {path}: expected version {versions} of {KINDS[magic]}, found version {version};"
            " make the file again with this version of the tools"
        )
    return header, kinds[magic][version]


def check_size(who, path, expected, because):
    found = os.path.getsize(path)
    if found != expected:
        raise FormatError(
            f"{who}: {path}: expected {expected:,} bytes ({because}), found {found:,} bytes;"
            f" the file is {'cut off' if found < expected else 'too long'}: make it or download it again"
        )


def map_array(path, dtype, offset, shape):
    """A read-only memory map; numpy cannot map nothing, so an empty one is an ordinary array."""
    if num_elements(shape) == 0:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=tuple(shape))


def check_shape(who, name, array, shape):
    if tuple(array.shape) != tuple(shape):
        raise FormatError(
            f"{who}: expected {name} of shape {tuple(shape)}, got {tuple(array.shape)}; check the configuration"
        )


def num_elements(shape):
    count = 1
    for size in shape:
        count *= int(size)
    return count
