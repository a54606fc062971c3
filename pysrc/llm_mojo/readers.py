"""Reads documents from files: plain text, JSON lines, csv and tsv, parquet; .gz, .bz2, .xz and .zst are unpacked on the way.

One rule for all: a document without text, empty or null, is none. What is packed in another way is refused.

Reading is done in two halves. `blocks(path, start)` cuts a file into blocks of about a megabyte, one after another in the
main process; `documents(block)` takes a block apart, in any process. A block says where the next one begins, and `blocks`
can start there: so memory does not grow with the file, all cores work, and an interrupted run goes on.
"""

import bz2
import codecs
import csv
import functools
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_mojo import Error
from llm_mojo.file_kinds import kind_of

BLOCK_BYTES = 1 << 20
LONGEST_WORD = 1 << 22  # text without white space for so many bytes is cut anywhere
LONGEST_DOCUMENT = 1 << 26  # bytes, of those that must be whole in memory
ROWS = 128  # of a table, read at a time
LARGE_DICTIONARY = 1 << 22  # bytes of values that a column of a table stores once; its writers stop at a quarter of it
UNPACKED_BYTES = 1 << 28  # a file that unfolds to more than this,
UNPACKED_RATIO = 1000  # and to so many times its size, is refused: no text does
XZ_BYTES = 256 << 20  # of memory to unpack .xz; xz -9 takes 65 MiB


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


class _Unpacked(io.RawIOBase):
    """A stream of what is unpacked from another; it has an end, however much would come."""

    def __init__(self, stream, raw, path):
        self._stream, self._raw, self._path, self._count = stream, raw, path, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        check_unfolding(self._path, self._count, self._raw.tell())
        return len(data)


def check_unfolding(path: Any, count: int, size: int) -> None:
    """Raises Error if so many bytes have come from a file, or a part of one, of this size."""
    if count > UNPACKED_BYTES and count > UNPACKED_RATIO * size:
        raise Error(
            f"{path}: expected at most {UNPACKED_RATIO:,} bytes of text from each byte, found {count:,} in {size:,}; no text"
            " packs so small: unpack it yourself if it is one"
        )


def _zstd(raw):
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")


def _xz(raw):
    # Its head asks for memory, up to 4 GB, whatever is in the file.
    lzma.LZMADecompressor(memlimit=XZ_BYTES).decompress(raw.read(BLOCK_BYTES), max_length=1)
    raw.seek(0)
    return lzma.LZMAFile(raw)


PACKERS: dict[str, tuple[Callable, tuple]] = {  # suffix: (what unpacks it, the errors of files that are damaged)
    ".gz": (lambda raw: gzip.GzipFile(fileobj=raw), (OSError, EOFError, zlib.error)),
    ".bz2": (bz2.BZ2File, (OSError, EOFError)),
    ".xz": (_xz, (lzma.LZMAError, EOFError, MemoryError)),
    ".zst": (_zstd, (OSError,)),
}


@contextmanager
def opened(path):
    """Opens a file, unpacking it if its name says so: yields (stream of bytes, function that tells how much of it is read).

    Raises Error if what comes out is no text, but packed in another way.
    """
    path = Path(path)
    stream: Any
    errors: tuple[type[Exception], ...]
    with open(path, "rb") as raw:
        unpack, errors = PACKERS.get(path.suffix.lower(), (None, ()))
        try:
            stream = io.BufferedReader(_Unpacked(unpack(raw), raw, path), BLOCK_BYTES) if unpack else raw
            _check_kind(path, stream.peek(512))
            yield stream, raw.tell
        except errors as error:
            raise Error(f"{path}: not a whole {path.suffix} file ({error}); get or make it again") from None


def _check_kind(path, head):
    if found := kind_of(head):
        kind, suffix = found
        what = f"name it *{suffix}, or unpack it" if suffix else "unpack it, or save its text"
        raise Error(f"{path}: expected text, found {kind}; {what} first")


def skip(stream, count):
    """Moves a stream on by so many bytes: at once in a plain file, by reading in a packed one."""
    if stream.seekable():
        stream.seek(count)
        return
    while count > 0:
        count -= len(stream.read(min(count, BLOCK_BYTES))) or count


