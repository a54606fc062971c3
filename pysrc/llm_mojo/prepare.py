"""Turns text into token shards: the command `python -m llm_mojo prepare`.

A prepared folder has <stem>_train.bin, <stem>_val.bin, tokenizer.bin and prepared.json. The last is written last and says
what the others were made from: where it fits, nothing is done again, and where it is missing the folder is not complete.
"""

import argparse
import collections
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.datasets import DATASETS, TEXT_SUFFIXES, own_text
from llm_mojo.download import locked, read_json, write_json
from llm_mojo.formats import token_writer, write_tokenizer
from llm_mojo.progress import Progress
from llm_mojo.tokenize import NAMES, ByteTokenizer, CharTokenizer, Gpt2Tokenizer

DATA = Path("data")
STAMP = "prepared.json"
BATCH_CHARACTERS = 1 << 20
COPY_TOKENS = 1 << 22
VAL_FRACTION = 0.1
MAX_VOCABULARY = 65536  # ids are uint16
MIN_SHARD_TOKENS = 2  # a token and the one after it


def add_arguments(parser):
    """Declares the options of `python -m llm_mojo prepare`."""
    names = "; ".join(f"{dataset.name} ({dataset.title})" for dataset in DATASETS.values())
    parser.add_argument(
        "source",
        nargs="+",
        metavar="NAME|FILE|FOLDER",
        help=f"a data set: {names}. Or text of your own: files, or folders whose {' '.join(TEXT_SUFFIXES)} files are taken",
    )
    parser.add_argument(
        "--tokenizer", choices=NAMES, help="default: gpt2 for tinyshakespeare and tinystories, else byte"
    )
    parser.add_argument(
        "--val-fraction",
        type=_fraction,
        metavar="F",
        help=f"share of the tokens, at the end, for validation (default {VAL_FRACTION})",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the result (default data/NAME)")
    parser.add_argument("--name", help="name of your own text (default: that of the file or folder)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="threads that tokenize (default: all cores)"
    )
    parser.add_argument("--force", action="store_true", help="prepare again even if nothing has changed")


def _fraction(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 1, got {text}")
    return value


def run(args):
    """Runs `python -m llm_mojo prepare`."""
    dataset = _find_dataset(args.source, args.name)
    tokenizer_name = args.tokenizer or dataset.tokenizer
    if args.val_fraction and (dataset.has_validation_files or _own_first(dataset, tokenizer_name)):
        raise Error(f"prepare: {dataset.name} comes with its own split; leave out --val-fraction")
    val_fraction, out = args.val_fraction or VAL_FRACTION, args.out or DATA / dataset.name
    prepare(dataset, tokenizer_name, val_fraction, out, args.workers, args.force)


def _own_first(dataset, tokenizer_name):
    """How many tokens at the start are for validation; None where a fraction at the end is."""
    return dataset.first_for_validation if tokenizer_name == dataset.tokenizer else None


def _find_dataset(sources, name):
    if len(sources) == 1 and sources[0] in DATASETS:
        if name:
            raise Error(f"prepare: --name is for text of your own; {sources[0]} has its name (--out sets the folder)")
        return DATASETS[sources[0]]
    if mixed := [source for source in sources if source in DATASETS]:
        raise Error(
            f"prepare: {mixed[0]} is a data set and is prepared by itself; for a file or folder of that name, ./{mixed[0]}"
        )
    path = Path(sources[0]).resolve()
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", path.name if path.is_dir() else path.stem)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or name in DATASETS:
        raise Error(
            f"prepare: {name!r} cannot be the name of your text (letters, digits, . _ -; no data set's name);"
            " use --name NAME"
        )
    return own_text(name, sources)


def prepare(dataset, tokenizer_name, val_fraction, out, workers=1, force=False):
    """Writes the shards, the tokenizer file and the stamp of a data set to the folder `out`, unless they are there."""
    out = Path(out)
    with locked(out):
        recipe = {
            "dataset": dataset.name,
            "source": dataset.identity(),
            "tokenizer": tokenizer_name,
            "val_fraction": val_fraction,
        }
        stamp = read_json(out / STAMP)
        if not force and _fits(stamp, recipe, out):
            counts = ", ".join(f"{file} {count:,} tokens" for file, count in stamp["tokens"].items())
            print(f"{out} is up to date: {counts} ({tokenizer_name} tokenizer); --force makes it again")
            return
        print(f"preparing {dataset.name} ({dataset.title}) with the {tokenizer_name} tokenizer", flush=True)
        tokenizer = _make_tokenizer(tokenizer_name, dataset)
        (out / STAMP).unlink(missing_ok=True)
        counts = _write_shards(dataset, tokenizer, val_fraction, out, workers)
        write_tokenizer(out / "tokenizer.bin", tokenizer.tokens, tokenizer.eot)
        files = {name: (out / name).stat().st_size for name in [*counts, "tokenizer.bin"]}
        write_json(out / STAMP, {"recipe": recipe, "tokens": counts, "bytes": files})
        for name, size in files.items():
            what = f"{counts[name]:,} tokens" if name in counts else f"vocabulary of {len(tokenizer.tokens):,}"
            print(f"wrote {out / name}: {what} ({size:,} bytes)")


def _fits(stamp, recipe, out):
    """Whether the folder holds, in full, what this recipe makes."""
    if not isinstance(stamp, dict) or stamp.get("recipe") != recipe:
        return False
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in stamp["bytes"].items())


def _make_tokenizer(name, dataset):
    if name == "gpt2":
        return Gpt2Tokenizer()
    if name == "byte":
        return ByteTokenizer()
    characters = set(dataset.separator)
    for piece in dataset.read(False):
        characters.update(piece.text)
    if len(characters) > MAX_VOCABULARY:
        raise Error(
            f"prepare: {dataset.name}: expected {MAX_VOCABULARY:,} different characters or fewer,"
            f" found {len(characters):,}; use --tokenizer byte"
        )
    return CharTokenizer(characters)


# ---------------------------------------------------------------------------------------------------------------------
# from pieces of text to shards


def _write_shards(dataset, tokenizer, val_fraction, out, workers):
    """Returns file name -> number of tokens. The files appear only when both are whole."""
    names = {split: f"{dataset.stem}_{split}.bin" for split in ("train", "val")}
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile(dir=out))
        writers = {split: stack.enter_context(token_writer(out / name)) for split, name in names.items()}
        for split, ids in _tokenize(dataset, tokenizer, workers):
            if split is None:
                spool.write(ids.astype("<u2").data)
            else:
                writers[split].write(ids)
        if not dataset.has_validation_files:
            _split(spool, writers, val_fraction, _own_first(dataset, tokenizer.name))
        for split, writer in writers.items():
            if writer.count < MIN_SHARD_TOKENS:
                raise Error(
                    f"prepare: {dataset.name}: too little text: expected {MIN_SHARD_TOKENS} tokens or more for training"
                    f" and for validation, found {writer.count} for {'training' if split == 'train' else 'validation'};"
                    " give more text, or change --val-fraction"
                )
    return {names[split]: writer.count for split, writer in writers.items()}


