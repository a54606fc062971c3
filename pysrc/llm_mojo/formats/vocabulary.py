"""Tokenizer files: the bytes of each token."""

import os
from collections.abc import Iterable, Sequence

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    HEADER_BYTES,
    HEADER_INTS,
    TOKENIZER_MAGIC,
    FormatError,
    open_file,
    pack_header,
    read_header,
)

TOKENIZER_VERSIONS = {2: None}
LARGEST_VOCABULARY = 1 << 21  # tokens
LONGEST_TOKEN = 255  # bytes
ADDED_AT = 4  # in the header: how many ranges of added tokens there are, and then the first and last id of each
ADDED_RANGES = (HEADER_INTS - ADDED_AT - 1) // 2


def write_tokenizer(
    path: AnyPath, tokens: Sequence[bytes], eot: int | None, added: Iterable[int] = (), replace: bool = True
) -> None:
    """Writes the bytes of every token, in id order, and the end-of-text id (None is written as -1).

    `added`: the ids of tokens that no merge makes, and that a text has where it has all their bytes; end of text is not
    among them. They are said in fields of the header that llm.c leaves zero.
    """
    for id, token in enumerate(tokens):
        if not 1 <= len(token) <= LONGEST_TOKEN:
            raise FormatError(f"write_tokenizer: {path}: token {id} has {len(token)} bytes, the file can hold 1 to 255")
    if eot is not None and not 0 <= eot < len(tokens):
        raise FormatError(f"write_tokenizer: {path}: end of text is {eot}, but there are {len(tokens)} tokens")
    ranges: list[list[int]] = []
    for id in sorted(added):
        if ranges and ranges[-1][1] == id - 1:
            ranges[-1][1] = id
        else:
            ranges.append([id, id])
    if len(ranges) > ADDED_RANGES:
        raise FormatError(
            f"write_tokenizer: {path}: expected added tokens in at most {ADDED_RANGES} stretches, got {len(ranges)}"
        )
    with atomic_file(path, replace) as file:
        fields = [TOKENIZER_MAGIC, min(TOKENIZER_VERSIONS), len(tokens), -1 if eot is None else eot]
        fields += [len(ranges), *(id for ends in ranges for id in ends)]
        file.write(pack_header(dict(enumerate(fields))))
        file.write(b"".join(bytes([len(token)]) + token for token in tokens))


def read_tokenizer(path: AnyPath) -> tuple[list[bytes], int | None]:
    """Returns (list of bytes, end-of-text id or None)."""
    who = "read_tokenizer"
    with open_file(who, path) as file:
        header, count, eot = _read_tokenizer_header(who, path, file)
        raw = file.read(count * (1 + LONGEST_TOKEN) + 1)
    tokens, position = split_tokens(raw, count)
    if b"" in tokens:
        raise FormatError(f"{who}: {path}: token {tokens.index(b'')} is empty; the file is damaged: make it again")
    if len(tokens) < count or position != len(raw):
        raise FormatError(
            f"{who}: {path}: expected {count} tokens in {len(raw)} bytes, found {len(tokens)} tokens in {position} bytes;"
            " the file is damaged: make it again"
        )
    return tokens, None if eot == -1 else eot


def split_tokens(raw: bytes, count: int) -> tuple[list[bytes], int]:
    """The tokens behind the header of a tokenizer file, up to `count`, and how many bytes they take."""
    tokens: list[bytes] = []
    position = 0
    while len(tokens) < count and position < len(raw):
        length = raw[position]
        tokens.append(raw[position + 1 : position + 1 + length])
        position += 1 + length
    return tokens, position


def read_added_tokens(path: AnyPath) -> list[int]:
    """Returns the ids of the added tokens in a tokenizer file, in order."""
    who = "read_added_tokens"
    with open_file(who, path) as file:
        header, count, eot = _read_tokenizer_header(who, path, file)
    found = header[ADDED_AT + 1 : ADDED_AT + 1 + 2 * min(max(int(header[ADDED_AT]), 0), ADDED_RANGES)].tolist()
    ids: list[int] = []
    last = -1
    for begin, end in zip(found[::2], found[1::2]):
        if not last < begin <= end < count or begin <= eot <= end:
            raise FormatError(
                f"{who}: {path}: expected added tokens from {last + 1} to {count - 1}, found {begin} to {end} in the header;"
                " the file is damaged: make it again"
            )
        ids += range(begin, end + 1)
        last = end
    return ids


def _read_tokenizer_header(who, path, file):
    header, _ = read_header(who, path, file, {TOKENIZER_MAGIC: TOKENIZER_VERSIONS})
    count, eot, size = int(header[2]), int(header[3]), os.path.getsize(path) - HEADER_BYTES
    if not 0 <= count <= LARGEST_VOCABULARY or not -1 <= eot < count:
        raise FormatError(
            f"{who}: {path}: expected up to {LARGEST_VOCABULARY:,} tokens, found {count} tokens and end of text {eot} in the"
            " header; make the file again"
        )
    # A token is its length, a byte, and its bytes.
    if not 2 * count <= size <= (1 + LONGEST_TOKEN) * count:
        raise FormatError(
            f"{who}: {path}: expected {count} tokens, found {size} bytes after the header; the file is damaged: make it"
            " again"
        )
    return header, count, eot
