"""Token shards that grow: cut at a number of tokens, and continued after an interruption.

While they grow they are called `<name>.part`. They get their names all at once, at the end, so that a folder never has half
a data set under final names.
"""

import os
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.download import sha256_of
from llm_mojo.files import naming, open_own
from llm_mojo.formats import HEADER_BYTES, tokens_header

COPY_TOKENS = 1 << 22
SHORT_REST = 100  # what is left for the last shard goes to the one before it if it is less than this part of a shard


class Shards:
    """The shards of one split. `name` has a place for their number if there are several: `x_train_{:06d}.bin`."""

    def __init__(self, folder, name, dtype, shard_tokens=None, first_number=0, count=0):
        """Goes on after `count` tokens; raises ValueError if the files do not hold them."""
        self.count, self._folder, self._name, self._dtype = count, Path(folder), name, np.dtype(dtype)
        self._shard_tokens, self._first_number, self._file = shard_tokens, first_number, None
        for number in range(self._number_of(count) + 1):
            wanted = self._bytes_of(self._tokens_in(number))
            if wanted > HEADER_BYTES and self._size(number) < wanted:
                raise ValueError(f"{self._part(number)} is too short")

    def write(self, ids):
        """Appends ids."""
        while len(ids):
            number = self._number_of(self.count)
            at = self._tokens_in(number)
            now = len(ids) if self._shard_tokens is None else min(len(ids), self._shard_tokens - at)
            with naming(self._part(number)):
                self._open(number, at).write(np.ascontiguousarray(ids[:now], dtype=self._dtype).data)
            ids, self.count = ids[now:], self.count + now

    def save(self):
        """Brings what was written to the disk."""
        if self._file is not None:
            with naming(self._file.name):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self):
        """Closes the file; nothing is renamed."""
        if self._file is not None:
            self.save()
            self._file.close()
            self._file = None

    def finish(self):
        """Completes the files, which keep their temporary names. Returns final name -> {tokens, bytes, sha256}."""
        self.close()
        last = self._number_of(max(self.count - 1, 0))
        counts = [self._tokens_in(number) for number in range(last + 1)]
        if len(counts) > 1 and counts[-1] * SHORT_REST < self._shard_tokens:
            self._append(last - 1, last, counts[-1])
            counts[-2:] = [counts[-2] + counts[-1]]
        outputs = {}
        for number, count in enumerate(counts):
            path = self._part(number)
            with naming(path), open_own(path, "r+b" if path.exists() else "w+b") as file:
                file.write(tokens_header(count, self._dtype))
                file.truncate(self._bytes_of(count))
                os.fsync(file.fileno())
            name = self._final(number).name
            outputs[name] = {"tokens": count, "bytes": self._bytes_of(count), "sha256": sha256_of(path)}
        return outputs

    def _append(self, to, number, count):
        """Puts the `count` tokens of one shard at the end of another."""
        with naming(self._part(to)), open_own(self._part(to), "r+b") as file, open(self._part(number), "rb") as rest:
            file.seek(self._bytes_of(self._tokens_in(to)))
            rest.seek(HEADER_BYTES)
            file.write(rest.read(count * self._dtype.itemsize))
        # Removed by the caller's clean-up: until all is done a resumed run may still need it.

    def _number_of(self, count):
        return 0 if self._shard_tokens is None else count // self._shard_tokens

    def _tokens_in(self, number):
        return (
            self.count
            if self._shard_tokens is None
            else min(self._shard_tokens, self.count - number * self._shard_tokens)
        )

    def _bytes_of(self, count):
        return HEADER_BYTES + count * self._dtype.itemsize

    def _final(self, number):
        return self._folder / self._name.format(self._first_number + number)

    def _part(self, number):
        return Path(f"{self._final(number)}.part")

    def _size(self, number):
        path = self._part(number)
        return path.stat().st_size if path.is_file() else 0

    def _open(self, number, at):
        """The file of a shard, to be written from token `at` on."""
        path = self._part(number)
        if self._file is None or self._file.name != str(path):
            self.close()
            self._file = open_own(path, "r+b" if at else "w+b")
            self._file.seek(self._bytes_of(at))
        return self._file


def read_part(path, count, dtype):
    """Yields the ids of a part, some millions at a time."""
    size = np.dtype(dtype).itemsize
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        while count:
            ids = np.frombuffer(file.read(size * min(count, COPY_TOKENS)), dtype=dtype)
            if not len(ids):
                raise Error(f"{path}: expected {count:,} more tokens, found the end of the file; run the command again")
            yield ids
            count -= len(ids)


def put_in_place(folder, names):
    """Gives finished parts their final names."""
    for name in names:
        part = Path(folder, f"{name}.part")
        if part.exists():
            os.replace(part, Path(folder, name))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
