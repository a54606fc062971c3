"""Turns text into token shards: the command `python -m llm_mojo prepare`.

A prepared folder has the shards, tokenizer.bin (and meta.pkl for characters) and manifest.json. The manifest is written last
and says what the others were made from: where it fits, nothing is done again. A run that was interrupted left `*.part` and
journal.json; the same command goes on from there and makes the same bytes.
"""

import argparse
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_mojo import Error, evaluation
from llm_mojo.callables import callable_module, run_command
from llm_mojo.cleaning import NAMES as CLEANING_NAMES
from llm_mojo.cleaning import Cleaning
from llm_mojo.datasets import DATA, DATASETS, MANIFEST, Dataset, First, Last, Named
from llm_mojo.download import locked, sha256_of, write_json
from llm_mojo.files import AnyPath
from llm_mojo.formats import write_tokenizer
from llm_mojo.job import Job
from llm_mojo.manifest import Inputs, describe, inputs_are
from llm_mojo.own_text import KINDS_OF_FILES, add_text_arguments, own_text
from llm_mojo.prepared import (
    check_job,
    check_names,
    check_parts,
    check_recipe,
    check_tokenizer,
    read_journal,
    read_manifest,
    start_over,
)
from llm_mojo.readers import well_formed
from llm_mojo.shards import put_in_place
from llm_mojo.tokenize import NAMES, CharTokenizer, open_tokenizer, tokenizer_identity, write_meta

