"""Loss over seconds of training: nanoGPT's character model by our optimizers and by nanoGPT's recipe on PyTorch, in turn.

Seconds are those of training steps; validations, on the whole validation set, are not among them.
"""

import importlib.util
import math
import os
import shutil
import subprocess
import sys
from statistics import median

from llm_mojo import Error
from llm_mojo.bench.contestants import KEEP_MEMORY, Contestant
from llm_mojo.bench.workshop import ROOT, Command, Missing
from llm_mojo.formats import read_tokenizer
from llm_mojo.run_log import LOG, Follower, read_settings

TARGET = 1.887
"""What nanoGPT's own recipe reaches after 2,000 steps of AdamW at best, in nats a character."""
RECIPE = "shakespeare-char"
WARM_UP = 3
"""Steps of each run whose times are replaced by the median: allocations, and for PyTorch compilation."""


def time_loss(bench):
    """Trains the model with each contestant in every round, each time with another seed."""
    bench.progress.begin("loss", "loss over seconds, nanoGPT's character model")
    taking_part = []
    try:
        data = characters(bench.workshop)
        for contestant in CONTESTANTS:
            try:
                taking_part.append((contestant, contestant.command(bench.workshop, data)))
            except Missing as reason:
                bench.leave_out("loss", contestant.label, reason)
    except Missing as reason:
        bench.leave_out("loss", "nanoGPT's character model", reason)
    for number in range(bench.rounds):
        bench.progress.round(number, bench.rounds)
        bench.measure_limits()
        for contestant, command in list(taking_part):
            bench.wait_for_quiet()
            try:
                curve = _train(bench, command, seed=1337 + number)
            except Missing as reason:
                bench.leave_out("loss", contestant.label, reason)
                taking_part.remove((contestant, command))
                continue
            entry = {"contestant": contestant.name, "label": contestant.label, "precision": contestant.precision}
            more = {"flags": contestant.flags, "ours": contestant.ours, "seed": 1337 + number, "curve": curve}
            bench.results["loss"].append(entry | more)
            bench.save()
            at = seconds_to(curve, TARGET)
            reached = f"{TARGET} after {at:.1f} s" if math.isfinite(at) else f"{TARGET} not reached"
            print(
                f"  {contestant.label:34} {curve[-1]['val_loss']:.4f} after {curve[-1]['seconds']:6.1f} s; {reached}",
                flush=True,
            )


def characters(workshop):
    """Tiny shakespeare in characters, as nanoGPT splits it; prepared on first use."""
    folder = workshop.folder / "shakespeare_char"
    command = [sys.executable, "-m", "llm_mojo", "prepare", "tinyshakespeare", "--tokenizer", "char", "--out", folder]
    result = subprocess.run([str(word) for word in command], cwd=workshop.folder, capture_output=True, text=True)
    if result.returncode:
        raise Missing((result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200])
    return folder


def _ours(preset, *flags):
    def command(workshop, data):
        words = [workshop.mojo("train_gpt2.mojo"), "--preset", ROOT / "presets" / f"{preset}.toml", *flags]
        words += ["-i", data / "*_train.bin", "-j", data / "*_val.bin", "-v", 50, "-m", -1, "-s", 0, "-n", 0, "-y", 0]
        return Command([*words, "-o"])

    return command


def _torch(compiled):
    def command(workshop, data):
        if not importlib.util.find_spec("torch"):
            raise Missing("PyTorch is not installed: pip install -e '.[bench]'")
        words = [sys.executable, "-m", "llm_mojo.bench.torch_loss", "--data", data, *["--compile"] * compiled, "--out"]
        return Command(words, environment={"TORCHINDUCTOR_CACHE_DIR": str(workshop.compiled)} | KEEP_MEMORY)

    return command


CONTESTANTS = [
    Contestant("mojo-muon", "Muon", _ours(f"{RECIPE}-muon"), flags="--optimizer muon", ours=True),
    Contestant(
        "mojo-muon-bf16",
        "Muon, bf16",
        _ours(f"{RECIPE}-muon", "--dtype", "bf16"),
        "bf16",
        "--optimizer muon --dtype bf16",
        True,
    ),
    Contestant("mojo", "nanoGPT's recipe (AdamW)", _ours(RECIPE), ours=True),
    Contestant("torch", "PyTorch, nanoGPT's recipe", _torch(False)),
    Contestant("torch-compile", "PyTorch, compiled, nanoGPT's recipe", _torch(True), flags="torch.compile"),
]


def _train(bench, command, seed):
    """Runs a contestant to its end: [{"step", "seconds", "val_loss"} ...], from the first step on."""
    folder = bench.workshop.folder / "loss"
    shutil.rmtree(folder, ignore_errors=True)
    argv = [*bench.prefix, *(str(word) for word in command.argv), f"{folder}", "--seed", f"{seed}"]
    result = subprocess.run(argv, env=os.environ | command.environment, capture_output=True, text=True)
    if result.returncode:
        raise Missing((result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200])
    return curve_of(Follower(folder / LOG).read())


def curve_of(records):
    """Validation losses of a log over the seconds of the steps before them."""
    times = [record["ms"] for record in records if "ms" in record]
    if not times:
        raise Error("bench: a run has left no times of steps")
    usual = median(times)
    seconds, curve, done = 0.0, [], 0
    for record in records:
        if "ms" in record:
            seconds += (usual if done < WARM_UP else record["ms"]) / 1000
            done += 1
        elif record.get("val_loss") is not None:
            curve.append({"step": record["step"], "seconds": round(seconds, 3), "val_loss": record["val_loss"]})
    return curve


def seconds_to(curve, loss):
    """When a curve first reaches a loss, on the line between two validations; infinite if it does not."""
    before = None
    for point in curve:
        if point["val_loss"] <= loss:
            if before is None:
                return point["seconds"]
            share = (before["val_loss"] - loss) / (before["val_loss"] - point["val_loss"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return math.inf


def recipe():
    """nanoGPT's settings, as our preset has them: for PyTorch the same numbers from the same file."""
    return read_settings(ROOT / "presets" / f"{RECIPE}.toml")


def vocabulary_size(data):
    """Characters of the prepared data."""
    return len(read_tokenizer(data / "tokenizer.bin")[0])
