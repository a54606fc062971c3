"""The registry of named data sets. `python -m llm_mojo datasets` lists them.

A new data set is an entry in DATASETS: where its files are, which reader takes them apart, and which part is for validation.
"""

import argparse
import functools
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_mojo import Error, download, pydocs
from llm_mojo.download import fetch, read_json
from llm_mojo.files import atomic_file
from llm_mojo.readers import JsonLinesReader, ParquetReader, TextReader
from llm_mojo.stories import StoriesReader

DATA = Path("data")
MANIFEST = "manifest.json"
SHARD_TOKENS = 100_000_000
VAL_FRACTION = 0.1
LARGEST_LISTING = 10_000_000  # bytes

GITHUB = "https://raw.githubusercontent.com"


# ---------------------------------------------------------------------------------------------------------------------
# which tokens are for validation


@dataclass(frozen=True)
class First:
    """This many tokens at the start; None: the first shard."""

    tokens: int | None = None

    def __str__(self):
        return "the first shard" if self.tokens is None else f"the first {self.tokens:,} tokens"


@dataclass(frozen=True)
class Last:
    """This share of the tokens, at the end."""

    fraction: float = VAL_FRACTION

    def __str__(self):
        return f"the last {self.fraction:g} of the tokens"


@dataclass(frozen=True)
class Named:
    """What the source itself has for validation."""

    def __str__(self):
        return "as the source has it"


# ---------------------------------------------------------------------------------------------------------------------
# files


@dataclass(frozen=True)
class File:
    """A file of a data set, on this machine or still on the network."""

    name: str
    reader: Any
    fetch: Callable[[], Path]  # returns where it is, after downloading or making it
    size: int | None = None  # in bytes, where it is known beforehand
    url: str | None = None
    sha256: str | None = None  # as published


def remote(
    set_name: str,
    name: str,
    reader: Any,
    url: str,
    sha256: str | None = None,
    size: int | None = None,
    at_most: int = download.LARGEST_DOWNLOAD,
) -> File:
    """A file that is downloaded at first use; see llm_mojo.download for the places where it may lie.

    No more than `size` bytes come, or `at_most` where the size is not known beforehand.
    """
    return File(name, reader, lambda: fetch(set_name, name, url, sha256, at_most=size or at_most), size, url, sha256)


def hub() -> str:
    """The address of the Hugging Face Hub, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_folder(set_name: str, repository: str, folder: str, reader: Any) -> list[File]:
    """The parquet files in a folder of a data set on the Hugging Face Hub, with the hashes that the Hub publishes."""
    url = f"{hub()}/api/datasets/{repository}/tree/main/{folder}"
    listing = fetch(set_name, "listing.json", url, at_most=LARGEST_LISTING)
    try:
        found = [
            (Path(item["path"]).name, item["path"], item["size"], item.get("lfs", {}).get("oid"))
            for item in json.loads(listing.read_text())
            if item["path"].endswith(".parquet") and type(item["size"]) is int and item["size"] > 0
        ]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        found = []
    if not found:
        raise Error(f"{listing}: expected the Hub's list of the parquet files in {folder}; delete it to fetch it again")
    return [
        remote(set_name, name, reader, f"{hub()}/datasets/{repository}/resolve/main/{path}", sha256, size)
        for name, path, size, sha256 in sorted(found)
    ]


def pydocs_file() -> File:
    """Python's documentation as JSON lines: made, not downloaded, once for each version of Python and of the rules."""
    identity = pydocs.identity()
    name = f"python-{identity['python']}-{identity['rules'][:8]}.jsonl"

    def make():
        path = download.CACHE / "pydocs" / name
        if not path.is_file():
            documents = pydocs.documents()
            with atomic_file(path) as file:
                file.writelines(json.dumps({"text": document}).encode() + b"\n" for document in documents)
        return path

    return File(name, JsonLinesReader(), make)


# ---------------------------------------------------------------------------------------------------------------------
# the registry


@dataclass(frozen=True)
class Dataset:
    """A source of text and what is done with it unless the user says otherwise."""

    name: str
    title: str
    files: Callable[[], list[File]]
    licence: str
    size: str  # of the download
    stem: str  # of the shards: <stem>_train.bin, <stem>_val.bin, or <stem>_val_000000.bin, <stem>_train_000001.bin ...
    tokenizer: str = "gpt2"
    split: Any = First()
    other_split: Any = None  # with another tokenizer, where `split` is a number of tokens
    shard_tokens: int | None = SHARD_TOKENS  # None: one file for training and one for validation
    separator: str = "\n\n"  # put between documents if the tokenizer has no end of text
    clean: tuple = ()
    is_evaluation: bool = False  # questions rather than text: see llm_mojo.evaluation

    def for_tokenizer(self, name: str | None) -> "Dataset":
        """The same with the split that goes with a tokenizer; None: the data set's own."""
        if self.other_split and name not in (None, self.tokenizer):
            return replace(self, split=self.other_split)
        return self


