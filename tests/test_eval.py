"""eval_gpt2.mojo and the trainer's --hellaswag against PyTorch: every ending of 200 examples, every kind of window."""

import dataclasses
import functools
import json
import math
import os
import signal
import stat

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from tiny_run import checkpoints, copy_back_to, log, make_data, settings

CONFIG = formats.ModelConfig(max_seq_len=64, vocab_size=60, num_layers=2, num_heads=2, channels=32)
LONGEST = 49  # context and ending
pytestmark = pytest.mark.usefixtures("one_thread")
Z = 1.959963984540054


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("eval_gpt2.mojo")


@pytest.fixture(scope="module")
def tensors():
    return reference.init_tensors(CONFIG, seed=1, spread=True)


@pytest.fixture(scope="module")
def examples():
    random = np.random.default_rng(0)

    def tokens(longest):
        return random.integers(CONFIG.vocab_size, size=random.integers(1, longest + 1)).tolist()

    examples = [formats.Choice(tokens(30), [tokens(19) for _ in range(4)], int(random.integers(4))) for _ in range(198)]
    one_token = formats.Choice([3], [[1], [2], [0], [2]], 1)
    twins = formats.Choice([3, 4], [[9, 9], [5], [5], [7]], 2)  # of equals, the first is chosen
    return [*examples, one_token, twins]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors, examples):
    folder = tmp_path_factory.mktemp("eval")
    formats.write_checkpoint(folder / "model.bin", CONFIG, tensors)
    formats.write_checkpoint(folder / "bf16.bin", CONFIG, tensors, "bfloat16")
    formats.write_hellaswag(folder / "hellaswag.bin", examples)
    random = np.random.default_rng(3)
    for name, size in {"s_0": 700, "s_1": 33, "s_2": 2}.items():
        formats.write_tokens(folder / f"{name}.bin", random.zipf(1.5, size=size) % CONFIG.vocab_size)
    return folder


def results(program, folder, *arguments):
    # One thread: the passes of such a small model are over before others wake up.
    program.output("-e", folder / "model.bin", "--threads", 1, "--json", folder / "results.json", *arguments)
    return json.loads((folder / "results.json").read_text())


@functools.cache
def parameters(path):
    return {name: torch.tensor(values).double() for name, values in formats.read_checkpoint(path)[1].items()}


def token_losses(path, tokens):
    """The referee's loss of each token but the first, in float64: one sequence by itself, without padding."""
    ids = torch.tensor([list(tokens)]).long()
    logits, _ = reference.forward(parameters(path), CONFIG, ids[:, :-1])
    return reference.cross_entropy(logits, ids[:, 1:])[0].numpy()


def expected_judgement(path, example):
    losses = [token_losses(path, example.context + ending)[-len(ending) :] for ending in example.endings]
    return [loss.sum() for loss in losses], [loss.mean() for loss in losses]


@pytest.mark.parametrize("checkpoint", ["model.bin", "bf16.bin"])
def test_hellaswag_is_pytorchs_example_by_example(program, folder, examples, checkpoint):
    found = results(program, folder, "--hellaswag", folder / "hellaswag.bin", "-e", folder / checkpoint)["hellaswag"]
    right = right_per_token = 0
    assert len(found["judgements"]) == found["examples"] == 200
    for judgement, example in zip(found["judgements"], examples):
        sums, means = expected_judgement(folder / checkpoint, example)
        assert judgement["losses"] == pytest.approx(sums, rel=1e-5)
        assert judgement["lengths"] == [len(ending) for ending in example.endings]
        assert judgement["label"] == example.label
        assert judgement["likeliest"] == int(np.argmin(sums))
        assert judgement["likeliest_per_token"] == int(np.argmin(means))
        right += int(np.argmin(sums)) == example.label
        right_per_token += int(np.argmin(means)) == example.label
    assert (found["acc"], found["acc_norm"]) == (right / 200, right_per_token / 200)
    assert right != right_per_token  # else this test would not see them mixed up


def test_hellaswag_on_the_screen(program, folder):
    """Accuracy and Wilson's interval, by another formula: the shares at which the score test is just significant."""
    lines = program.output("-e", folder / "model.bin", "-h", folder / "hellaswag.bin", "--limit", 11).splitlines()
    found = results(program, folder, "-h", folder / "hellaswag.bin", "--limit", 11)["hellaswag"]
    assert found["examples"] == len(found["judgements"]) == 11
    for line, name in zip(lines[1:], ["acc", "acc_norm"]):
        right = round(11 * found[name])
        assert line.startswith(f"{name:8} {right / 11:.4f} ({right} of 11) | 95% interval")
        low, high = (float(word) for word in line.split("interval ")[1].split(" (")[0].split(" to "))
        for bound in (low, high):
            assert abs(right / 11 - bound) / math.sqrt(bound * (1 - bound) / 11) == pytest.approx(Z, rel=0.01)


