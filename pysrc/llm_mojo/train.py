"""The command `train`: text in, trained model out. It prepares the text, fits the sizes to it, finds the run that goes on or
a folder for a new one, and becomes the trainer.
"""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from llm_mojo import Error, fitting, native, runs, training
from llm_mojo.callables import callable_module
from llm_mojo.datasets import DATA, DATASETS, MANIFEST, VAL_FRACTION, Dataset, Last
from llm_mojo.download import read_json
from llm_mojo.prepare import find_dataset, name_of, prepare
from llm_mojo.prepared import SHARD, read_journal, read_manifest
from llm_mojo.tokenize import tokenizer_identity
from llm_mojo.trainer_flags import as_words, check_names, number, preset, split_words

USAGE = """\
usage: {program} train [TEXT ...] [flags]

Trains a small GPT on text of your own: files and folders of them, or a data set by its name; without any, on the data set that
--preset names, or else on Python's documentation. The same command again goes on with a run that was interrupted; for another text or other settings the run
gets a folder of its own, runs/NAME-2. Nothing is replaced without --replace.

      --out DIR          folder of the run (default: runs/NAME)
      --replace          replace the run that is there
      --tokenizer NAME   byte, char, gpt2, or a vocabulary of your own (default: byte for text of your own)
      --preset NAME      settings to start from (default: pydocs-small)
      --np N             processes that train together, started by mpiexec (default: 1)

and the flags of the trainer:
"""
DEFAULT_TEXT = "pydocs"
DEFAULT_PRESET = "pydocs-small"
LONGEST = 120  # bytes of a name
# What is not of a run but of a call, and what follows from the text.
OF_A_CALL = ("trace", "dry-run")
OF_THE_TEXT = ("train-data", "val-data")


def call(words: Sequence[str], program: str) -> NoReturn:
    """Runs `train` with the words behind its name; becomes the trainer in the end."""
    if "--help" in words or list(words)[-1:] == ["-h"]:
        print(USAGE.format(program=program), flush=True)
        native.become("train_gpt2", ["--help"], f"{program} train")
    rest, processes = split_processes(words)
    native.become("train_gpt2", trainer_words(rest, ["train", *words]), f"{program} train", processes)


def split_processes(words: Sequence[str]) -> tuple[list[str], int]:
    """Takes --np from the words; a part of each batch for each process is a setting of the run, whoever goes on with it."""
    texts, flags = split_words(words, own_switches=["replace"])
    text = flags.pop("np", "1")
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise Error(f"train: --np: expected a number of processes, got {text!r}")
    together = {"replicas": text} if int(text) > 1 else {}
    return [*texts, *as_words(together | flags)], int(text)


@dataclass(frozen=True)
class Task:
    """What there is to train on, and how: the text prepared, and the trainer's words but for the folder of the run."""

    dataset: Dataset
    sources: list[str]
    settings: dict[str, Any]
    """Of the preset and of the flags, fitted to the text."""
    shards: dict[str, dict[str, Any]]
    """What the manifest says of each shard."""
    words: list[str]

    def what(self) -> dict[str, Any]:
        """What is asked for: text, data and settings, as JSON has them. Equal for the same work only."""
        return {
            "text": [source if source in DATASETS else os.path.abspath(source) for source in self.sources],
            "shards": {name: shard["sha256"] for name, shard in self.shards.items()},
            "settings": {
                name: number(value) for name, value in self.settings.items() if name not in OF_A_CALL + OF_THE_TEXT
            },
        }


def task(command: str, texts: Sequence[str], flags: dict[str, Any], argv: Sequence[str]) -> Task:
    """Prepares the text and fits the sizes to it. Raises Error if the words of `command` say no training."""
    if chosen := flags.keys() & {"resume", "train-data", "val-data"}:
        raise Error(
            f"{command}: --{min(chosen)} is chosen here, by the text and the runs there are; for data that are prepared use"
            " the trainer itself (train_gpt2)"
        )
    flags = dict(flags)
    check_names(command, flags)
    tokenizer = flags.pop("tokenizer", None)
    flags = {"preset": flags.pop("preset", DEFAULT_PRESET)} | flags
    settings = fitting.DEFAULTS | preset(flags["preset"]) | flags
    fitting.check(command, settings)
    sources = expand(texts)
    if not sources:
        sources, of_preset = _text_of_preset(command, flags["preset"], settings)
        tokenizer = tokenizer or of_preset
    dataset, fraction = _dataset(sources, settings)
    dataset = dataset.for_tokenizer(tokenizer)
    tokenizer = tokenizer or dataset.tokenizer
    native.program("train_gpt2")
    data = data_folder(dataset, tokenizer)
    prepare(dataset, tokenizer, data, argv=argv)
    shards = _shards(data)
    changes = fitting.fit(settings, flags, *_tokens(shards))
    if text := fitting.describe(changes, settings, fraction):
        print(text)
    return Task(dataset, sources, settings | changes, shards, _trainer_words(data, dataset.stem, flags | changes))


