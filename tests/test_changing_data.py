"""Data that changes under a program: cut off, grown, replaced, written to, deleted. A message, and nothing is lost."""

import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from llm_mojo import formats, reference
from mojo_programs import ENVIRONMENT, TIMEOUT, wait_for
from tiny_run import SIZES, V, checkpoints

B, T = 2, 8
RUN = [*SIZES, "-d", 4 * B * T, "-s", 0, "-l", 3e-3, "--grad-clip", 1]
"""Four batches a step: it ends in another shard than it began in, or in another epoch."""


def cut(path):
    os.truncate(path, path.stat().st_size - 2)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"\1\0")


def replace(path):
    shutil.copy2(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def overwrite(path):
    """Writes other tokens into the same file, as many as before."""
    bytes = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(bytes[:1024] + bytes[:1023:-1])


def delete(path):
    path.unlink()


WHAT_IS_SAID = {
    cut: "it has become shorter",
    grow: "it has become longer",
    replace: "it has been replaced by another file",
    overwrite: "it has been written to",
    delete: "No such file or directory",
}
every_change = pytest.mark.parametrize("change", WHAT_IS_SAID, ids=lambda change: change.__name__)


def write_shards(folder):
    random = np.random.default_rng(7)
    for name, size in {"train_0": 120, "train_1": 75, "val_0": 100}.items():
        formats.write_tokens(folder / f"{name}.bin", random.integers(V, size=size))


# ----- the loader


class Loader:
    """A loader of ours in a process of its own."""

    def __init__(self, program, pattern, order):
        command = [str(word) for word in [program.path, pattern, B, T, order]]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "env": ENVIRONMENT}
        self.process = subprocess.Popen(command, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(TIMEOUT) == 0


@pytest.fixture
def loader(mojo_program, tmp_path):
    write_shards(tmp_path)
    started = []

    def start(pattern, order):
        started.append(Loader(mojo_program("tests/programs/batches.mojo"), tmp_path / pattern, order))
        return started[-1]

    yield start
    for each in started:
        each.close()


@every_change
@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_change_is_noticed(order, change, loader, tmp_path):
    """At the latest when the shard is opened again: windows and two short shards open one every few batches."""
    data = loader("train_*.bin", order)
    for _ in range(5):
        assert not data("batch").startswith("failed")
    for path in tmp_path.glob("train_*.bin"):
        change(path)
    answers = [data("batch") for _ in range(100)]
    failed = next(answer for answer in answers if answer.startswith("failed"))
    assert "data: " in failed and "train_" in failed and WHAT_IS_SAID[change] in failed
    # It does not get better by itself.
    assert data("batch").startswith("failed") or change in (replace, delete)


@pytest.mark.parametrize("change", [cut, grow, overwrite])
def test_an_open_file_is_watched(change, loader, tmp_path):
    """Not only when it is opened: the very next batch fails."""
    data = loader("train_0.bin", 0)
    data("batch")
    change(tmp_path / "train_0.bin")
    assert WHAT_IS_SAID[change] in data("batch")


@pytest.mark.parametrize("change", [replace, delete])
def test_an_open_file_outlives_its_name(change, loader, tmp_path):
    """The rest of an epoch comes from the file that was opened; the next one needs it again."""
    tokens = formats.read_tokens(tmp_path / "train_0.bin")
    data = loader("train_0.bin", 0)
    data("batch")
    change(tmp_path / "train_0.bin")
    batches = (len(tokens) - 1) // (B * T)
    for i in range(1, batches):
        start = i * B * T
        expected = np.stack([tokens[start : start + B * T], tokens[start + 1 : start + B * T + 1]], 1).flatten()
        assert np.array_equal(np.array(data("batch").split(), int), expected)
    assert WHAT_IS_SAID[change] in data("batch")


@pytest.mark.parametrize("order", [0, 1, 2])
def test_rewinding(order, loader):
    """From anywhere to the mark: within a shard, over its end, over the end of the data several times."""
    data, undisturbed = loader("train_*.bin", order), loader("train_*.bin", order)
    for further in [1, 2, 5, 9, 10, 11, 30, 3]:
        data("mark")
        first = [data("batch") for _ in range(further)]
        data("rewind")
        assert [data("batch") for _ in range(further)] == first == [undisturbed("batch") for _ in range(further)]


# ----- the trainer


def start(program, *arguments, at):
    """Starts a program and stops it when a line has begun as this pattern; it goes on when it gets SIGCONT."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "env": ENVIRONMENT}
    process = subprocess.Popen([str(word) for word in [program.path, *arguments]], **pipes)
    for line in process.stdout:
        if re.match(at, line):
            break
    process.send_signal(signal.SIGSTOP)
    return process


def failure_of(process):
    """Lets a stopped program go on and returns what it fails with."""
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, errors
    return errors


@pytest.fixture(scope="module")
def trainer(mojo_program):
    return mojo_program("train_gpt2.mojo")


@every_change
@pytest.mark.parametrize("order", [1, 2])
def test_training_goes_on_from_the_last_whole_step(order, change, trainer, tmp_path):
    """And the bits of the run are those of one that nothing happened to."""
    write_shards(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "kept")
    flags = ["-i", tmp_path / "train_*.bin", "-j", tmp_path / "val_*.bin", *RUN, "--shuffle", order, "-v", 0]
    process = start(trainer, *flags, "-o", tmp_path / "run", "-x", 1_000_000_000, at=r"step +\d+/")
    for path in tmp_path.glob("train_*.bin"):
        change(path)
    errors = failure_of(process)
    [step] = checkpoints(tmp_path / "run")
    assert "data: " in errors and WHAT_IS_SAID[change] in errors
    assert f"model_{step:08}.bin is the last checkpoint; go on from there with: {trainer.path} -o " in errors

    for path in (tmp_path / "kept").glob("*.bin"):
        shutil.copy(path, tmp_path)
    steps = step + 11
    trainer.output("-o", tmp_path / "run", "-y", 1, "-x", steps)
    trainer.output(*flags, "-o", tmp_path / "whole", "-x", steps)
    for name in [f"model_{steps:08}.bin", f"state_{steps:08}_00000.bin"]:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_validation_data_that_is_gone(trainer, tmp_path):
    write_shards(tmp_path)
    flags = ["-i", tmp_path / "train_*.bin", "-j", tmp_path / "val_*.bin", *RUN, "-v", 1]
    process = start(trainer, *flags, "-o", tmp_path / "run", "-x", 1_000_000_000, at=r"step +\d+/")
    delete(tmp_path / "val_0.bin")
    errors = failure_of(process)
    [step] = checkpoints(tmp_path / "run")
    assert step > 0 and WHAT_IS_SAID[delete] in errors and "is the last checkpoint" in errors


def test_without_a_folder_nothing_is_saved(trainer, tmp_path):
    write_shards(tmp_path)
    flags = ["-i", tmp_path / "train_*.bin", "-j", tmp_path / "val_*.bin", *RUN, "-v", 0]
    process = start(trainer, *flags, "-x", 1_000_000_000, at=r"step +\d+/")
    cut(tmp_path / "train_0.bin")
    errors = failure_of(process)
    assert WHAT_IS_SAID[cut] in errors and "no checkpoint was saved" in errors


# ----- evaluation


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = formats.ModelConfig(max_seq_len=64, vocab_size=V, num_layers=2, num_heads=2, channels=32)
    path = tmp_path_factory.mktemp("model") / "model.bin"
    formats.write_checkpoint(path, config, reference.init_tensors(config, seed=1, spread=True))
    return path


@pytest.mark.parametrize("change", [cut, overwrite])
def test_shards_that_change_during_evaluation(change, model, mojo_program, tmp_path):
    path = tmp_path / "val.bin"
    formats.write_tokens(path, np.random.default_rng(3).integers(V, size=4_000_000))
    process = start(mojo_program("eval_gpt2.mojo"), "-e", model, "-j", path, "--stride", 8, at=str(path))
    change(path)
    assert WHAT_IS_SAID[change] in failure_of(process)


@pytest.mark.parametrize("change", [cut, overwrite])
def test_questions_that_change_during_evaluation(change, model, mojo_program, tmp_path):
    """Otherwise the accuracy would be one of half old, half new questions."""
    random = np.random.default_rng(3)
    examples = [
        formats.Choice(random.integers(V, size=9).tolist(), random.integers(V, size=(4, 9)).tolist(), 1)
        for _ in range(40_000)
    ]
    path = tmp_path / "hellaswag.bin"
    formats.write_hellaswag(path, examples)
    process = start(mojo_program("eval_gpt2.mojo"), "-e", model, "-h", path, at=re.escape(str(model)))
    change(path)
    errors = failure_of(process)
    assert "hellaswag: " in errors and WHAT_IS_SAID[change] in errors


# ----- texts


def cut_off(path):
    """Leaves a tenth, so that what is read next is no longer there."""
    os.truncate(path, path.stat().st_size // 10)


@pytest.mark.parametrize("change", [cut, cut_off, grow, overwrite, replace, delete])
def test_texts_that_change_while_they_are_tokenized(change, mojo_program, tmp_path):
    """Otherwise the manifest would tell of other bytes than those that were tokenized."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"It was a dark and stormy night. " * 4_000_000)
    vocabulary = tmp_path / "tokenizer.bin"
    formats.write_tokenizer(vocabulary, [bytes([value]) for value in range(256)], None)
    out = tmp_path / "out"
    command = [mojo_program("tokenize_text.mojo").path, "-i", text, "-o", out, "--tokenizer", vocabulary]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8", "env": ENVIRONMENT}
    process = subprocess.Popen(command, **pipes)
    # The first tokens are written; most of the text is still to be read.
    wait_for(lambda: any(path.stat().st_size for path in out.glob("*_all.bin*")))
    process.send_signal(signal.SIGSTOP)
    change(text)
    assert WHAT_IS_SAID.get(change, WHAT_IS_SAID[cut]) in failure_of(process)
    assert not list(out.glob("*_train.bin")) and not (out / "manifest.json").exists()