def well_formed(text: str) -> str:
    """The text with U+FFFD for halves of characters (lone surrogates, as JSON can spell them), which UTF-8 cannot have."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
    """Plain text. A file is a document, or several with `separator` between them, which `keep` leaves at their ends.

    A new line in the separator is one in the file whether that ends its lines with \\n or \\r\\n.
    """

    separator: str = ""
    keep: bool = False

    @functools.cached_property
    def _pattern(self):
        return "(" + re.escape(self.separator).replace("\\\n", "\r?\n") + ")"

    @property
    def _longest(self):
        return len(self.separator.encode()) + self.separator.count("\n")

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks that end after a separator, else before the white space after a word. `whole`: with whole documents.

        GPT-2's pattern has no match that goes from a word into white space: such cuts do not change the tokens.
        """
        offset, starts = start or (0, True)
        pending = b""
        with opened(path) as (stream, tell):
            skip(stream, offset)
            while True:
                new = stream.read(BLOCK_BYTES)
                old, pending = len(pending), pending + new
                if not new:
                    break
                cut, next_starts = self._cut(pending, old, whole)
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

    def _cut(self, pending, old, whole):
        """Where to cut (0: not yet) and whether a document begins there. Up to `old` there was no place to cut."""
        if self.separator and (at := len(pending) - len(re.split(self._pattern.encode(), pending)[-1])):
            return at, True
        if whole:
            return 0, False
        # A separator may have begun before the end.
        end = max(len(pending) - self._longest, 0)
        if at := word_end(pending, max(old - 8 - self._longest, 0), end):
            return at, False
        return (character_start(pending, end) if end > LONGEST_WORD else 0), False

    def documents(self, block, as_bytes=False):
        """(text, whether a document begins here) of a block; bytes rather than str if these are wanted."""
        text = block.data if as_bytes else decoded(block.data, block.name, block.offset)
        if not self.separator:
            yield text, block.starts
            return
        *parts, last = re.split(self._pattern.encode() if as_bytes else self._pattern, text)
        starts = block.starts
        for section, separator in zip(parts[::2], parts[1::2]):
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
        """(text, True) of each line that has text."""
        for number, item in self.objects(block):
            text = item.get(self.field, 0) if isinstance(item, dict) else 0
            if text is not None and not isinstance(text, str):
                hint = "an object a line, please" if isinstance(item, list) else "name another field with --field"
                raise Error(
                    f'{block.name}: line {number} after byte {block.offset}: expected an object with text in "{self.field}", found'
                    f" {str(item)[:60]!r}; {hint}"
                )
            if text:
                yield text, True

    def objects(self, block):
        """(number of the line in the block, object) of each line that is not empty."""
        data = block.data.removeprefix(codecs.BOM_UTF8) if block.offset == 0 else block.data
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise Error(
                        f"{block.name}: line {number} after byte {block.offset}: expected a JSON object, found {line[:60]!r}"
                        f" ({error}); write an object a line"
                    ) from None
                yield number, item


# tables: csv and parquet


