"""Turns text into token shards: the command `python -m llm_mojo prepare`.

A prepared folder has the shards, tokenizer.bin (and meta.pkl for characters) and manifest.json. The manifest is written last
and says what the others were made from: where it fits, nothing is done again. A run that was interrupted left `*.part` and
journal.json; the same command goes on from there and makes the same bytes.
"""

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from llm_mojo import Error, evaluation
from llm_mojo.cleaning import NAMES as CLEANING_NAMES
from llm_mojo.cleaning import Cleaning, Seen
from llm_mojo.datasets import DATA, DATASETS, MANIFEST, First, Last, Named, own_text
from llm_mojo.download import locked, read_json, sha256_of, write_json
from llm_mojo.formats import token_dtype, write_tokenizer
from llm_mojo.manifest import Inputs, describe, fingerprint, inputs_are
from llm_mojo.pipeline import Work, first_unknown, results, workers_for
from llm_mojo.progress import Progress
from llm_mojo.shards import Shards, put_in_place, read_part
from llm_mojo.tokenize import (
    NAMES,
    ByteTokenizer,
    CharTokenizer,
    UnknownCharacter,
    gpt2_tokenizer,
    read_tokenizer_file,
    write_meta,
)

JOURNAL = "journal.json"
SEEN = "seen.sqlite"
JOURNAL_SECONDS = 5.0
MIN_SHARD_TOKENS = 2  # a token and the one after it


