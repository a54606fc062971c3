"""Times a training step as it was at commits of this repository's history, and writes story.json beside this file.

    python bench/story/measure.py --build    # the programs alone, into build/story: some 40 s each
    python bench/story/measure.py            # builds what is missing, then times all in turn: a quarter of an hour
    python bench/story/measure.py --only 124m --append     # more rounds of a series, beside those that are there

Every program gets the same random checkpoint and the same batch. Rounds go through the programs forwards and backwards in turn. Of
each the fastest step is what counts, the least disturbed one: on a virtual machine the same program takes half as long again
in another minute. What a commit cannot build with the compiler that is here is noted with the reason.
"""

import argparse
import datetime
import functools
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_mojo.bench.machine import machine, versions
from llm_mojo.formats import ModelConfig, parameter_shapes, write_checkpoint, write_tokens

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "story"
RESULT = Path(__file__).with_name("story.json")
STEP = re.compile(r"step +(\d+)[/ :].*?([\d.]+) ms")

# For commits from before there was a trainer.
EARLY = """
from std.sys import argv
from std.time import perf_counter_ns

from llm.checkpoint import read_config, read_parameters
from llm.cpu.adamw import AdamW
from llm.cpu.parallel import available_threads
from llm.gpt2 import GPT2
from llm.memory import Arena, aligned_bytes


def main() raises:
    var B, T, steps = Int(argv()[2]), Int(argv()[3]), Int(argv()[4])
    var config = read_config(String(argv()[1]))
    var model = GPT2[](config.copy(), available_threads(), B, T)
    read_parameters(String(argv()[1]), model.params)
    var arena = Arena(2 * aligned_bytes[DType.int32](B * T))
    var inputs = arena.carve[DType.int32](B * T)
    var targets = arena.carve[DType.int32](B * T)
    for i in range(B * T):
        inputs[i] = Int32(i * 97 % config.vocab_size)
        targets[i] = Int32((i + 1) * 97 % config.vocab_size)
    var settings = AdamW(learning_rate=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0)
    for step in range(1, steps + 1):
        var start = perf_counter_ns()
        model.forward(inputs, B, T)
        var loss = model.backward(targets)
        _ = model.update(settings, step)
        print(t"step {step} | loss {loss} | {Float64(perf_counter_ns() - start) / 1e6} ms", flush=True)
    _ = arena^
"""


class Point(NamedTuple):
    """A program of one commit, or of the one before it (`before`)."""

    commit: str
    idea: str
    program: str = "train_gpt2"
    before: bool = False

    @property
    def revision(self):
        """What git calls it."""
        return self.commit + ("~" if self.before else "")


POINTS = [
    Point("8b8ff40", "plain loops, one thread", "train_gpt2_basic"),
    Point("1c524ae", "two threads; the product still three loops", "early", before=True),
    Point("1c524ae", "the product in five loops over packed panels", "early"),
    Point("eb8c588", "C and the next panel fetched ahead"),
    Point("cf2da91", "even prefetches; GELU in the epilogues"),
    Point("c019a79", "packed panels fetched ahead, smaller blocks of A"),
    Point("dc87dc2", "loops and micro-kernel compiled once per type"),
    Point("b4469a8", "one plain loop over K: sums stay in registers"),
    Point("b09f5d2", "the first tile packs B under its multiply-adds"),
    Point("5ff1891", "attention with queries in the lanes"),
    Point("b8aaadc", "bf16 widened while it is packed"),
    Point("8e600fc", "attention on AVX2: sums stay in registers"),
    Point("e25a676", "bf16 rounded by its bits"),
    Point("HEAD", "when this was measured"),
]


class Series(NamedTuple):
    """One kind of step: model, batch, flags, and who is timed on it."""

    model: str
    B: int
    T: int
    steps: int
    rounds: int
    who: list[str]
    flags: tuple[str, ...] = ()