def _split(spool, writers, val_fraction, first_for_validation):
    """Copies the tokens, kept as uint16, to the two shards: the first N or the last fraction are for validation."""
    total = spool.tell() // 2
    if first_for_validation:
        middle, order = min(first_for_validation, total), ("val", "train")
    else:
        middle, order = int(total * (1 - val_fraction)), ("train", "val")
    spool.seek(0)
    for split, count in zip(order, (middle, total - middle)):
        while count:
            ids = np.frombuffer(spool.read(2 * min(count, COPY_TOKENS)), dtype="<u2")
            writers[split].write(ids)
            count -= len(ids)


def _tokenize(dataset, tokenizer, workers):
    """Yields (split, ids) in the order of the text, computed in threads: tiktoken works outside Python's lock."""
    done = tokens = 0

    def encode(batch):
        split, fraction, pieces = batch
        return split, fraction, sum(len(text) for text, _ in pieces), tokenizer.encode(pieces)

    with Progress("tokenizing") as progress:
        for split, fraction, size, ids in _map_in_order(encode, _batches(dataset, tokenizer), workers):
            done, tokens = done + size, tokens + len(ids)
            progress.show(fraction, done, f"{tokens:,} tokens")
            yield split, ids


def _batches(dataset, tokenizer):
    """Groups pieces of the same split into (split, fraction read, [(text, starts a document)]) of about a megabyte."""
    pieces, size, split, fraction = [], 0, None, None
    for index, piece in enumerate(dataset.read(tokenizer.name == "byte")):
        if pieces and (piece.split != split or size >= BATCH_CHARACTERS):
            yield split, fraction, pieces
            pieces, size = [], 0
        if index and piece.starts and tokenizer.eot is None and dataset.separator:
            pieces.append((dataset.separator, False))
        pieces.append((piece.text, piece.starts))
        size, split, fraction = size + len(piece.text), piece.split, piece.fraction
    if pieces:
        yield split, fraction, pieces


def _map_in_order(function, items, workers):
    """Like map, in threads, looking only a few items ahead so that memory stays bounded."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending = collections.deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