def trainer_words(words: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Does what comes before training, and returns the trainer's words; `argv` was called for it.

    Raises Error if they say no training.
    """
    texts, flags = split_words(words, own_switches=["replace"])
    out, replaces = flags.pop("out", None), flags.pop("replace", False)
    work = task("train", texts, flags, argv)
    if "dry-run" in flags:
        return work.words
    what, name = work.what(), work.dataset.name
    folder, goes_on = runs.choose(name, out, what, replaces)
    if goes_on:
        print(f"going on with {folder}, saved after step {runs.Run(folder).newest():,}; --replace begins anew")
        also = {name: flags[name] for name in OF_A_CALL if name in flags}
        return ["-o", f"{folder}", "-y", "1", *as_words(also)]
    if not replaces and out is None and folder != runs.RUNS / name:
        print(
            f"{runs.RUNS / name} holds {_found(runs.Run(runs.RUNS / name), what)} and stays as it is; this one is {folder}"
        )
    runs.remember(folder, what)
    return [*work.words, "-o", f"{folder}", "-y", "0"]


def _found(run: runs.Run, what: dict[str, Any]) -> str:
    """What another run is that has the name of this one."""
    if run.is_finished():
        return "a finished run"
    others = run.other_settings(what)
    if not others:
        return "another run"
    return f"an unfinished run with other settings ({' '.join(as_words(others))}; with these it goes on)"


def expand(texts: Sequence[str]) -> list[str]:
    """Files, folders and names as they are given; what is none of these may be several, or patterns, in one word.

    So `make train TEXT="a.txt b/*.md"` can say more than one.
    """
    found = []
    for text in texts:
        if text in DATASETS or os.path.lexists(text):
            found.append(text)
            continue
        try:
            words = shlex.split(text)
        except ValueError:
            words = [text]
        each = [sorted(glob.glob(word)) or [word] for word in words]
        found += [word for words in each for word in words]
    return found


def _text_of_preset(command: str, name: str, settings: dict[str, Any]) -> tuple[list[str], str | None]:
    """The texts that a preset is for, by the command that makes its data, and their tokenizer if it says one.

    Raises Error if it has data that only their owner can name.
    """
    asked = Path(name).with_name(runs.ASKED_FOR)
    if Path(name).is_file() and asked.is_file():
        texts = (read_json(asked) or {}).get("text", [])
        raise Error(
            f"{command}: {name} is of a run on {shlex.join(texts)}; name the text (and --tokenizer, if it had one): {command}"
            f" {shlex.join(texts)} --preset {name}"
        )
    words = shlex.split(str(settings.get("made-by", "")))
    if "prepare" in words:
        texts, flags = split_words(words[words.index("prepare") + 1 :])
        return texts, flags.get("tokenizer")
    if "train-data" in settings:
        raise Error(
            f"{command}: --preset {name} has data that are prepared, and no text is named; name one, or train on those data"
            f" with the trainer itself: train_gpt2 --preset {name}"
        )
    return [DEFAULT_TEXT], None


def _dataset(sources: Sequence[str], settings: dict[str, Any]) -> tuple[Dataset, float]:
    """The text as a data set, and which share of it is for validation."""
    if len(sources) == 1 and sources[0] in DATASETS:
        return find_dataset(sources), VAL_FRACTION
    name = name_of(sources[0]).strip("_")
    # Cut within the limits of file systems, and never the name of a data set, which is another folder.
    name = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    if not re.match(r"\w", name) or name in DATASETS:
        name = f"my-{name}".rstrip("-")
    dataset = find_dataset(sources, name)
    fraction = VAL_FRACTION
    if dataset.split == Last():
        needed = int(settings["batch-size"]) * int(settings["seq-len"]) + 1
        fraction = fitting.val_fraction(sum(file.size or 0 for file in dataset.files()), needed)
        dataset = replace(dataset, split=Last(fraction))
    return dataset, fraction


def data_folder(dataset: Dataset, tokenizer: str) -> Path:
    """data/NAME, or the first of data/NAME-2 and so on that has no other text than this, and no tokens of another tokenizer."""
    identity = tokenizer_identity(tokenizer)
    sources = {os.path.abspath(file.name) for file in dataset.files()}
    for folder in runs.numbered(DATA / dataset.name):
        manifest, journal = read_manifest(folder / MANIFEST), read_journal(folder)
        if not manifest and not journal:
            return folder
        recipe = (manifest or journal or {}).get("recipe", {})
        if recipe.get("tokenizer", identity) != identity:
            continue
        if dataset.name in DATASETS and recipe.get("dataset") == dataset.name:
            return folder
        names = [entry["name"] for entry in manifest["inputs"]] if manifest else (journal or {})["sources"]
        if {*map(os.path.abspath, names)} == sources:
            return folder
    raise AssertionError


def _shards(data: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each shard."""
    manifest = read_manifest(data / MANIFEST)
    assert manifest
    return {name: each for name, each in manifest["outputs"].items() if "tokens" in each}


def _tokens(shards):
    """How many tokens there are to train and to validate on."""
    counts = {"train": 0, "val": 0}
    for name, each in shards.items():
        match = re.search(f"{SHARD}$", name)
        assert match
        counts[match[1]] += each["tokens"]
    return counts["train"], counts["val"]


def _trainer_words(data: Path, stem: str, flags: dict[str, Any]) -> list[str]:
    patterns = {"train-data": f"{data}/{stem}_train*.bin", "val-data": f"{data}/{stem}_val*.bin"}
    return as_words(patterns | {"tokenizer": f"{data}/tokenizer.bin"} | flags)


callable_module(__name__, lambda *texts, **settings: training.train(*texts, **settings))
