"""Reads documents from files: plain text, JSON lines, parquet; .gz and .zst are unpacked on the way.

Reading is done in two halves. `blocks(path, start)` cuts a file into blocks of about a megabyte, one after another in the
main process; `documents(block)` takes a block apart, in any process. A block says where the next one begins, and `blocks`
can start there: so memory does not grow with the file, all cores work, and an interrupted run goes on.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_mojo import Error

BLOCK_BYTES = 1 << 20
LONGEST_WORD = 1 << 22  # text without white space for so many bytes is cut anywhere
LONGEST_DOCUMENT = 1 << 26  # bytes, of those that must be whole in memory
ROWS = 128  # of a table, read at a time


class Block(NamedTuple):
    """A stretch of a file, whose documents do not depend on the blocks before it."""

    data: Any  # for documents(); can be pickled
    size: int  # bytes, or characters, of text in it
    starts: bool  # its first document begins here
    ends: bool  # the file ends here
    after: Any  # where the next block begins: JSON, for blocks(path, start)
    read: int  # bytes of the file that have been read
    name: str  # of the file, for messages
    offset: int = 0  # of the data in the (unpacked) file
    split: str | None = None  # "train" or "val" where the source says which


@contextmanager
def opened(path):
    """Opens a file, unpacking .gz and .zst: yields (stream of bytes, function that tells how much of the file is read)."""
    path = Path(path)
    stream: Any
    errors: tuple[type[Exception], ...]
    with open(path, "rb") as raw:
        if path.suffix.lower() == ".gz":
            stream, errors = gzip.GzipFile(fileobj=raw), (OSError, EOFError, zlib.error)
        elif path.suffix.lower() == ".zst":
            import pyarrow

            stream, errors = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"), (OSError,)
        else:
            stream, errors = raw, ()
        try:
            yield stream, raw.tell
        except errors as error:
            raise Error(f"{path}: not a whole {path.suffix} file ({error}); get or make it again") from None


def skip(stream, count):
    """Moves a stream on by so many bytes: at once in a plain file, by reading in a packed one."""
    if isinstance(stream, io.BufferedReader):
        stream.seek(count)
        return
    while count > 0:
        count -= len(stream.read(min(count, BLOCK_BYTES))) or count


def decoded(data, path, offset):
    """UTF-8 bytes as str; an error names the first byte that is none, and its place in the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Error(
            f"{path}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset {offset + error.start};"
            " convert the file to UTF-8, or use --tokenizer byte, which takes any bytes"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# plain text


@dataclass(frozen=True)
class TextReader:
    """Plain text. A file is a document, or several with `separator` between them, which `keep` leaves at their ends."""

    separator: str = ""
    keep: bool = False

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks that end after a separator, else before the white space after a word. `whole`: with whole documents.

        GPT-2's pattern has no match that goes from a word into white space: such cuts do not change the tokens.
        """
        offset, starts = start or (0, True)
        separator, pending = self.separator.encode(), b""
        with opened(path) as (stream, tell):
            skip(stream, offset)
            while True:
                new = stream.read(BLOCK_BYTES)
                old, pending = len(pending), pending + new
                if not new:
                    break
                cut, next_starts = self._cut(pending, old, separator, whole)
                if cut == 0 and whole and len(pending) > LONGEST_DOCUMENT:
                    raise Error(
                        f"{path}: cleaning takes whole documents of up to {LONGEST_DOCUMENT:,} bytes, found a longer one"
                        f" at offset {offset}; say what stands between documents (--separator), or leave out --clean"
                    )
                if cut:
                    data, pending = pending[:cut], pending[cut:]
                    position = [offset + cut, next_starts]
                    yield Block(data, cut, starts, False, position, tell(), f"{path}", offset)
                    offset, starts = position
            position = [offset + len(pending), False]
            yield Block(pending, len(pending), starts, True, position, tell(), f"{path}", offset)

    def _cut(self, pending, old, separator, whole):
        """Where to cut (0: not yet) and whether a document begins there. Up to `old` there was no place to cut."""
        if separator and (at := len(pending) - len(pending.split(separator)[-1])):
            return at, True
        if whole:
            return 0, False
        # A separator may have begun before the end.
        end = max(len(pending) - len(separator), 0)
        if at := word_end(pending, max(old - 8 - len(separator), 0), end):
            return at, False
        return (character_start(pending, end) if end > LONGEST_WORD else 0), False

    def documents(self, block, as_bytes=False):
        """(text, whether a document begins here) of a block; bytes rather than str if these are wanted."""
        text = block.data if as_bytes else decoded(block.data, block.name, block.offset)
        if not self.separator:
            yield text, block.starts
            return
        separator = self.separator.encode() if as_bytes else self.separator
        *sections, last = text.split(separator)
        starts = block.starts
        for section in sections:
            if self.keep or section or not starts:
                yield (section + separator if self.keep else section), starts
            starts = True
        if last or (block.ends and self.keep):
            yield last, starts


def word_end(text, start, end):
    """The last place from start to end where white space follows a word, in UTF-8; 0 if there is none."""
    for match in re.finditer(rb"[ \n\r\t](?=[^ \n\r\t])", text[start:end][::-1]):
        at = end - match.end()
        before = text[max(at - 4, 0) : at].decode(errors="replace")[-1:]
        if not before.isspace():
            return at
    return 0


def character_start(text, end):
    """The last place up to `end` where a character of UTF-8 begins."""
    for at in range(min(end, len(text) - 1), max(end - 4, 0), -1):
        if text[at] & 0xC0 != 0x80:
            return at
    return end


# ---------------------------------------------------------------------------------------------------------------------
# JSON lines


@dataclass(frozen=True)
class JsonLinesReader:
    """One JSON object a line, a document in its field `field`."""

    field: str = "text"

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks of whole lines."""
        offset, pending, ends = start or 0, [], False
        with opened(path) as (stream, tell):
            skip(stream, offset)
            while not ends:
                new = stream.read(BLOCK_BYTES)
                ends = not new
                cut = new.rfind(b"\n") + 1
                if not (cut or ends):
                    pending.append(new)
                    if sum(map(len, pending)) > LONGEST_DOCUMENT:
                        raise Error(
                            f"{path}: expected JSON lines of up to {LONGEST_DOCUMENT:,} bytes, found a longer one at"
                            f" offset {offset}; the file is no JSON lines"
                        )
                    continue
                data = b"".join(pending) + new[:cut]
                pending = [new[cut:]]
                if data:
                    yield Block(data, len(data), True, ends, offset + len(data), tell(), f"{path}", offset)
                offset += len(data)

    def documents(self, block, as_bytes=False):
        """(text, True) of each line."""
        for number, item in self.objects(block):
            text = item.get(self.field) if isinstance(item, dict) else None
            if not isinstance(text, str):
                raise Error(
                    f'{block.name}: line {number} after byte {block.offset}: expected an object with text in "{self.field}", found'
                    f" {str(item)[:60]!r}; name another field with --field"
                )
            yield text, True

    def objects(self, block):
        """(number of the line in the block, object) of each line that is not empty."""
        for number, line in enumerate(block.data.split(b"\n"), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise Error(
                        f"{block.name}: line {number} after byte {block.offset}: expected JSON, found {line[:60]!r} ({error})"
                    ) from None


# ---------------------------------------------------------------------------------------------------------------------
# parquet


@dataclass(frozen=True)
class ParquetReader:
    """A parquet table, a document in its column `field` of each row."""

    field: str = "text"

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks of some rows."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        row = start or 0
        try:
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK_BYTES) as table:
                names = table.schema_arrow.names
                if self.field not in names:
                    found = ", ".join(names)
                    raise Error(f"{path}: expected a column {self.field!r}, found {found}; name one with --field")
                rows, size = table.metadata.num_rows, Path(path).stat().st_size
                groups, before = self._groups_from(table.metadata, row)
                texts, characters = [], 0
                for batch in table.iter_batches(ROWS, row_groups=groups, columns=[self.field]):
                    new = [text for text in batch.column(0)[max(row - before, 0) :].to_pylist() if text]
                    before += len(batch)
                    texts += new
                    characters += sum(map(len, new))
                    if texts and (characters >= BLOCK_BYTES or before == rows):
                        yield Block(texts, characters, True, before == rows, before, size * before // rows, f"{path}")
                        texts, characters = [], 0
        except arrow.ArrowException as error:
            raise Error(f"{path}: not a whole parquet file ({error}); get or make it again") from None

    def _groups_from(self, metadata, row):
        """The row groups that have this row and those after it, and the rows before them."""
        before = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if before + rows > row:
                return list(range(group, metadata.num_row_groups)), before
            before += rows
        return [], before

    def documents(self, block, as_bytes=False):
        """(text, True) of each row."""
        for text in block.data:
            yield text, True


# ---------------------------------------------------------------------------------------------------------------------
# by the names of files

TEXT_SUFFIXES = tuple(
    ".txt .text .md .markdown .rst .tex .org .py .pyi .mojo .c .h .cc .cpp .hpp .cu .js .ts .java .go .rs .sh".split()
)
PACKED_SUFFIXES = (".gz", ".zst")


def reader_for(path, separator="", field="text"):
    """The reader that the name of a file asks for; plain text if it says nothing."""
    suffix = _suffix(path)
    if suffix in (".jsonl", ".ndjson"):
        return JsonLinesReader(field)
    return ParquetReader(field) if suffix == ".parquet" else TextReader(separator)


def is_text(path):
    """Whether a file found in a folder is read: by its suffix, before that of packing."""
    return _suffix(path) in (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".parquet")


def _suffix(path):
    path = Path(path)
    return (Path(path.stem).suffix if path.suffix.lower() in PACKED_SUFFIXES else path.suffix).lower()
