"""Where texts come from: the registry of named data sets, and the user's own files and folders.

A data set is read as a stream of pieces, so that memory does not grow with the corpus. A new one is an entry in DATASETS.
"""

import codecs
import functools
import itertools
import json
import os
import platform
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llm_mojo import Error, pydocs
from llm_mojo.download import fetch, sha256_of

BLOCK_BYTES = 1 << 20
TEXT_SUFFIXES = tuple(
    ".txt .text .md .markdown .rst .tex .org .py .pyi .mojo .c .h .cc .cpp .hpp .cu .js .ts .java .go .rs .sh".split()
)
TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # computed from the file
TINYSTORIES_URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"
TINYSTORIES_VALIDATION_FILE = "data00.json"  # the first of data00.json .. data49.json, as in llm.c


class Piece(NamedTuple):
    """A stretch of text. Cutting a document into pieces does not change its tokens."""

    text: str | bytes
    starts: bool  # a document begins here
    split: str | None = None  # "train" or "val" where the source says which
    fraction: float | None = None  # of the source that is read, for the progress bar


@dataclass(frozen=True)
class Dataset:
    """A source of text and what is done with it unless the user says otherwise."""

    name: str
    title: str
    stem: str  # of the shards: <stem>_train.bin, <stem>_val.bin
    tokenizer: str
    read: Callable[[bool], Iterator[Piece]]  # argument: the tokenizer takes bytes
    identity: Callable[[], dict]  # what the result depends on, as JSON; different when the text has changed
    separator: str = ""  # put between documents if the tokenizer has no end of text
    first_for_validation: int | None = None  # this many tokens at the start, with the default tokenizer
    has_validation_files: bool = False  # pieces name their split


# ---------------------------------------------------------------------------------------------------------------------
# named data sets


def read_tinyshakespeare(takes_bytes):
    """llm.c's documents: sections that end in a blank line, which stays with the section before it."""
    path = fetch("tinyshakespeare", "input.txt", TINYSHAKESPEARE_URL, TINYSHAKESPEARE_SHA256)
    yield from split_sections(path.read_text(encoding="utf-8"))


def split_sections(text):
    """Pieces that together are `text`; a document is a section with its "\\n\\n", which the last one has not."""
    *sections, last = text.split("\n\n")
    for section in sections:
        yield Piece(section + "\n\n", True)
    yield Piece(last, True)


def read_tinystories(takes_bytes):
    """Stories from the archive's JSON files in the order of the archive, white space around them removed."""
    path = fetch("tinystories", "TinyStories_all_data.tar.gz", TINYSTORIES_URL)
    yield from stories_of_archive(path)


def stories_of_archive(path):
    """Pieces from a .tar.gz of JSON files, each a list of {"story": text}. data00.json is for validation."""
    found_validation, size = False, path.stat().st_size
    with open(path, "rb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r|gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if not member.isfile() or not name.endswith(".json") or name.startswith("."):
                        continue
                    is_validation = name == TINYSTORIES_VALIDATION_FILE
                    found_validation |= is_validation
                    for story in stories_of_json(archive.extractfile(member), f"{path}:{member.name}"):
                        yield Piece(story, True, "val" if is_validation else "train", raw.tell() / size)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Error(f"{path}: not a whole .tar.gz archive ({error}); move it away to download it again") from None
    if not found_validation:
        raise Error(f"{path}: expected {TINYSTORIES_VALIDATION_FILE} in the archive, found none; get the right archive")


def stories_of_json(file, name):
    """Yields the stripped "story" of each object in a JSON list, parsing as it reads: one block is in memory at a time."""
    texts = decode_blocks(_blocks(file), name, "the archive is damaged")
    decoder, between, position = json.JSONDecoder(), re.compile(r"[\s,]*"), 1
    text = next(texts, "")
    if not text.startswith("["):
        raise Error(f"{name}: expected a JSON list of stories; the archive is damaged or of another layout")
    while True:
        position = between.match(text, position).end()
        if text.startswith("]", position):
            return
        try:
            item, position = decoder.raw_decode(text, position)
        except ValueError:
            block = next(texts, None)
            if block is None:
                raise Error(
                    f"{name}: expected a JSON list, found its end inside an item; the archive is damaged"
                ) from None
            text, position = text[position:] + block, 0
            continue
        if not isinstance(item, dict) or not isinstance(item.get("story"), str):
            raise Error(
                f'{name}: expected objects with a "story", found {str(item)[:60]!r}; the archive is of another layout'
            )
        yield item["story"].strip()


def read_pydocs(takes_bytes):
    """Python's own documentation on this machine."""
    for document in pydocs.documents():
        yield Piece(document, True)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="tinyshakespeare",
            title="40,000 lines of Shakespeare",
            stem="tiny_shakespeare",
            tokenizer="gpt2",
            read=read_tinyshakespeare,
            identity=lambda: {"url": TINYSHAKESPEARE_URL, "sha256": TINYSHAKESPEARE_SHA256},
            first_for_validation=32768,
        ),
        Dataset(
            name="tinystories",
            title="TinyStories, short stories in the words of a small child",
            stem="TinyStories",
            tokenizer="gpt2",
            read=read_tinystories,
            identity=lambda: {"url": TINYSTORIES_URL},
            separator="\n\n",
            has_validation_files=True,
        ),
        Dataset(
            name="pydocs",
            title=f"the documentation that comes with Python {platform.python_version()}, no network needed",
            stem="pydocs",
            tokenizer="byte",
            read=read_pydocs,
            identity=pydocs.identity,
            separator="\n",
        ),
    )
}


