"""The trainer's flags, as far as the command `train` has to know them: `train_gpt2 --help` is what counts.

tests/test_train.py compares these names with that text.
"""

import difflib
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_mojo import Error, native
from llm_mojo.run_log import read_settings

LETTERS = {
    **{"i": "train-data", "j": "val-data", "o": "out", "n": "checkpoint-every", "nk": "keep", "y": "resume"},
    **{"e": "init", "b": "batch-size", "t": "seq-len", "d": "total-batch-size", "x": "max-steps", "a": "overfit"},
    **{"l": "learning-rate", "k": "schedule", "u": "warmup", "q": "final-lr-fraction", "c": "weight-decay"},
    **{"sl": "skip-loss-z", "sg": "skip-norm-z", "v": "val-every", "m": "val-batches", "h": "hellaswag"},
    **{"s": "sample-every", "g": "gen-len", "z": "zero-stage"},
}
SWITCHES = ["decay-all", "dry-run"]


def split_words(words: Sequence[str], own: Sequence[str] = (), own_switches: Sequence[str] = ()):
    """Takes a command line apart: (texts, flags), flags by their long names in the order given, the last of each counting.

    A word behind a flag is its value; what else has no dash is a text. `own`, `own_switches`: flags beside the trainer's.
    Switches have the value True. Raises Error if a value is missing.
    """
    texts: list[str] = []
    flags: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            texts.append(word)
            continue
        value: str | bool
        name, equals, value = word.lstrip("-").partition("=")
        name = name if word.startswith("--") else LETTERS.get(name, name)
        if name in (*SWITCHES, *own_switches):
            if equals:
                raise Error(f"train: --{name}: expected no value, got {value!r}")
            value = True
        elif not equals:
            if not left:
                raise Error(f"train: {word}: expected a value, got none")
            value = left.pop(0)
        flags.pop(name, None)
        flags[name] = value
    return texts, flags


def check_names(command: str, flags: dict[str, Any]) -> None:
    """Raises Error if the trainer does not have one of the flags, before anything is done for it."""
    text = subprocess.run([native.program("train_gpt2"), "--help"], capture_output=True, text=True).stdout
    known = set(re.findall(r"^ .*?--([a-z0-9-]+)", text, re.M))
    for name in flags:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{near[0]}?" if near else f"{command} --help lists the flags"
            raise Error(f"{command}: unknown flag --{name}; {hint}")


def as_words(flags: dict[str, Any]) -> list[str]:
    """Flags as a program takes them."""
    words = []
    for name, value in flags.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def number(value: Any) -> Any:
    """The number that a text is, for comparing; other values as they are."""
    try:
        return float(value) if not isinstance(value, bool) else value
    except (TypeError, ValueError):
        return value


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, which is looked up where the trainer does. Raises Error if there is none."""
    places = [Path(name), Path("presets", f"{name}.toml"), native.presets() / f"{name}.toml"]
    for path in places:
        if path.is_file():
            return read_settings(path)
    raise Error(f"train: no preset {name}: neither the file {name} nor {places[1]} is there; {_known()}")


def _known():
    names = sorted(path.stem for path in native.presets().glob("*.toml"))
    return f"the presets are {json.dumps(names)[1:-1]}"
