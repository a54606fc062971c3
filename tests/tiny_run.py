"""Runs of the trainer that take milliseconds: a model of a few thousand parameters on shards of random tokens."""

import json
import os
import shutil

import numpy as np

from llm_mojo import formats
from mojo_programs import ENVIRONMENT

V = 60
STEPS = 24
SIZES = ["--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--vocab-size", V, "-b", 2, "-t", 8]
# Three epochs of shuffled shards, all that has a state of its own switched on.
FLAGS = [*SIZES, "-x", STEPS, "-d", 32, "-n", 3, "-v", 4, "-m", 2, "-s", 5, "-g", 6, "-l", 3e-3, "-k", "cosine"]
FLAGS += ["-u", 3, "-q", 0.1, "-c", 0.1, "--grad-clip", 1, "-sl", 4, "-sg", 4]
# In the log, and another each time.
TIMES = {"ms", "tokens_per_second", "waited_ms"}


def make_data(folder):
    """Writes two training shards, one validation shard and a tokenizer of V tokens."""
    random = np.random.default_rng(7)
    for name, size in {"train_0": 200, "train_1": 155, "val_0": 100}.items():
        formats.write_tokens(folder / f"{name}.bin", random.zipf(1.5, size=size) % V)
    formats.write_tokenizer(folder / "tokenizer.bin", [bytes([40 + i]) for i in range(V)], 0)


def flags(data, out, *more):
    """The flags of a run; without `out` it keeps nothing."""
    place = [] if out is None else ["-o", out]
    return ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *FLAGS, *place, *more]


def settings(data, out, *more):
    """The flags of a small run with nothing switched on."""
    place = [] if out is None else ["-o", out]
    return ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *SIZES, "-x", 4, "-s", 0, *place, *more]


def log(out):
    """The log without the times."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def checkpoints(out):
    """The steps of the complete checkpoints."""
    return sorted(int(path.name.removeprefix("DONE_")) for path in out.glob("DONE_*") if path.suffix != ".tmp")


def final(out, step=STEPS):
    """All that a run has come to, to be compared."""
    names = [
        f"model_{step:08}.bin",
        f"state_{step:08}_00000.bin",
        f"extra_{step:08}.json",
        "best.bin",
        "main.log",
    ]
    # A run without samples has no file of them.
    names += ["samples.jsonl"] if (out / "samples.jsonl").exists() else []
    return {name: (out / name).read_bytes() for name in names} | {"log": log(out)}


def copy_back_to(out, step, to):
    """Copies a run as if it had been killed some time after a checkpoint: the log is longer than the rest."""
    shutil.copytree(out, to)
    for later in checkpoints(to):
        if later > step:
            for path in to.glob(f"*_{later:08}*"):
                path.unlink()
    return to


def environment(**more):
    return ENVIRONMENT | {name: str(value) for name, value in more.items()} | {"LC_ALL": os.environ.get("LC_ALL", "C")}
