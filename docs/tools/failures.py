"""Trains small models badly, for docs/guides/wrong.md: every case beside one that goes well; writes failures.json.

    python docs/tools/failures.py            # five minutes on two cores
    python docs/tools/failures.py garbage    # these cases anew, beside the others that are in the file

All have two layers, 64 channels and the bytes of Python's documentation; what a case changes stands in CASES.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_mojo import native, pydocs
from llm_mojo.bench.machine import machine
from llm_mojo.formats import write_tokens
from llm_mojo.run_log import read_settings

RESULT = Path(__file__).with_suffix(".json")
STEPS = 600
POINTS = 100  # of a curve: means of as many equal stretches of it
END_OF_TEXT = 256
MODEL = ["--n-layer", "2", "--n-head", "4", "--n-embd", "64", "--vocab-size", "257", "-t", "64", "-b", "16"]
GOOD = {"-l": "3e-3", "-u": "50", "-k": "cosine", "-q": "0.1", "-c": "0.1", "--beta2": "0.95", "--grad-clip": "1"}
GOOD |= {"-x": str(STEPS), "-v": "50", "-m": "20", "-s": "0", "--shuffle": "2", "--tokenizer": ""}


class Case(NamedTuple):
    """One run: its data, and the flags that differ from the good one's."""

    data: str
    flags: dict[str, str]
    points: int = POINTS


CASES = {
    "good": Case("text", {}),
    "rate 3e-5": Case("text", {"-l": "3e-5"}),
    "rate 3e-2": Case("text", {"-l": "3e-2"}),
    "rate 1e-1": Case("text", {"-l": "1e-1"}),
    "rate 1": Case("text", {"-l": "1"}),
    "rate 1e-2, no warm-up": Case("text", {"-l": "1e-2", "-u": "0", "--grad-clip": "0"}),
    "rate 1e-2, warm-up": Case("text", {"-l": "1e-2", "-u": "100", "--grad-clip": "0"}),
    "shuffled": Case("shuffled", {}),
    "repeated": Case("repeated", {}),
    "in order": Case("in order", {"--shuffle": "0"}),
    "garbage": Case("garbage", {"--shuffle": "0"}, STEPS),
    "garbage, skipped": Case("garbage", {"--shuffle": "0", "-sl": "4"}, STEPS),
    "overfitting": Case("small", {"-x": "1500", "--n-embd": "128", "-u": "50", "-k": "constant", "-c": "0"}),
    "overfitting, dropout": Case(
        "small", {"-x": "1500", "--n-embd": "128", "-u": "50", "-k": "constant", "-c": "0", "--dropout": "0.3"}
    ),
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        chosen = {name: CASES[name] for name in sys.argv[1:]} or CASES
        before = json.loads(RESULT.read_text())["runs"] if sys.argv[1:] else {}
        runs = before | {name: train(Path(folder), case) for name, case in chosen.items()}
    result = {"machine": machine(), "model": " ".join(MODEL), "flags": GOOD, "runs": runs}
    RESULT.write_text(json.dumps(result) + "\n")


def make_data(folder):
    """Writes a training and a validation shard for each kind of data."""
    random = np.random.default_rng(0)
    documents = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in pydocs.documents()]
    tokens = np.concatenate([part for each in documents for part in ([END_OF_TEXT], each)]).astype(np.uint16)
    cut = len(tokens) * 9 // 10
    text, val = tokens[:cut], tokens[cut:]
    batch = 16 * 64
    garbage = text[: STEPS * batch + 1].copy()
    for step in (200, 201, 400, 401):
        garbage[step * batch : (step + 1) * batch] = random.integers(256, size=batch)
    order = text[: STEPS * batch + 1].copy()
    # The second half is of another kind: letters alone, in capitals.
    half = len(order) // 2
    order[half:] = capitals(order[half:])
    data = {
        "text": (text, val),
        "shuffled": (random.permutation(text), random.permutation(val)),
        "repeated": (np.tile(text[:2000], 100), val),
        "in order": (order, val),
        "garbage": (garbage, val),
        "small": (text[:30_000], val),
    }
    for name, shards in data.items():
        for part, shard in zip(("train", "val"), shards, strict=True):
            write_tokens(folder / f"{name}_{part}.bin", shard)


def capitals(tokens):
    """The same text in capital letters."""
    return np.where((tokens >= ord("a")) & (tokens <= ord("z")), tokens - 32, tokens)


def train(folder, case):
    """One run; returns its curves."""
    out = tempfile.mkdtemp(dir=folder)
    flags = [word for pair in (GOOD | case.flags).items() for word in pair]
    argv = [
        str(native.program("train_gpt2")),
        "-i",
        f"{folder}/{case.data}_train.bin",
        "-j",
        f"{folder}/{case.data}_val.bin",
    ]
    done = subprocess.run([*argv, *MODEL, *flags, "-o", out, "-n", "0"], capture_output=True, text=True)
    log = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    print(
        f"{case}: {steps[-1]['loss']} after {len(steps)} steps {done.stderr.strip()[:200]}", file=sys.stderr, flush=True
    )
    return {
        "flags": case.flags,
        "steps": read_settings(Path(out) / "run.toml")["max-steps"],
        "said": done.stderr.strip() if done.returncode else "",
        "loss": curve(steps, "loss", case.points),
        "norm": curve(steps, "norm", case.points),
        "val": [[line["step"], line["val_loss"]] for line in log if "val_loss" in line],
        "skipped": [line["step"] for line in steps if line.get("skipped")],
    }


def curve(steps, name, count):
    """[step, mean] of so many stretches; null values are left out."""
    size = max(len(steps) // count, 1)
    points = []
    for first in range(0, len(steps), size):
        part = steps[first : first + size]
        values = [line[name] for line in part if line[name] is not None]
        if values:
            points.append([part[-1]["step"], float(f"{np.mean(values):.4g}")])
    return points


if __name__ == "__main__":
    main()
