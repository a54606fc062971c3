"""The user's own text as a data set: files, and folders of them."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from llm_mojo import Error
from llm_mojo.datasets import DATASETS, SHARD_TOKENS, Dataset, File, First, Last
from llm_mojo.file_kinds import kind_of
from llm_mojo.files import AnyPath
from llm_mojo.readers import PACKERS, TEXT_SUFFIXES, TextReader, is_text, reader_for
from llm_mojo.terminal import line

LARGE_BYTES = 400_000_000  # own text of this size is cut into shards, the first of which is for validation
BYTES_PER_VALIDATION_TOKEN = 40  # then: about a tenth, but no more than a whole shard
LOOKED_AT = 1 << 16  # bytes
BINARY = "binary data"
NAMED = 10  # of the files that are left out
KINDS_OF_FILES = f"plain text, JSON lines, .csv, .tsv, .parquet; also packed: {', '.join(PACKERS)}"


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that say where documents are in files of one's own."""
    parser.add_argument("--separator", help=r"what stands between documents in plain text (\n: a new line)")
    parser.add_argument("--field", help="field or column with the text (default text)")


def own_text(name: str, paths: Iterable[AnyPath], separator: str | None = None, field: str | None = None) -> Dataset:
    """A Dataset of the user's files, and of those in the user's folders that have a known suffix."""
    files = text_files(paths)
    readers = [reader_for(file, (separator or "").replace("\\n", "\n"), field or "text") for file in files]
    plain = [isinstance(reader, TextReader) for reader in readers]
    if field and all(plain):
        raise Error(f"--field {field}: expected JSON lines, .csv, .tsv or .parquet, found plain text only ({files[0]})")
    if separator and not any(plain):
        raise Error(f"--separator: expected plain text, found files that have documents already ({files[0]})")
    size = sum(file.stat().st_size for file in files)
    large = size >= LARGE_BYTES
    return Dataset(
        name=name,
        title=f"{len(files)} files" if len(files) > 1 else str(files[0]),
        files=lambda: [
            File(str(file), reader, lambda file=file: file, file.stat().st_size)  # type: ignore[misc]
            for file, reader in zip(files, readers)
        ],
        licence="",
        size="",
        stem=name,
        tokenizer="byte",
        split=First(min(SHARD_TOKENS, size // BYTES_PER_VALIDATION_TOKEN)) if large else Last(),
        shard_tokens=SHARD_TOKENS if large else None,
        separator="",
    )


def text_files(paths: Iterable[AnyPath]) -> list[Path]:
    """The files given, and those with a known suffix in the folders given: in order of name, none hidden.

    Says what was left out of folders.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found, left_out = _files_of_folder(path)
            if left_out:
                print(f"note: {path}: {_described(path, left_out)}", flush=True)
            if not found:
                known = " ".join(TEXT_SUFFIXES)
                raise Error(
                    f"{path}: expected text files ({known}), .jsonl or .parquet, found none with any text in it;"
                    " give files of other kinds by their names"
                )
            files += found
        elif not path.exists():
            names = ", ".join(DATASETS)
            raise Error(f"{path}: no such file or folder, and no data set of that name; the names are {names}")
        elif not path.is_file():
            raise Error(f"{path}: expected a file or a folder, found something else; save the text in a file first")
        elif path.stat().st_size == 0:
            raise Error(f"{path}: the file is empty; give a file with text in it")
        elif what_is(path) == BINARY:
            raise Error(f"{path}: expected text, found {BINARY}; save its text, as UTF-8, first")
        else:
            files.append(path)
    return files


def what_is(file: Path) -> str | None:
    """What a file that would be read as plain text is instead, by its first bytes; None if it may be text.

    Of a packed file the reader says that.
    """
    if not isinstance(reader_for(file), TextReader) or file.suffix.lower() in PACKERS:
        return None
    with open(file, "rb") as stream:
        start = stream.read(LOOKED_AT)
    if found := kind_of(start):
        return found[0]
    return BINARY if b"\0" in start else None


def _files_of_folder(folder):
    """(files with text, other files), each in order of name; of neither kind what is hidden or empty."""
    found: list[Path] = []
    left_out: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if name.startswith(".") or not file.is_file() or not file.stat().st_size:
                continue
            (found if is_text(file) and not what_is(file) else left_out).append(file)
    for files in found, left_out:
        files.sort(key=lambda file: file.relative_to(folder).as_posix())
    return found, left_out


def _described(folder, files):
    """How many files of which kinds are left out, and the first of their names."""
    kinds = Counter(file.suffix.lower() or "without a suffix" for file in files)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item)))
    names = ", ".join(line(file.relative_to(folder).as_posix()) for file in files[:NAMED])
    more = ", ..." if len(files) > NAMED else ""
    return f"left out {len(files)} files that are not read from folders: {counts} ({names}{more})"