ALL = [f"{p.revision} {p.program}" for p in POINTS]
SERIES = {
    "124m": Series("124m", 4, 64, 6, 2, [name for name in ALL if "~ early" not in name]),
    "124m-b1": Series("124m", 1, 64, 2, 1, [ALL[0], ALL[1], ALL[2], "HEAD train_gpt2"]),
    "124m-t1024": Series(
        "124m",
        1,
        1024,
        3,
        1,
        [f"{c} train_gpt2" for c in ("cf2da91", "b09f5d2", "5ff1891", "b8aaadc", "8e600fc", "HEAD")],
    ),
    "124m-bf16": Series(
        "124m", 4, 64, 4, 2, [f"{c} train_gpt2" for c in ("5ff1891", "b8aaadc", "e25a676", "HEAD")], ("--dtype", "bf16")
    ),
    "characters": Series("characters", 12, 64, 80, 2, [name for name in ALL if "~ early" not in name]),
}
MODELS = {"124m": ModelConfig(1024, 50257, 12, 12, 768), "characters": ModelConfig(64, 65, 4, 4, 128)}
# Who takes ten seconds a step and more: few steps once.
SLOW = {f"{POINTS[0].revision} {POINTS[0].program}": 3, f"{POINTS[1].revision} {POINTS[1].program}": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", action="store_true", help="build the programs and stop")
    parser.add_argument("--only", action="append", choices=SERIES, help="this series, into the file that is there")
    parser.add_argument("--append", action="store_true", help="keep the timings that are there beside the new ones")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    failures = {name: why for p in POINTS if (why := build(p)) for name in [f"{p.revision} {p.program}"]}
    ladder = FOLDER / "ladder"
    if why := compile_at(ROOT, "bench/story/ladder.mojo", ladder):
        raise SystemExit(f"bench/story/ladder.mojo does not build: {why}")
    if args.build:
        return
    found = json.loads(RESULT.read_text()) if args.only and RESULT.exists() else {}
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        files = inputs(Path(scratch))
        series = {
            name: time_series(one, files, failures, found["series"][name]["ms"] if args.append else {})
            for name, one in SERIES.items()
            if not args.only or name in args.only
        }
    result = {
        "machine": machine() | {"mojo": versions()["mojo"]},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "points": [
            {"name": f"{p.revision} {p.program}", "idea": p.idea, "commit": git("rev-parse", p.revision).strip()}
            | {"subject": git("log", "-1", "--format=%s", p.revision).strip()}
            for p in POINTS
        ],
        "not_built": failures,
        "series": found.get("series", {}) | series,
        "ladder": found.get("ladder") or json.loads(subprocess.check_output([ladder], text=True)),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


@functools.cache
def git(*words):
    """What git answers."""
    return subprocess.check_output(["git", "-C", ROOT, *words], text=True)


def program_of(revision, program):
    """Where a program of a revision is built."""
    name = git("rev-parse", "--short", "HEAD").strip() if revision == "HEAD" else revision
    return FOLDER / f"{name}-{program}"


def build(point):
    """Builds a point's program unless it is there; returns why it cannot be, or None."""
    program = program_of(point.revision, point.program)
    if program.exists():
        return None
    with tempfile.TemporaryDirectory(dir=FOLDER) as tree:
        archive = subprocess.run(["git", "-C", ROOT, "archive", point.revision], capture_output=True, check=True)
        (Path(tree) / "tree.tar").write_bytes(archive.stdout)
        with tarfile.open(Path(tree) / "tree.tar") as file:
            file.extractall(tree, filter="data")
        if point.program == "early":
            (Path(tree) / "early.mojo").write_text(EARLY)
        return compile_at(Path(tree), f"{point.program}.mojo", program)


def compile_at(tree, source, program):
    """Compiles a source of a tree with the compiler that is here; returns its first error, or None."""
    print(f"building {program.name} ...", flush=True)
    argv = ["mojo", "build", "-I", str(tree), str(tree / source), "-o", str(program)]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True)
    errors = [line.split("error: ")[1] for line in done.stderr.splitlines() if "error: " in line]
    return None if done.returncode == 0 else (errors or ["no message"])[0]


def inputs(folder):
    """Random checkpoints, and a shard of one batch for each series."""
    random = np.random.default_rng(0)
    files = {}
    for name, config in MODELS.items():
        files[name] = folder / f"{name}.bin"
        tensors = {
            tensor: np.ones(shape, "<f4")
            if tensor.startswith("ln") and tensor.endswith("w")
            else 0.02 * random.standard_normal(shape, dtype=np.float32)
            for tensor, shape in parameter_shapes(config).items()
        }
        write_checkpoint(files[name], config, tensors)
    for name, one in SERIES.items():
        files[f"{name} tokens"] = folder / f"{name}-tokens.bin"
        tokens = random.integers(MODELS[one.model].vocab_size, size=one.B * one.T + 1)
        write_tokens(files[f"{name} tokens"], tokens)
    return files


def time_series(series, files, failures, before):
    """The milliseconds of every step but the first, of every program, behind those from `before`."""
    name = next(key for key, one in SERIES.items() if one is series)
    times = {who: list(before.get(who, [])) for who in series.who if who not in failures}
    for turn in range(series.rounds):
        for who, found in reversed(times.items()) if turn % 2 else times.items():
            revision, program = who.split()
            slow = SLOW.get(who) if series.model == "124m" else None
            if slow and found:
                continue
            steps = slow or series.steps
            argv = [str(program_of(revision, program)), str(files[series.model])]
            if program == "early":
                argv += [str(series.B), str(series.T), str(steps)]
            else:
                tokens = str(files[f"{name} tokens"])
                argv[1:1] = ["-e"]
                argv += ["-i", tokens, "-j", tokens, "-b", str(series.B), "-t", str(series.T), "-x", str(steps)]
                argv += ["-v", "0", "-s", "0", *series.flags]
            done = subprocess.run(argv, cwd=FOLDER, capture_output=True, text=True)
            steps_of = {int(step): float(ms) for step, ms in STEP.findall(done.stdout)}
            if done.returncode or not steps_of:
                raise SystemExit(f"{who}, {name}: {done.stdout[-500:]}{done.stderr[-500:]}")
            # The first step touches memory for the first time.
            found += [ms for step, ms in steps_of.items() if step > 1 or steps == 1]
            print(f"{name}: {who}: {min(found):.1f} ms", flush=True)
    return {
        "model": vars(MODELS[series.model]),
        "B": series.B,
        "T": series.T,
        "flags": list(series.flags),
        "ms": times,
    }


if __name__ == "__main__":
    main()