LONGEST_NAME = 200  # bytes: file systems have 255, and names get _train_000001.bin.part and more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo prepare`."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="NAME|FILE|FOLDER",
        help=f"a data set ({', '.join(DATASETS)}; `python -m llm_mojo datasets` tells more), or text of your own: files"
        f" ({KINDS_OF_FILES}), or folders of them; a document without text, empty or null, is none",
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
    add_text_arguments(parser)
    parser.add_argument("--clean", metavar="F,F..", help=f"what is done to documents, in this order: {CLEANING_NAMES}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the result (default data/NAME)")
    parser.add_argument("--name", help="name of your own text (default: that of the file or folder)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes that tokenize (default: all cores)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="prepare again even if nothing has changed; replaces data of other text in the folder",
    )


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


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo prepare`."""
    dataset = find_dataset(args.source, args.name, args.separator, args.field)
    out = args.out or DATA / dataset.name
    if dataset.is_evaluation:
        if args.val_fraction or args.val_tokens or args.shard_tokens or args.clean:
            raise Error(
                f"prepare: {dataset.name} is an evaluation: of its options only --tokenizer, --out and --force apply"
            )
        evaluation.prepare(dataset, args.tokenizer or dataset.tokenizer, out, args.force, args.argv)
        return
    split = dataset.for_tokenizer(args.tokenizer).split
    if args.val_fraction and args.val_tokens:
        raise Error("prepare: --val-fraction and --val-tokens both say what is for validation; leave out one of them")
    if args.val_fraction or args.val_tokens:
        if dataset.name in DATASETS and (isinstance(split, Named) or (isinstance(split, First) and split.tokens)):
            raise Error(f"prepare: {dataset.name} comes with its own split; leave out --val-fraction and --val-tokens")
        split = Last(args.val_fraction) if args.val_fraction else First(args.val_tokens)
    dataset = replace(
        dataset,
        split=split,
        shard_tokens=args.shard_tokens or dataset.shard_tokens,
        clean=tuple(args.clean.split(",")) if args.clean else dataset.clean,
    )
    prepare(dataset, args.tokenizer or dataset.tokenizer, out, args.workers, args.force, args.argv)


def find_dataset(
    sources: Sequence[str], name: str | None = None, separator: str | None = None, field: str | None = None
) -> Dataset:
    """The data set of that name, or the user's own text. Raises Error if there is no such thing."""
    if len(sources) == 1 and sources[0] in DATASETS:
        if separator or field:
            raise Error(f"prepare: --separator and --field are for text of your own; {sources[0]} has its own layout")
        if name:
            raise Error(f"prepare: --name is for text of your own; {sources[0]} has its name (--out sets the folder)")
        return DATASETS[sources[0]]
    if mixed := [source for source in sources if source in DATASETS]:
        raise Error(
            f"prepare: {mixed[0]} is a data set and is prepared by itself; for a file or folder of that name, ./{mixed[0]}"
        )
    name = name or name_of(sources[0])
    if not re.fullmatch(r"\w[\w.-]*", name) or len(os.fsencode(name)) > LONGEST_NAME or name in DATASETS:
        raise Error(
            f"prepare: {name!r} cannot be the name of your text (letters, digits, . _ -; up to {LONGEST_NAME} bytes; no"
            " data set's name); use --name NAME"
        )
    return own_text(name, sources, separator, field)


def name_of(source: AnyPath) -> str:
    """The name that a file or folder gives its data: its letters and digits in any script, and _ for the rest."""
    path = Path(os.path.realpath(source))
    return re.sub(r"[^\w.-]+", "_", path.name if path.is_dir() else path.name.split(".")[0])


# ---------------------------------------------------------------------------------------------------------------------
# a prepared folder


def prepare(
    dataset: Dataset,
    tokenizer_name: str,
    out: AnyPath,
    workers: int | None = None,
    force: bool = False,
    argv: Sequence[str] = (),
) -> None:
    """Writes shards, tokenizer and manifest of a data set to the folder `out`, unless they are there."""
    out = Path(out)
    with locked(out):
        journal, finished = read_journal(out), read_manifest(out / f"{MANIFEST}.part")
        manifest = read_manifest(out / MANIFEST)
        cleaning, files = Cleaning(dataset.clean), dataset.files()
        recipe = {
            "dataset": dataset.name,
            "readers": sorted({repr(file.reader) for file in files}),
            "cleaning": cleaning.identity(),
            "separator": dataset.separator,
            "tokenizer": tokenizer_identity(tokenizer_name),
            "validation": str(dataset.split),
            "shard_tokens": dataset.shard_tokens,
        }
        sources = [file.name for file in files]
        check_job(out, dataset.name, sources, finished or manifest, journal, force)
        if force:
            (out / f"{MANIFEST}.part").unlink(missing_ok=True)
            start_over(out, journal)
            journal = None
        elif finished:
            _finish_renaming(out, finished, manifest, journal)
            manifest, journal = finished, None
        check_recipe(out, manifest, recipe, tokenizer_name, force)
        check_names(out, dataset.stem, manifest, force)
        if not force and _fits(manifest, recipe, out, files):
            if journal and journal["recipe"] == recipe:
                start_over(out, journal)
            tokens = ", ".join(f"{name} {each['tokens']:,} tokens" for name, each in _shards_in(manifest))
            print(f"{out} is up to date: {tokens} ({tokenizer_name} tokenizer); --force makes it again")
            return
        print(f"preparing {dataset.name} ({dataset.title}) with the tokenizer {tokenizer_name}", flush=True)
        inputs = Inputs(files)
        try:
            tokenizer = _make_tokenizer(tokenizer_name, dataset, inputs, cleaning)
            check_tokenizer(out, tokenizer, manifest, force)
            if not journal:
                check_parts(out, dataset.stem, force)
            job = Job(out, recipe, dataset, tokenizer, cleaning, inputs, journal)
            job.run(workers)
            try:
                outputs = job.finish()
            except Error:
                # Too little text: there is nothing to go on with.
                start_over(out, read_journal(out))
                raise
            outputs |= _write_tokenizer(out, tokenizer)
            about = {
                "name": tokenizer.name,
                "file": "tokenizer.bin",
                "vocab_size": len(tokenizer.tokens),
                "end_of_text": tokenizer.eot,
                "sha256": outputs["tokenizer.bin"]["sha256"],
            }
            counts = {name: job.state[name] for name in ("documents", "dropped", "replaced")}
            made = describe(recipe, argv, about, inputs.entries(), outputs, **counts)
        finally:
            inputs.close()
        write_json(out / f"{MANIFEST}.part", made)
        _finish_renaming(out, made, manifest, read_journal(out))
        for name, each in outputs.items():
            what = f"{each['tokens']:,} tokens" if "tokens" in each else f"vocabulary of {len(tokenizer.tokens):,}"
            print(f"wrote {out / name}: {what} ({each['bytes']:,} bytes)")
        if counts["replaced"]:
            print(
                f"note: {counts['replaced']:,} documents had halves of characters (lone surrogates); U+FFFD stands there"
            )


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


def _finish_renaming(out, manifest, old, journal):
    """Puts finished parts in place, also for a run that was killed while it did so. `old`: the manifest to be replaced."""
    for name, each in (old["outputs"] if old else {}).items():
        if name not in manifest["outputs"] and (out / name).is_file():
            if (out / name).is_symlink() or sha256_of(out / name) != each["sha256"]:
                print(f"note: {out / name} has been changed since it was made and stays; it is not of this data")
            else:
                (out / name).unlink()
    (out / MANIFEST).unlink(missing_ok=True)
    put_in_place(out, [*manifest["outputs"], MANIFEST])
    start_over(out, journal)


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers


def _make_tokenizer(name, dataset, inputs, cleaning):
    if name != "char":
        return open_tokenizer(name)
    characters = set(dataset.separator)
    for number, file in enumerate(inputs.files):
        for block in file.reader.blocks(inputs.opener(number)(), whole=bool(cleaning)):
            for text, _ in file.reader.documents(block):
                characters.update(well_formed(cleaning(text)[0] or "" if cleaning else text))
    return CharTokenizer(sorted(characters))


def _write_tokenizer(out, tokenizer):
    """Writes tokenizer.bin, and meta.pkl for characters, as parts; returns what the manifest says of them."""
    write_tokenizer(out / "tokenizer.bin.part", tokenizer.tokens, tokenizer.eot, tokenizer.added)
    names = ["tokenizer.bin"]
    if isinstance(tokenizer, CharTokenizer):
        write_meta(out / "meta.pkl.part", tokenizer.characters)
        names.append("meta.pkl")
    parts = {name: out / f"{name}.part" for name in names}
    return {name: {"bytes": part.stat().st_size, "sha256": sha256_of(part)} for name, part in parts.items()}


callable_module(__name__, functools.partial(run_command, "prepare"))
