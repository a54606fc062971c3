"""The user's own text as a data set: files, and folders of them."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from llm_mojo import Error
from llm_mojo.datasets import DATASETS, SHARD_TOKENS, Dataset, File, First, Last
from llm_mojo.files import AnyPath
from llm_mojo.readers import PACKERS, TEXT_SUFFIXES, TextReader, is_text, reader_for

LARGE_BYTES = 400_000_000  # own text of this size is cut into shards, the first of which is for validation
BYTES_PER_VALIDATION_TOKEN = 40  # then: about a tenth, but no more than a whole shard
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
    """The files given, and those with a known suffix in the folders given: in order of name, none hidden."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(_files_of_folder(path), key=lambda file: file.relative_to(path).as_posix())
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
        else:
            files.append(path)
    return files


def _files_of_folder(folder):
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and is_text(file) and file.is_file() and file.stat().st_size:
                yield file
