"""Token shards."""

import os

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    HEADER_BYTES,
    INT32_MAX,
    KINDS,
    TOKENS_MAGIC,
    TOKENS_UINT32_MAGIC,
    FormatError,
    check_size,
    map_array,
    open_file,
    pack_header,
    read_header,
)

TOKENS_VERSIONS = {1: "<u2"}
TOKENS_UINT32_VERSIONS = {7: "<u4"}
NPY_MAGIC = b"\x93NUMPY"


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of the ids in a shard: uint16, or uint32 (llm.c's Llama-3 variant) for more than 65,536 tokens."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokens_header(count: int, dtype: DTypeLike) -> bytes:
    """The 1024 bytes before the ids of a shard."""
    if count > INT32_MAX:
        raise FormatError(
            f"write_tokens: a shard holds at most {INT32_MAX:,} tokens, not {count:,}; use --shard-tokens"
        )
    kinds = {TOKENS_MAGIC: TOKENS_VERSIONS, TOKENS_UINT32_MAGIC: TOKENS_UINT32_VERSIONS}
    for magic, versions in kinds.items():
        for version, kind in versions.items():
            if kind == np.dtype(dtype):
                return pack_header({0: magic, 1: version, 2: count})
    raise FormatError(f"write_tokens: expected ids of type uint16 or uint32, got {dtype}")


def write_tokens(path: AnyPath, tokens: ArrayLike, dtype: DTypeLike = "<u2") -> None:
    """Writes a token shard of uint16 or uint32 ids."""
    ids, largest = np.asarray(tokens), np.iinfo(dtype).max
    if ids.size and (ids.min() < 0 or ids.max() > largest):
        raise FormatError(f"write_tokens: {path}: expected ids from 0 to {largest}, got {ids.min()} to {ids.max()}")
    with atomic_file(path) as file:
        file.write(tokens_header(ids.size, dtype))
        file.write(np.ascontiguousarray(ids, dtype=dtype).data)


def read_tokens(path: AnyPath) -> np.ndarray:
    """Returns a memory map of the ids of a shard: llm.c's, build-nanogpt's (.npy), or nanoGPT's uint16 without a header."""
    who = "read_tokens"
    with open_file(who, path) as file:
        start = file.read(8)
        if start[:6] == NPY_MAGIC:
            return _read_npy(who, path)
        if str(path).endswith(".bin") and int.from_bytes(start[:4], "little") not in KINDS:
            return _read_headerless(who, path)
        file.seek(0)
        kinds = {TOKENS_MAGIC: TOKENS_VERSIONS, TOKENS_UINT32_MAGIC: TOKENS_UINT32_VERSIONS}
        header, dtype = read_header(who, path, file, kinds)
    count = int(header[2])
    if count < 0:
        raise FormatError(
            f"{who}: {path}: expected a number of tokens, found {count} in the header; make the file again"
        )
    check_size(who, path, HEADER_BYTES + count * np.dtype(dtype).itemsize, f"{count:,} tokens after the header")
    return map_array(path, dtype, HEADER_BYTES, (count,))


def _read_npy(who, path):
    try:
        tokens = np.load(path, mmap_mode="r")
    except Exception as error:  # of many kinds: the header is a text in Python's syntax
        raise FormatError(f"{who}: {path}: not a whole .npy file ({error}); make it again") from None
    if tokens.ndim != 1 or tokens.dtype not in (np.dtype("<u2"), np.dtype("<u4")):
        raise FormatError(
            f"{who}: {path}: expected one row of uint16 or uint32, found {tokens.dtype} of shape {tokens.shape}"
        )
    return tokens


def _read_headerless(who, path):
    size = os.path.getsize(path)
    if size == 0 or size % 2:
        raise FormatError(
            f"{who}: {path}: expected llm.c's header, or nanoGPT's uint16 ids without one, found {size:,} bytes;"
            " the file is cut off or of another kind: make it again"
        )
    return map_array(path, "<u2", 0, (size // 2,))