def windows(tokens, T, stride):
    """Yields the losses that count of each window, as the perplexity guide of transformers walks over a text.

    Its windows are of ids; ours have the T ids that a model is shown, and one more that is only predicted.
    """
    counted = 1
    for begin in range(0, len(tokens), stride):
        end = min(begin + T + 1, len(tokens))
        fresh = end - counted
        yield begin, end, fresh
        counted = end
        if end == len(tokens):
            break


@pytest.mark.parametrize(
    "pattern, T, stride",
    [
        ("s_0.bin", 64, 64),  # the defaults
        ("s_0.bin", 16, 16),
        ("s_0.bin", 16, 5),
        ("s_0.bin", 7, 2),
        ("s_1.bin", 1, 1),
        ("s_1.bin", 32, 32),  # one window in full
        ("s_1.bin", 31, 31),  # and one target more
        ("s_1.bin", 64, 3),  # less than a window
        ("s_?.bin", 13, 12),
    ],
)
def test_loss_on_shards_is_pytorchs(program, folder, pattern, T, stride):
    flags = [] if T == stride == 64 else ["-t", T] if T == stride else ["-t", T, "--stride", stride]
    found = results(program, folder, "-j", folder / pattern, *flags)["data"]
    sums, counts = [], []
    for path in sorted(folder.glob(pattern)):
        tokens = formats.read_tokens(path).astype(int).tolist()
        before = sum(counts)
        for begin, end, fresh in windows(tokens, T, stride):
            sums.append(token_losses(folder / "model.bin", tokens[begin:end])[-fresh:].sum())
            counts.append(fresh)
        assert sum(counts) - before == len(tokens) - 1  # each is a target once
    mean = sum(sums) / sum(counts)
    assert (found["targets"], found["windows"]) == (sum(counts), len(counts))
    assert (found["seq_len"], found["stride"]) == (T, stride)
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    if len(counts) == 1:
        assert found["standard_error"] is None
    else:
        squares = sum((s - n * mean) ** 2 for s, n in zip(sums, counts))
        error = math.sqrt(squares * len(counts) / (len(counts) - 1)) / sum(counts)
        assert found["standard_error"] == pytest.approx(error, rel=1e-3)


def test_bits_per_byte(program, folder, tmp_path):
    """Tokens of one to three bytes; end of text spells nothing."""
    tokens = [bytes([65 + id // 3]) * (1 + id % 3) for id in range(59)] + [b"<|endoftext|>"]
    random = np.random.default_rng(5)
    ids = random.integers(60, size=200)
    formats.write_tokens(tmp_path / "s.bin", ids)
    assert results(program, folder, "-j", tmp_path / "s.bin", "-t", 20)["data"]["bits_per_byte"] is None
    formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens, 59)
    found = results(program, folder, "-j", tmp_path / "s.bin", "-t", 20)["data"]
    size = sum(len(tokens[id]) for id in ids[1:] if id != 59)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * 199 / math.log(2) / size, rel=1e-9)
    formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens[1:], 58)
    error = program.error("-e", folder / "model.bin", "-j", tmp_path / "s.bin", "-t", 20)
    assert "has 59 tokens, the model 60" in error
    made_with = {"tokenizer": {"name": "gpt2", "vocab_size": 50257, "sha256": ""}}
    (tmp_path / "manifest.json").write_text(json.dumps(made_with))
    error = program.error("-e", folder / "model.bin", "-j", "s.bin", "-t", 20, cwd=tmp_path)
    assert "was made with the tokenizer gpt2 of 50257 tokens, the model has 60" in error


def test_bf16(program, folder):
    """The products are of 8 bits of mantissa: the losses are near those of fp32, and others."""
    flags = ["-h", folder / "hellaswag.bin", "-j", folder / "s_0.bin"]
    exact, found = (results(program, folder, *flags, "--dtype", dtype) for dtype in ("fp32", "bf16"))
    assert found["data"]["loss"] == pytest.approx(exact["data"]["loss"], rel=1e-2)
    for ours, theirs in zip(found["hellaswag"]["judgements"], exact["hellaswag"]["judgements"]):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.1)
        assert ours["losses"] != theirs["losses"]


def test_the_same_bits_on_any_number_of_threads(program, folder):
    flags = ["-h", folder / "hellaswag.bin", "--limit", 20, "-j", folder / "s_0.bin", "-t", 16, "--stride", 5]
    first, *others = (results(program, folder, *flags, "--threads", threads) for threads in (1, 2, 3))
    assert all(other == first for other in others)