def add_arguments(parser):
    """Declares the options of `python -m llm_mojo prepare`."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="NAME|FILE|FOLDER",
        help=f"a data set ({', '.join(DATASETS)}; `python -m llm_mojo datasets` tells more), or text of your own: files"
        " (plain text, .jsonl, .parquet, .gz, .zst), or folders of them",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME|FILE|FOLDER",
        help=f"{', '.join(NAMES)}, or what `python -m llm_mojo tokenizer` made, or a meta.pkl"
        " (default: gpt2 for most data sets, byte for pydocs and text of your own)",
    )
    parser.add_argument(
        "--val-fraction", type=_fraction, metavar="F", help="share of the tokens, at the end, for validation"
    )
    parser.add_argument("--val-tokens", type=_positive, metavar="N", help="the first N tokens are for validation")
    parser.add_argument(
        "--shard-tokens", type=_positive, metavar="N", help="tokens in a shard (default 100,000,000 for large texts)"
    )
    parser.add_argument("--separator", default="", help=r"what stands between documents in plain text (\n: a new line)")
    parser.add_argument("--field", default="text", help="field or column with the text (default text)")
    parser.add_argument("--clean", metavar="F,F..", help=f"what is done to documents, in this order: {CLEANING_NAMES}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the result (default data/NAME)")
    parser.add_argument("--name", help="name of your own text (default: that of the file or folder)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes that tokenize (default: all cores)")
    parser.add_argument("--force", action="store_true", help="prepare again even if nothing has changed")


def _fraction(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 1, got {text}")
    return value


def _positive(text):
    if not text.replace("_", "").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text}")
    return int(text)


def run(args):
    """Runs `python -m llm_mojo prepare`."""
    dataset = _find_dataset(args)
    out = args.out or DATA / dataset.name
    if dataset.is_evaluation:
        evaluation.prepare(dataset, out, args.force, args.argv)
        return
    split = dataset.split
    if dataset.other_split and args.tokenizer not in (None, dataset.tokenizer):
        split = dataset.other_split
    if args.val_fraction or args.val_tokens:
        if (
            isinstance(split, Named)
            or (isinstance(split, First) and split.tokens)
            or (args.val_fraction and args.val_tokens)
        ):
            raise Error(f"prepare: {dataset.name} comes with its own split; leave out --val-fraction and --val-tokens")
        split = Last(args.val_fraction) if args.val_fraction else First(args.val_tokens)
    dataset = replace(
        dataset,
        split=split,
        shard_tokens=args.shard_tokens or dataset.shard_tokens,
        clean=tuple(args.clean.split(",")) if args.clean else dataset.clean,
    )
    prepare(dataset, args.tokenizer or dataset.tokenizer, out, args.workers, args.force, args.argv)


def _find_dataset(args):
    sources, name = args.source, args.name
    if len(sources) == 1 and sources[0] in DATASETS:
        if name:
            raise Error(f"prepare: --name is for text of your own; {sources[0]} has its name (--out sets the folder)")
        return DATASETS[sources[0]]
    if mixed := [source for source in sources if source in DATASETS]:
        raise Error(
            f"prepare: {mixed[0]} is a data set and is prepared by itself; for a file or folder of that name, ./{mixed[0]}"
        )
    path = Path(sources[0]).resolve()
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", path.name if path.is_dir() else path.name.split(".")[0])
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or name in DATASETS:
        raise Error(
            f"prepare: {name!r} cannot be the name of your text (letters, digits, . _ -; no data set's name);"
            " use --name NAME"
        )
    return own_text(name, sources, args.separator.replace("\\n", "\n"), args.field)


# ---------------------------------------------------------------------------------------------------------------------
# a prepared folder


def prepare(dataset, tokenizer_name, out, workers=None, force=False, argv=()):
    """Writes shards, tokenizer and manifest of a data set to the folder `out`, unless they are there."""
    out = Path(out)
    with locked(out):
        cleaning, files = Cleaning(dataset.clean), dataset.files()
        recipe = {
            "dataset": dataset.name,
            "readers": sorted({repr(file.reader) for file in files}),
            "cleaning": cleaning.identity(),
            "separator": dataset.separator,
            "tokenizer": _tokenizer_identity(tokenizer_name),
            "validation": str(dataset.split),
            "shard_tokens": dataset.shard_tokens,
        }
        if force:
            _start_over(out)
        else:
            _finish_renaming(out)
        manifest = read_json(out / MANIFEST)
        if not force and _fits(manifest, recipe, out, files):
            counts = ", ".join(f"{name} {each['tokens']:,} tokens" for name, each in _shards_in(manifest))
            print(f"{out} is up to date: {counts} ({tokenizer_name} tokenizer); --force makes it again")
            return
        print(f"preparing {dataset.name} ({dataset.title}) with the tokenizer {tokenizer_name}", flush=True)
        inputs = Inputs(files)
        try:
            tokenizer = _make_tokenizer(tokenizer_name, dataset, inputs, cleaning)
            job = _Job(out, recipe, dataset, tokenizer, cleaning, inputs)
            job.run(workers)
            outputs = job.finish() | _write_tokenizer(out, tokenizer)
            about = {
                "name": tokenizer.name,
                "file": "tokenizer.bin",
                "vocab_size": len(tokenizer.tokens),
                "end_of_text": tokenizer.eot,
                "sha256": outputs["tokenizer.bin"]["sha256"],
            }
            counts = {"documents": job.state["documents"], "dropped": job.state["dropped"]}
            manifest = describe(recipe, argv, about, inputs.entries(), outputs, **counts)
        finally:
            inputs.close()
        write_json(out / f"{MANIFEST}.part", manifest)
        _finish_renaming(out)
        for name, each in outputs.items():
            what = f"{each['tokens']:,} tokens" if "tokens" in each else f"vocabulary of {len(tokenizer.tokens):,}"
            print(f"wrote {out / name}: {what} ({each['bytes']:,} bytes)")


def _shards_in(manifest):
    return [(name, each) for name, each in manifest["outputs"].items() if "tokens" in each]


def _fits(manifest, recipe, out, files):
    """Whether the folder holds, in full, what this recipe makes of these files."""
    if not isinstance(manifest, dict) or manifest.get("recipe") != recipe:
        return False
    whole = all(
        (out / name).is_file() and (out / name).stat().st_size == each["bytes"]
        for name, each in manifest["outputs"].items()
    )
    return whole and inputs_are(files, manifest["inputs"])


def _finish_renaming(out):
    """Puts finished parts in place, also for a run that was killed while it did so."""
    manifest = read_json(out / f"{MANIFEST}.part")
    if not manifest:
        return
    old = read_json(out / MANIFEST) or {"outputs": {}}
    (out / MANIFEST).unlink(missing_ok=True)
    for name in old["outputs"]:
        if name not in manifest["outputs"]:
            (out / name).unlink(missing_ok=True)
    put_in_place(out, [*manifest["outputs"], MANIFEST])
    _start_over(out)


def _start_over(out):
    """Removes what unfinished runs have left."""
    for path in [*out.glob("*.part"), *out.glob(f"{SEEN}*"), out / JOURNAL]:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers


def _tokenizer_identity(name):
    if name in NAMES:
        return name
    path = Path(name)
    if not path.exists():
        raise Error(f"--tokenizer: expected {', '.join(NAMES)}, or a file or folder, found no {name}")
    files = sorted(path.glob("tokenizer.bin")) or sorted(path.glob("meta.pkl")) if path.is_dir() else [path]
    return [sha256_of(file) for file in files]


def _make_tokenizer(name, dataset, inputs, cleaning):
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "byte":
        return ByteTokenizer()
    if name != "char":
        return read_tokenizer_file(name)
    characters = set(dataset.separator)
    for number, file in enumerate(inputs.files):
        for block in file.reader.blocks(inputs.opener(number)(), whole=bool(cleaning)):
            for text, _ in file.reader.documents(block):
                characters.update(cleaning(text)[0] or "" if cleaning else text)
    return CharTokenizer(sorted(characters))


def _write_tokenizer(out, tokenizer):
    """Writes tokenizer.bin, and meta.pkl for characters, as parts; returns what the manifest says of them."""
    write_tokenizer(out / "tokenizer.bin.part", tokenizer.tokens, tokenizer.eot)
    names = ["tokenizer.bin"]
    if isinstance(tokenizer, CharTokenizer):
        write_meta(out / "meta.pkl.part", tokenizer.characters)
        names.append("meta.pkl")
    parts = {name: out / f"{name}.part" for name in names}
    return {name: {"bytes": part.stat().st_size, "sha256": sha256_of(part)} for name, part in parts.items()}


# ---------------------------------------------------------------------------------------------------------------------
# from files to shards


class _Job:
    """The making of the shards: its state is in the journal, so that a killed run goes on."""

    def __init__(self, out, recipe, dataset, tokenizer, cleaning, inputs):
        self.out, self.recipe, self.dataset, self.inputs = out, recipe, dataset, inputs
        self.work = Work(tokenizer, cleaning, dataset.separator)
        self.dtype = token_dtype(len(tokenizer.tokens))
        self.marks = [fingerprint(file.fetch()) for file in inputs.files if not file.url]
        journal = read_json(out / JOURNAL) or {}
        try:
            if journal.get("recipe") != recipe or journal.get("inputs") != self.marks:
                raise ValueError("another job")
            self._open(journal["state"])
            print(f"going on after {sum(self.state['tokens'].values()):,} tokens", flush=True)
        except (KeyError, ValueError):
            _start_over(out)
            self._open({"file": 0, "place": None, "tokens": {}, "documents": 0, "dropped": 0})

    def _open(self, state):
        self.state = state
        sinks = ["all"] if isinstance(self.dataset.split, Last) else ["train", "val"]
        self.sinks = {sink: self._shards(sink, state["tokens"].get(sink, 0)) for sink in sinks}
        self.seen = Seen(self.out / SEEN, state["documents"]) if self.work.cleaning.is_unique else None

    def _shards(self, split, count=0):
        """The shards of a split: numbered if they are cut, those for training after those for validation."""
        stem, shard_tokens = self.dataset.stem, self.dataset.shard_tokens
        if split == "all" or shard_tokens is None:
            return Shards(self.out, f"{stem}_{split}.bin", self.dtype, None, 0, count)
        first = 0
        if split == "train" and isinstance(self.dataset.split, First):
            first = -(-self._val_tokens() // shard_tokens)
        return Shards(self.out, f"{stem}_{split}_{{:06d}}.bin", self.dtype, shard_tokens, first, count)

    def _val_tokens(self):
        return self.dataset.split.tokens or self.dataset.shard_tokens

    def run(self, workers):
        """Tokenizes what is left, noting now and then how far it has come."""
        files, state = self.inputs.files, self.state
        openers = [self.inputs.opener(number) for number in range(len(files))]
        readers = [file.reader for file in files]
        if all(file.url is None for file in files) or len(files) == 1:
            self.inputs.sizes = [file.fetch().stat().st_size for file in files]
        size = None if None in self.inputs.sizes else sum(self.inputs.sizes)
        start = (state["file"], state["place"])
        saved, done = time.monotonic(), 0
        try:
            with Progress("tokenizing") as progress:
                for result in results(openers, readers, self.work, workers_for(size, workers), start):
                    self._take(result)
                    done += result.block.size
                    tokens = sum(sink.count for sink in self.sinks.values())
                    fraction = self.inputs.fraction(result.file, result.block.read)
                    progress.show(fraction, done, f"{tokens:,} tokens")
                    if time.monotonic() - saved >= JOURNAL_SECONDS:
                        self._save()
                        saved = time.monotonic()
        except UnknownCharacter as error:
            raise first_unknown(error, openers, readers) from None
        finally:
            self._save()
            if self.seen:
                self.seen.close()

    def _take(self, result):
        state, encoded = self.state, result.encoded
        ids, dropped = self._without_duplicates(encoded) if self.seen else (encoded.ids, 0)
        if isinstance(self.dataset.split, First):
            val = max(self._val_tokens() - self.sinks["val"].count, 0)
            self.sinks["val"].write(ids[:val])
            self.sinks["train"].write(ids[val:])
        else:
            self.sinks[result.block.split or "all"].write(ids)
        state["file"], state["place"] = result.file, result.block.after
        state["documents"] += encoded.documents
        state["dropped"] += encoded.dropped + dropped

    def _without_duplicates(self, encoded):
        """The ids of the documents that have not come before, and how many have."""
        number, at, parts = self.state["documents"], 0, []
        for length, key in zip(encoded.lengths, encoded.keys):
            if self.seen.add(key, number):
                parts.append(encoded.ids[at : at + length])
            at += length
        dropped = len(encoded.keys) - len(parts)
        return (np.concatenate(parts) if parts else encoded.ids[:0]), dropped

    def _save(self):
        """Writes the journal; first what it speaks of."""
        for sink in self.sinks.values():
            sink.save()
        if self.seen:
            self.seen.save()
        self.state["tokens"] = {name: sink.count for name, sink in self.sinks.items()}
        write_json(self.out / JOURNAL, {"recipe": self.recipe, "inputs": self.marks, "state": self.state})

    def finish(self):
        """Completes the shards under their temporary names; returns what the manifest says of them."""
        if isinstance(self.dataset.split, Last):
            self._cut()
        for split in ("train", "val"):
            if self.sinks[split].count < MIN_SHARD_TOKENS:
                raise Error(
                    f"prepare: {self.dataset.name}: too little text: expected {MIN_SHARD_TOKENS} tokens or more for"
                    f" training and for validation, found {self.sinks[split].count} for"
                    f" {'training' if split == 'train' else 'validation'}; give more text, or change --val-fraction or"
                    " --val-tokens"
                )
        return self.sinks["train"].finish() | self.sinks["val"].finish()

    def _cut(self):
        """Copies the tokens to training and, the last of them, to validation."""
        whole = self.sinks["all"]
        whole.close()
        left = int(whole.count * (1 - self.dataset.split.fraction))
        self.sinks = {split: self._shards(split) for split in ("train", "val")}
        for ids in read_part(self.out / f"{self.dataset.stem}_all.bin.part", whole.count, self.dtype):
            self.sinks["train"].write(ids[:left])
            self.sinks["val"].write(ids[left:])
            left -= min(left, len(ids))
