"""Whose a prepared folder is. Manifests and journals come from files, so what they name is believed only as far as it is ours:
plain names inside the folder, of the kinds that `prepare` and `tokenize_text` write.

What another job has made there stays, unless --force says otherwise.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from llm_mojo import Error
from llm_mojo.datasets import DATASETS
from llm_mojo.files import is_plain_name
from llm_mojo.tokenize import CharTokenizer, read_tokenizer_file

JOURNAL = "journal.json"
SEEN = "seen.sqlite"
SHARD = r"_(train|val)(_\d{6,})?\.bin"
OUTPUT = re.compile(rf".+{SHARD}|tokenizer\.bin|meta\.pkl", re.DOTALL)
LARGEST = 1 << 30  # bytes, of a manifest


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Returns a manifest, or None where there is none; raises Error if the file is not a manifest of ours."""
    manifest = _read(path, "the manifest of prepared data")
    if manifest is None:
        return None
    ours = (
        manifest.get("manifest") == 1
        and isinstance(manifest.get("recipe", {}), dict)
        and isinstance(manifest.get("outputs"), dict)
        and all(_is_output(*item) for item in manifest["outputs"].items())
        and isinstance(manifest.get("inputs"), list)
        and all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in manifest["inputs"])
    )
    if not ours:
        raise _foreign(path, "the manifest of prepared data")
    return manifest


def _is_output(name, about):
    return (
        is_plain_name(name)
        and OUTPUT.fullmatch(name)
        and isinstance(about, dict)
        and type(about.get("bytes")) is int
        and isinstance(about.get("sha256"), str)
        and type(about.get("tokens", 0)) is int
    )


def read_journal(out: Path) -> dict[str, Any] | None:
    """Returns the journal of an unfinished job, or None where there is none; raises Error if it is something else."""
    journal = _read(out / JOURNAL, "the journal of an unfinished prepare")
    if journal is None:
        return None
    parts = [("recipe", dict), ("inputs", list), ("sources", list), ("state", dict), ("stem", str)]
    if journal.get("journal") != 1 or not all(isinstance(journal.get(name), kind) for name, kind in parts):
        raise _foreign(out / JOURNAL, "the journal of an unfinished prepare")
    return journal


def _read(path, what):
    try:
        with open(path, "rb") as file:
            # By its size: to read "at most" so much would reserve that much.
            value = json.loads(file.read()) if os.fstat(file.fileno()).st_size <= LARGEST else None
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _foreign(path, what)
    return value


def _foreign(path, what):
    return Error(
        f"{path}: expected {what}, found something that is not ours or is damaged; nothing was changed:"
        " move it away, or choose another folder with --out"
    )


def check_job(out, dataset, sources, manifest, journal, force):
    """Raises Error if what is in the folder, finished or not, was made from other sources. `sources`: names of files."""
    if force:
        return
    for found, names in (
        (manifest, [entry["name"] for entry in manifest["inputs"]] if manifest else []),
        (journal, journal["sources"]) if journal and _has_progress(journal) else (None, []),
    ):
        same_set = found and dataset in DATASETS and found.get("recipe", {}).get("dataset") == dataset
        if found and not same_set and not {*map(os.path.abspath, names)} & {*map(os.path.abspath, sources)}:
            raise Error(
                f"prepare: {out} holds data made from {names[0] if names else 'something else'};"
                " choose another folder (--out, or --name), or replace them with --force"
            )


def _has_progress(journal):
    counts = journal["state"].get("tokens")
    return isinstance(counts, dict) and any(counts.values())


def check_names(out, stem, manifest, force):
    """Raises Error if a file has the name of a shard of ours but is in no manifest."""
    listed = manifest["outputs"] if manifest else {}
    pattern = re.compile(re.escape(stem) + SHARD)
    others = [name for name in os.listdir(out) if pattern.fullmatch(name) and name not in listed]
    if not others or force:
        return
    raise Error(
        f"prepare: {out / min(others)} is there, and no manifest says that it is of this data; move it away, choose another"
        " folder (--out) or name (--name), or replace it with --force"
    )


def check_tokenizer(out, tokenizer, manifest, force):
    """Raises Error if the folder has a tokenizer.bin, or a meta.pkl that would be replaced, of another vocabulary."""
    listed = manifest["outputs"] if manifest else {}
    names = ["tokenizer.bin", *(["meta.pkl"] if isinstance(tokenizer, CharTokenizer) else [])]
    for path in (out / name for name in names if name not in listed):
        if not force and os.path.lexists(path) and read_tokenizer_file(path).tokens != tokenizer.tokens:
            raise Error(
                f"prepare: {path} is there, of another vocabulary, and no manifest says that it is of this data; move it"
                " away, choose another folder (--out), or replace it with --force"
            )


def check_recipe(out, manifest, recipe, tokenizer, force):
    """Raises Error if the folder holds the same text in another vocabulary: runs may depend on it."""
    made = (manifest or {}).get("recipe", {}).get("tokenizer")
    if made is not None and made != recipe["tokenizer"] and not force:
        name = manifest.get("tokenizer", {}).get("name", "another one")
        raise Error(
            f"prepare: {out} holds this text with the tokenizer {name}, not {tokenizer}; choose another folder (--out), or"
            " replace it with --force"
        )


def check_parts(out, stem, force):
    """Raises Error if a file has the name of one that a job makes on its way, but there is no journal of a job."""
    others = _unfinished(out, stem)
    if others and not force:
        raise Error(
            f"prepare: {min(others)} is there, but no journal of an unfinished prepare; move it away, or choose another"
            " folder (--out), or replace it with --force"
        )


def start_over(out, journal):
    """Removes what an unfinished job has left; its journal goes last. `journal` is what read_journal has found."""
    if journal is None:
        return
    for path in _unfinished(out, journal["stem"]):
        path.unlink(missing_ok=True)
    (out / JOURNAL).unlink(missing_ok=True)


def _unfinished(out, stem):
    part = re.compile(rf"({re.escape(stem)}(_all\.bin|{SHARD})|tokenizer\.bin|meta\.pkl)\.part")
    seen = (SEEN, f"{SEEN}-wal", f"{SEEN}-shm", f"{SEEN}-journal")
    return [out / name for name in os.listdir(out) if part.fullmatch(name) or name in seen]