# ---------------------------------------------------------------------------------------------------------------------
# mistakes


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "expected --val-data or --hellaswag: there is nothing to evaluate"),
        ("-j s_0.bin --stride 0", "--stride: expected an integer of at least 1, got '0'"),
        ("-j s_0.bin -t 16 --stride 17", "--stride: expected an integer from 1 to 16, got '17'"),
        ("-j s_0.bin -t 65", "--seq-len: expected an integer from 0 to 64, got '65'"),
        ("-h hellaswag.bin --limit -1", "--limit: expected an integer of at least 0, got '-1'"),
    ],
)
def test_wrong_flags(program, folder, flags, message):
    assert message in program.error("-e", "model.bin", *flags.split(), cwd=folder, status=2)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("-j none_*.bin", "data: no file matches none_*.bin"),
        ("-j empty.bin", "data: empty.bin: expected at least 2 tokens, one to predict from the other, found 0"),
        ("-j model.bin", "expected a token shard (magic number 20240520), found a model checkpoint"),
        ("-j beyond.bin -t 8", "beyond.bin: expected tokens below 60, the model's vocabulary, found 60 at position 21"),
        ("-j last_beyond.bin -t 8", "data: last_beyond.bin: expected tokens below 60"),
        ("-j huge.bin -t 8", "found 4294967295 at position 32"),
        ("-h s_0.bin", "expected a multiple-choice evaluation (magic number 20240522), found a token shard"),
        ("-h cut.bin", "example 199 of 200: expected an example, found the end of the file"),
        ("-h long.bin", "long.bin: example 1 takes 65 positions, the context has 64; use a model with a longer"),
        ("-h unknown.bin", "unknown.bin: example 0 of 1: expected tokens below 60, the model's vocabulary, found 60"),
        ("-h none.bin", "none.bin: expected at least 1 example, found 0 in the header"),
        ("-h trailing.bin", "the file is too long"),
        ("-h damaged.bin", "expected 65535 and the index, found 65535 and 7"),
        ("-h label.bin", "expected 4 endings and a label below, found 4 endings and label 4"),
        ("-h lengths.bin", "expected a context and 4 endings of at least 1 token in its"),
        ("-h 1", "data/hellaswag/hellaswag_val.bin is not here; `python -m llm_mojo prepare hellaswag` makes it"),
        ("-e nan.bin -h hellaswag.bin", "example 0: the loss is nan: the model's parameters are not finite"),
        ("-e nan.bin -j s_0.bin", "s_0.bin: after token 0: the loss is nan: the model's parameters are not finite"),
        ("-e missing.bin -j s_0.bin", "cannot open missing.bin"),
    ],
)
def test_bad_files(program, folder, tensors, examples, flags, message):
    def patched(index, value):
        raw = bytearray((folder / "hellaswag.bin").read_bytes())
        raw[1024 + 2 * index : 1026 + 2 * index] = value.to_bytes(2, "little")
        return bytes(raw)

    formats.write_tokens(folder / "empty.bin", [])
    formats.write_tokens(folder / "beyond.bin", [*range(21), 60, *range(10)])
    formats.write_tokens(folder / "last_beyond.bin", [*range(32), 60])
    formats.write_tokens(folder / "huge.bin", [*range(32), 2**32 - 1], "<u4")
    raw = (folder / "hellaswag.bin").read_bytes()
    (folder / "cut.bin").write_bytes(raw[:-10])
    (folder / "trailing.bin").write_bytes(raw + b"\0\0")
    (folder / "damaged.bin").write_bytes(patched(2, 7))
    (folder / "label.bin").write_bytes(patched(3, 4))
    (folder / "lengths.bin").write_bytes(patched(5, 500))
    formats.write_hellaswag(folder / "none.bin", [])
    fits = formats.Choice([1] * 60, [[1], [2], [3], [4] * 5], 0)
    formats.write_hellaswag(folder / "long.bin", [fits, fits._replace(context=[1] * 61)])
    formats.write_hellaswag(folder / "unknown.bin", [formats.Choice([1], [[1], [2], [60], [3]], 0)])
    formats.write_checkpoint(folder / "nan.bin", CONFIG, tensors | {"lnfb": np.full_like(tensors["lnfb"], np.nan)})
    flags = flags.split()
    if flags[0] != "-e":
        flags = ["-e", "model.bin", *flags]
    error = program.error(*flags, "--json", "kept.json", cwd=folder)
    assert error.startswith("eval_gpt2: ") and message in error
    assert not list(folder.glob("kept.json*"))


def test_where_nothing_can_be_written_nothing_is_evaluated(program, folder):
    for place, message in [(folder, "expected the name of a file, found a folder"), ("/proc/x.json", "cannot write")]:
        result = program.run("-e", folder / "model.bin", "-h", folder / "hellaswag.bin", "--json", place)
        assert result.returncode == 1 and message in result.stderr and result.stdout == ""


SLOW = ["--n-layer", 12, "--n-head", 8, "--n-embd", 512]
"""Sizes with which 65,000 examples take so long that only a signal ends them."""