# ---------------------------------------------------------------------------------------------------------------------
# the user's own text


def own_text(name, paths):
    """A Dataset of the user's files, and of the text files in the user's folders. Every file is a document."""
    files = text_files(paths)
    return Dataset(
        name=name,
        title=f"{len(files)} files" if len(files) > 1 else str(files[0]),
        stem=name,
        tokenizer="byte",
        read=functools.partial(read_files, files),
        identity=lambda: {"files": [[str(file), sha256_of(file)] for file in files]},
    )


def text_files(paths):
    """The files given, and those with a suffix of TEXT_SUFFIXES in the folders given: in order of name, none hidden."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(_files_of_folder(path), key=lambda file: file.relative_to(path).as_posix())
            if not found:
                raise Error(f"{path}: expected text files ({' '.join(TEXT_SUFFIXES)}), found none with any text in it")
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
            if (
                not name.startswith(".")
                and file.suffix.lower() in TEXT_SUFFIXES
                and file.is_file()
                and file.stat().st_size
            ):
                yield file


def read_files(files, takes_bytes):
    """Pieces of files, about a megabyte each. As str they must be UTF-8, and are cut where no GPT-2 token can span."""
    before, size = 0, sum(file.stat().st_size for file in files)
    for file in files:
        with open(file, "rb") as raw:
            remedy = "convert the file to UTF-8, or use --tokenizer byte, which takes any bytes"
            texts = _blocks(raw) if takes_bytes else cut_at_words(decode_blocks(_blocks(raw), file, remedy))
            for i, text in enumerate(texts):
                yield Piece(text, i == 0, fraction=(before + raw.tell()) / size)
            before += raw.tell()


def _blocks(file):
    return iter(functools.partial(file.read, BLOCK_BYTES), b"")


def decode_blocks(blocks, name, remedy):
    """UTF-8 blocks of bytes -> str; an error names the byte and its place, and the remedy."""
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    for block in itertools.chain(blocks, [None]):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            raise Error(
                f"{name}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x}"
                f" at offset {start - pending + error.start}; {remedy}"
            ) from None
        start += len(block or b"")
        if text:
            yield text


def cut_at_words(texts):
    """Joins and cuts anew, so that each piece but the first begins with a space or newline that follows something else.

    GPT-2's pattern has no match that goes from a non-space into a space, so every piece can be encoded by itself.
    """
    pending = ""
    for text in texts:
        pending += text
        if at := _last_word_end(pending):
            yield pending[:at]
            pending = pending[at:]
    if pending:
        yield pending


def _last_word_end(text):
    for at in range(len(text) - 1, 0, -1):
        if text[at] in " \n\r\t" and not text[at - 1].isspace():
            return at
    return 0
