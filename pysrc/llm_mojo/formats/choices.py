"""Multiple-choice evaluation: llm.c's HellaSwag file."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats.header import (
    CHOICES_MAGIC,
    HEADER_BYTES,
    FormatError,
    check_size,
    map_array,
    open_file,
    pack_header,
    read_header,
)

CHOICES_VERSIONS = {1: None}
CHOICES_START = 65535
NUM_ENDINGS = 4


class Choice(NamedTuple):
    """An example: the ids of the context, those of four endings, and which of the endings is right."""

    context: Sequence[int]
    endings: Sequence[Sequence[int]]
    label: int


def write_hellaswag(path: AnyPath, examples: Iterable[Choice]) -> int:
    """Writes examples (an iterable of Choice); the context and each ending have at least one token. Returns how many.

    A stream of uint16, for each example: 65535, its size in bytes, its index, the label, the number of endings, and
    then the context and each ending, their ids preceded by how many there are.
    """
    who = "write_hellaswag"
    count = longest = 0
    with atomic_file(path) as file:
        file.write(pack_header({}))
        for example in examples:
            where = f"{who}: {path}: example {count}"
            if count > CHOICES_START:
                raise FormatError(f"{who}: {path}: expected at most {CHOICES_START + 1:,} examples, got more")
            if len(example.endings) != NUM_ENDINGS or not 0 <= example.label < NUM_ENDINGS:
                raise FormatError(
                    f"{where}: expected {NUM_ENDINGS} endings and a label below, got {len(example.endings)} endings and"
                    f" label {example.label}"
                )
            stream = [CHOICES_START, 0, count, example.label, NUM_ENDINGS]
            for ids in (example.context, *example.endings):
                if len(ids) == 0 or min(ids) < 0 or max(ids) >= CHOICES_START:
                    raise FormatError(
                        f"{where}: expected one or more ids from 0 to {CHOICES_START - 1} in the context and each"
                        f" ending, got {list(ids)}"
                    )
                stream += [len(ids), *ids]
            stream[1] = 2 * len(stream)
            if stream[1] > CHOICES_START:
                raise FormatError(f"{where}: expected at most {CHOICES_START:,} bytes, got {stream[1]:,}")
            file.write(np.array(stream, dtype="<u2").tobytes())
            count, longest = count + 1, max(longest, stream[1])
        file.seek(0)
        file.write(pack_header({0: CHOICES_MAGIC, 1: min(CHOICES_VERSIONS), 2: count, 3: longest}))
    return count


def read_hellaswag(path: AnyPath) -> list[Choice]:
    """Returns the examples, a list of Choice."""
    who = "read_hellaswag"
    with open_file(who, path) as file:
        header, _ = read_header(who, path, file, {CHOICES_MAGIC: CHOICES_VERSIONS})
    stream = map_array(path, "<u2", HEADER_BYTES, ((os.path.getsize(path) - HEADER_BYTES) // 2,))
    examples, position = [], 0
    for index in range(int(header[2])):
        start, size, number, label, endings = (stream[position : position + 5].tolist() + [-1] * 5)[:5]
        end = position + size // 2
        if (start, number, endings) != (CHOICES_START, index, NUM_ENDINGS) or end > len(stream) or label >= NUM_ENDINGS:
            raise FormatError(
                f"{who}: {path}: expected example {index} of {header[2]}, found something else; the file is damaged:"
                " make it again"
            )
        position += 5
        parts = []
        while position < end:
            count = int(stream[position])
            parts.append(stream[position + 1 : position + 1 + count].tolist())
            position += 1 + count
        if position != end or len(parts) != 1 + NUM_ENDINGS or not all(parts):
            raise FormatError(
                f"{who}: {path}: example {index}: its {size} bytes do not hold a context and {NUM_ENDINGS} endings; the"
                " file is damaged: make it again"
            )
        examples.append(Choice(parts[0], parts[1:], label))
    check_size(who, path, HEADER_BYTES + 2 * position, f"{len(examples):,} examples after the header")
    return examples