@pytest.fixture(scope="module")
def many(folder):
    """A file of examples that all have the first answer."""
    one = formats.Choice([1] * 28, [[1] * 20] * 4, 0)
    formats.write_hellaswag(folder / "many.bin", [one] * 65_000)
    return folder / "many.bin"


def test_ctrl_c_prints_what_is_done(program, folder, many):
    sizes = {"num_layers": SLOW[1], "num_heads": SLOW[3], "channels": SLOW[5]}
    config = dataclasses.replace(CONFIG, **sizes)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in formats.parameter_shapes(config).items()}
    formats.write_checkpoint(folder / "slow.bin", config, zeros)
    flags = ["-e", folder / "slow.bin", "-h", many, "--json", folder / "kept.json"]
    status, shown = program.on_terminal(*flags, at="/65,000 |", number=signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert "acc_norm 1.0000 (" in shown and "stopped by Ctrl-C; the figures are those of what was done" in shown
    assert not (folder / "kept.json").exists()


# ---------------------------------------------------------------------------------------------------------------------
# during training


@pytest.fixture(scope="module")
def trainer(mojo_program):
    return mojo_program("train_gpt2.mojo")


def test_the_trainer_evaluates_at_every_validation(trainer, program, folder, tmp_path):
    """Its figures are those of eval_gpt2 for the checkpoints; there is room for fewer endings than four at once."""
    make_data(tmp_path)
    sizes = ["-b", 1, "-t", LONGEST, "-n", 2, "-v", 2, "-h", folder / "hellaswag.bin"]
    sizes += ["--hellaswag-limit", 150, "--threads", 1]
    run = [*settings(tmp_path, tmp_path / "run", *sizes), "-l", 0.01]
    text = trainer.output(*run)
    newest = program.output("-e", tmp_path / "run", "-h", folder / "hellaswag.bin", "--limit", 1)
    assert f"{tmp_path}/run/model_00000004.bin: " in newest
    logged = {entry["step"]: entry for entry in log(tmp_path / "run") if "hellaswag_acc" in entry}
    assert list(logged) == [0, 2, 4]
    for step in (2, 4):
        found = results(
            program,
            folder,
            *("-e", tmp_path / f"run/model_{step:08}.bin", "-h", folder / "hellaswag.bin", "--limit", 150),
        )["hellaswag"]
        assert logged[step] == {"step": step, "hellaswag_acc": found["acc"], "hellaswag_acc_norm": found["acc_norm"]}
        assert f"hellaswag acc {found['acc']:.4f} | acc_norm {found['acc_norm']:.4f}" in text
        assert f"s:{step} eval:{found['acc_norm']:.4f}\n" in (tmp_path / "run/main.log").read_text()
    assert logged[2] != {**logged[4], "step": 2}

    resumed = copy_back_to(tmp_path / "run", 2, tmp_path / "resumed")
    trainer.output("-o", resumed, "-y", 1)
    assert log(resumed) == log(tmp_path / "run")
    assert (resumed / "main.log").read_text() == (tmp_path / "run/main.log").read_text()


def test_the_trainer_refuses_examples_longer_than_its_context(trainer, folder, tmp_path):
    make_data(tmp_path)
    flags = settings(tmp_path, None, "-t", 16, "-h", folder / "hellaswag.bin")
    assert "positions, the context has 16; use a model with a longer context (in training, a larger --seq-len)" in (
        trainer.error(*flags)
    )
    assert "usage: train_gpt2" in trainer.output("-b", 2, "-h")


def test_a_signal_during_hellaswag_leaves_it_to_the_resumed_run(trainer, many, tmp_path):
    make_data(tmp_path)
    run = settings(tmp_path, tmp_path / "run", *SLOW, "-t", LONGEST, "-v", 2, "-h", many)
    status, shown = trainer.on_terminal(*run, at="/65,000 |", number=signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert "val loss" not in shown and "stopped by Ctrl-C after step 0 of 4" in shown
    assert os.path.getsize(tmp_path / "run/log.jsonl") == 0 and not checkpoints(tmp_path / "run")


def test_only_results_of_ours_are_replaced(program, folder, tmp_path):
    """A checkpoint or a shard that is named by mistake stays; results are replaced by newer ones."""
    run = ["-e", folder / "model.bin", "-h", folder / "hellaswag.bin", "--limit", 2, "--json"]
    program.output(*run, tmp_path / "results.json")
    program.output(*run, tmp_path / "results.json")
    (tmp_path / "notes.json").write_text("{}")
    assert "there is a file that holds no results of eval_gpt2" in program.error(*run, tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "{}"
    os.mkfifo(tmp_path / "pipe")
    assert "expected an ordinary file, found a device or a pipe" in program.error(*run, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