@dataclass(frozen=True)
class CsvReader:
    """A table in text, with the names of its columns first; a document in its column `field` of each row."""

    field: str = "text"
    delimiter: str = ","

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks of some rows."""
        done, texts, characters = 0, [], 0
        csv.field_size_limit(LONGEST_DOCUMENT)
        with opened(path) as (stream, tell):
            rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=self.delimiter, strict=True)
            try:
                names = next(rows, [])
                if self.field not in names:
                    raise _no_column(path, self.field, names)
                column = names.index(self.field)
                for row in rows:
                    done += 1
                    if row and len(row) <= column:
                        raise Error(
                            f"{path}: row {done}: expected {len(names)} columns, found {len(row)}; the table is damaged"
                        )
                    if row and row[column] and done > (start or 0):
                        texts.append(row[column])
                        characters += len(row[column])
                    if characters >= BLOCK_BYTES:
                        yield Block(texts, characters, True, False, done, tell(), f"{path}")
                        texts, characters = [], 0
            except (csv.Error, UnicodeDecodeError) as error:
                raise Error(f"{path}: after row {done}: not a table in UTF-8 ({error}); make it again") from None
            if texts:
                yield Block(texts, characters, True, True, done, tell(), f"{path}")

    def documents(self, block, as_bytes=False):
        """(text, True) of each row that has text."""
        for text in block.data:
            yield text, True


def _no_column(path, field, names):
    found = ", ".join(map(str, names))
    return Error(f"{path}: expected a column {field!r}, found {found[:200]}; name one with --field")


@dataclass(frozen=True)
class ParquetReader:
    """A parquet table, a document in its column `field` of each row."""

    field: str = "text"

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks of some rows, their texts as bytes."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        try:
            options = {"pre_buffer": False, "buffer_size": BLOCK_BYTES}
            with parquet.ParquetFile(path, **options) as table:
                self._check(path, table)
                repeats = self._repeats_much(path, table.metadata)
                if not repeats:
                    yield from self._blocks(path, table, start or 0)
            if repeats:
                with parquet.ParquetFile(path, read_dictionary=[self.field], **options) as table:
                    yield from self._blocks(path, table, start or 0)
        except (arrow.ArrowException, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Error(f"{path}: not a whole parquet file ({error}); get or make it again") from None

    def _check(self, path, table):
        import pyarrow as arrow

        names = table.schema_arrow.names
        if self.field not in names:
            raise _no_column(path, self.field, names)
        kind = table.schema_arrow.field(self.field).type
        kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
        texts = (arrow.string(), arrow.large_string(), arrow.binary(), arrow.large_binary())
        if kind not in texts:
            raise Error(
                f"{path}: expected text in the column {self.field!r}, found {str(kind)[:60]}; name another with --field"
            )

    def _blocks(self, path, table, row):
        rows, size = table.metadata.num_rows, Path(path).stat().st_size
        groups, before = self._groups_from(table.metadata, row)
        texts, total, unfolded, first = [], 0, 0, row
        for batch in table.iter_batches(ROWS, row_groups=groups, columns=[self.field]):
            unfolded += _bytes_in(batch.column(0))
            check_unfolding(path, unfolded, size)
            for text in _values(batch.column(0)):
                before += 1
                if before > row and text:
                    texts.append(text)
                    total += len(text)
                if texts and (total >= BLOCK_BYTES or before == rows):
                    yield Block(
                        texts, total, True, before == rows, before, size * before // rows, f"{path}", offset=first
                    )
                    texts, total, first = [], 0, before
        if texts:
            yield Block(texts, total, True, True, before, size, f"{path}", offset=first)

    def _repeats_much(self, path, metadata):
        """Whether large values are stored once for many rows, which then must not be made one by one: 2 KB can be 7 GB.

        Checks the sizes on the way.
        """
        (place,) = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == self.field]
        with open(path, "rb") as file:
            for group in range(metadata.num_row_groups):
                column = metadata.row_group(group).column(place)
                check_unfolding(path, column.total_uncompressed_size, column.total_compressed_size)
                if column.has_dictionary_page:
                    file.seek(column.dictionary_page_offset)
                    if _page_size(file.read(16)) > LARGE_DICTIONARY:
                        return True
        return False

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
        """(text, True) of each row that has text; bytes rather than str if these are wanted."""
        for text in block.data:
            if not as_bytes:
                try:
                    text = text.decode()
                except UnicodeDecodeError as error:
                    raise Error(
                        f"{block.name}: after row {block.offset}: expected UTF-8 text, found byte"
                        f" 0x{text[error.start]:02x}; convert it, or use --tokenizer byte, which takes any bytes"
                    ) from None
            yield text, True


def _bytes_in(column):
    """How many bytes the values of a column have."""
    import pyarrow as arrow
    from pyarrow import compute

    if isinstance(column, arrow.DictionaryArray):
        lengths = compute.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = compute.binary_length(column)
    return compute.sum(lengths).as_py() or 0


def _values(column):
    """The values of a column of text, as bytes or None, one after another."""
    import pyarrow as arrow

    def as_bytes(values):
        is_large = arrow.types.is_large_string(values.type) or arrow.types.is_large_binary(values.type)
        return values.cast(arrow.large_binary() if is_large else arrow.binary())

    if not isinstance(column, arrow.DictionaryArray):
        yield from as_bytes(column).to_pylist()
        return
    values = as_bytes(column.dictionary)
    for index in column.indices.to_pylist():
        yield None if index is None else values[index].as_py()


def _page_size(header):
    """The unpacked size of a page of parquet: the second field of its header, in Thrift's compact protocol."""
    fields: list[int] = []
    at = 0
    while len(fields) < 2:
        # Field after field, each an i32: a zigzag number in groups of seven bits.
        if header[at : at + 1] != b"\x15":
            raise ValueError("a page without its sizes")
        number, shift, more = 0, 0, 1
        while more:
            at += 1
            byte = int.from_bytes(header[at : at + 1], "little")
            number, shift, more = number | (byte & 0x7F) << shift, shift + 7, byte & 0x80
        fields.append(number >> 1)
        at += 1
    return fields[1]


# ---------------------------------------------------------------------------------------------------------------------
# by the names of files

TEXT_SUFFIXES = tuple(
    ".txt .text .md .markdown .rst .tex .org .py .pyi .mojo .c .h .cc .cpp .hpp .cu .js .ts .java .go .rs .sh".split()
)
PACKED_OTHERWISE = ".zip .tar .tgz .tbz2 .txz .tzst .7z .rar .lz .lz4 .lzma .br .z".split()


def reader_for(path, separator="", field="text"):
    """The reader that the name of a file asks for; plain text if it says nothing. Raises Error for what no reader takes."""
    suffix = _suffix(path)
    if suffix in PACKED_OTHERWISE:
        packers = ", ".join(PACKERS)
        raise Error(f"{path}: {suffix} is packed in a way that is not read here ({packers} are); unpack it first")
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JsonLinesReader(field)
    if suffix in (".csv", ".tsv"):
        return CsvReader(field, "," if suffix == ".csv" else "\t")
    return ParquetReader(field) if suffix == ".parquet" else TextReader(separator)


def is_text(path):
    """Whether a file found in a folder is read: by its suffix, before that of packing.

    Those of .json and .csv, which are often something else, are not: such a file is given by its name.
    """
    return _suffix(path) in (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".parquet")


def _suffix(path):
    path = Path(path)
    return (Path(path.stem).suffix if path.suffix.lower() in PACKERS else path.suffix).lower()