def hub_dataset(name: str, title: str, repository: str, folder: str, licence: str, size: str, stem: str) -> Dataset:
    files = functools.partial(hub_folder, name, repository, folder, ParquetReader("text"))
    return Dataset(name, title, files, licence, size, stem)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="tinyshakespeare",
            title="40,000 lines of Shakespeare; tokens and split as in llm.c",
            files=lambda: [
                remote(
                    "tinyshakespeare",
                    "input.txt",
                    TextReader(separator="\n\n", keep=True),
                    f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",  # computed from the file
                    at_most=10_000_000,
                )
            ],
            licence="public domain",
            size="1.1 MB",
            stem="tiny_shakespeare",
            split=First(32768),
            other_split=Last(),
            shard_tokens=None,
            separator="",
        ),
        Dataset(
            name="tinystories",
            title="TinyStories: short stories in the words of a small child; tokens as in llm.c",
            files=lambda: [
                remote(
                    "tinystories",
                    "TinyStories_all_data.tar.gz",
                    StoriesReader(),
                    f"{hub()}/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz",
                    sha256="26cf7605aca15bc4ea6fa637256400d9d01317b28ed296172b2d1dd160cd7699",
                    at_most=3_000_000_000,
                )
            ],
            licence="CDLA-Sharing-1.0",
            size="1.6 GB",
            stem="TinyStories",
            split=Named(),
            shard_tokens=None,
        ),
        hub_dataset(
            "openwebtext",
            "OpenWebText: pages that Reddit's users linked to",
            *("Skylion007/openwebtext", "plain_text", "CC0-1.0", "~24 GB", "openwebtext"),
        ),
        hub_dataset(
            "fineweb10B",
            "FineWeb, a sample of 10 billion tokens, as llm.c names it",
            *("HuggingFaceFW/fineweb", "sample/10BT", "ODC-By-1.0", "~30 GB", "fineweb"),
        ),
        hub_dataset(
            "fineweb100B",
            "FineWeb, a sample of 100 billion tokens",
            *("HuggingFaceFW/fineweb", "sample/100BT", "ODC-By-1.0", "~300 GB", "fineweb"),
        ),
        hub_dataset(
            "edu_fineweb10B",
            "FineWeb-Edu, a sample of 10 billion tokens: the pages that teach",
            *("HuggingFaceFW/fineweb-edu", "sample/10BT", "ODC-By-1.0", "~29 GB", "edu_fineweb"),
        ),
        hub_dataset(
            "edu_fineweb100B",
            "FineWeb-Edu, a sample of 100 billion tokens",
            *("HuggingFaceFW/fineweb-edu", "sample/100BT", "ODC-By-1.0", "~290 GB", "edu_fineweb"),
        ),
        Dataset(
            name="hellaswag",
            title="HellaSwag: which of four endings is right; llm.c's evaluation file",
            files=lambda: [
                remote(
                    "hellaswag",
                    "hellaswag_val.jsonl",
                    JsonLinesReader(),
                    f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
                    sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
                    at_most=100_000_000,
                )
            ],
            licence="MIT",
            size="12 MB",
            stem="hellaswag",
            is_evaluation=True,
        ),
        Dataset(
            name="pydocs",
            title=f"the documentation that comes with Python {platform.python_version()}",
            files=lambda: [pydocs_file()],
            licence="PSF-2.0",
            size="no network",
            stem="pydocs",
            tokenizer="byte",
            split=Last(),
            shard_tokens=None,
            separator="\n",
        ),
    )
}


# ---------------------------------------------------------------------------------------------------------------------
# the command `python -m llm_mojo datasets`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo datasets`: there are none."""


def run(args: argparse.Namespace) -> None:
    """Lists the data sets: name, size of the download, licence, what is here, title."""
    rows = [("name", "download", "licence", "here", "what it is")]
    rows += [(each.name, each.size, each.licence, what_is_here(each.name), each.title) for each in DATASETS.values()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("\nprepare one with: python -m llm_mojo prepare NAME; or a file or folder of your own by its path")


def what_is_here(name: str) -> str:
    """`prepared`, or how much of the download is in the cache."""
    manifest = read_json(DATA / name / MANIFEST)
    outputs = manifest.get("outputs") if isinstance(manifest, dict) else None
    if isinstance(outputs, dict):
        counts = [output.get("tokens", 0) for output in outputs.values() if isinstance(output, dict)]
        tokens = sum(count for count in counts if type(count) is int)
        return f"prepared: {tokens:,} tokens" if tokens else "prepared"
    given = os.environ.get("LLM_MOJO_CACHE")
    files: dict[str, int] = {}
    for folder in [download.CACHE / name, *([Path(given) / name] if given else [])]:
        if folder.is_dir():
            files |= {file.name: file.stat().st_size for file in folder.iterdir() if is_data(file)}
    return f"{sum(files.values()) / 1e6:,.1f} MB downloaded" if files else "-"


def is_data(path: Path) -> bool:
    """Whether a file of the cache is a whole file of a data set, rather than a note about one."""
    return path.suffix in (".txt", ".gz", ".parquet", ".jsonl")
