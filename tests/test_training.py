"""train_gpt2.mojo: losses and parameters against PyTorch and the basic trainer, files, samples, and what it says."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from small_model import ONE_HEAD, SMALL, losses, make_files, shuffled_batches

FILES = ["-i", "train_*.bin", "-j", "val_0.bin", "--tokenizer", "tokenizer.bin"]
QUIET = ["-v", 0, "-s", 0]
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
RANDOM = ["--n-layer", 2, "--n-head", 2, "--n-embd", 32]
TEXT = "the quick brown cat shows how a small model learns by heart.\n"
ALPHABET = "".join(sorted(set(TEXT))) + "XYZ\u00e9"


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture
def files(tmp_path):
    """Checkpoint, shards and tokenizer for `SMALL`."""
    make_files(tmp_path, SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def text_files(tmp_path_factory):
    """Shards of a text that repeats itself, one token a character of `ALPHABET`, and the tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    tokens = [ALPHABET.index(character) for character in TEXT * 100]
    formats.write_tokens(folder / "train_0.bin", tokens)
    formats.write_tokens(folder / "val_0.bin", tokens[:2000])
    formats.write_tokenizer(folder / "tokenizer.bin", [character.encode() for character in ALPHABET], None)
    return folder


@pytest.fixture(scope="module")
def learned(program, text_files):
    """The folder of a run that has learned the text from random initialisation, and what it printed."""
    out = text_files / "learned"
    steps = ["-x", 150, "-b", 8, "-t", 32, "-l", 0.005, "-v", 50, "-m", 3, "-s", 50, "-n", 100, "-g", 80]
    output = program.output(*FILES, *RANDOM, *steps, "--block-size", 40, "-o", "learned", cwd=text_files)
    return out, output


def read_log(folder):
    """The objects of log.jsonl, of which each line must be one, as values of steps and of validations, by step."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if "loss" in row}
    validations = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert len(steps) + len(validations) == len(rows)
    return steps, validations


def log_of(program, folder, *arguments):
    """Runs on the files of the folder, with a log in a fresh folder."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    program.output(*FILES, *arguments, "-o", "run", cwd=folder)
    return read_log(out)


def step_losses(log):
    steps, _ = log
    return [steps[step]["loss"] for step in sorted(steps)]


# against PyTorch and the basic trainer


def pytorch_run(trainer, batches, steps, passes=1, clip=np.inf, decay=0.0, decayed=()):
    """Trains with the flags of the test below; returns the losses and the norms of the gradients."""
    losses, norms = [], []
    for _ in range(steps):
        grads = {name: torch.zeros_like(p) for name, p in trainer.params.items()}
        losses.append(0)
        for _ in range(passes):
            losses[-1] += trainer.backward(*next(batches))[1] / passes
            for name, p in trainer.params.items():
                grads[name] += p.grad / passes
        norms.append(float(sum((grad**2).sum() for grad in grads.values()) ** 0.5))
        trainer.steps += 1
        for name, p in trainer.params.items():
            settings = dict(lr=0.002, betas=(0.8, 0.99), eps=1e-8, weight_decay=decay if name in decayed else 0)
            grad = grads[name] * min(1, clip / norms[-1])
            reference.adamw(p, grad, *trainer.moments[name], trainer.steps, **settings)
    return losses, norms


@pytest.mark.parametrize(
    ("config", "B", "T", "flags", "settings"),
    [
        (SMALL, 3, 17, [], {}),
        (ONE_HEAD, 1, 5, [], {}),
        (SMALL, 3, 17, ["-c", 0.5], {"decay": 0.5, "decayed": MATRICES}),
        (SMALL, 3, 17, ["-c", 0.5, "--decay-all"], {"decay": 0.5, "decayed": formats.parameter_shapes(SMALL)}),
        (SMALL, 3, 17, ["--grad-clip", 0.5], {"clip": 0.5}),
        (SMALL, 2, 13, ["--total-batch-size", 78], {"passes": 3}),
    ],
    ids=["ragged", "one head", "decay", "decay-all", "clipped", "accumulated"],
)
def test_losses_norms_and_parameters_equal_pytorch(config, B, T, flags, settings, program, tmp_path):
    make_files(tmp_path, config)
    batches = shuffled_batches(sorted(tmp_path.glob("train_*.bin")), B, T)
    trainer = reference.Trainer(config, formats.read_checkpoint(tmp_path / "model.bin")[1], torch.float64)
    expected_losses, expected_norms = pytorch_run(trainer, batches, 15, **settings)

    common = ["-e", "model.bin", "-b", B, "-t", T, "-x", 15, "-l", 0.002, "--beta1", 0.8, "--beta2", 0.99]
    steps, _ = log_of(program, tmp_path, *common, *QUIET, *flags)
    assert list(steps) == list(range(1, 16))
    assert [row["loss"] for row in steps.values()] == pytest.approx(expected_losses, rel=1e-5)
    assert [row["norm"] for row in steps.values()] == pytest.approx(expected_norms, rel=1e-4)
    assert [row["lr"] for row in steps.values()] == pytest.approx([0.002] * 15)

    saved_config, saved = formats.read_checkpoint(tmp_path / "run/model_00000015.bin")
    assert saved_config == config
    for name, parameter in trainer.params.items():
        differences = np.abs(saved[name] - parameter.detach().numpy())
        if name == "qkvb":
            # The softmax is blind to the bias of the keys: its gradient is rounding noise, which AdamW scales up.
            C = config.channels
            differences[:, C : 2 * C] = 0
        # A few gradients elsewhere are almost nothing; each step moves a parameter by up to 0.002 all the same.
        assert differences.max() < 1e-4 and np.quantile(differences, 0.99) < 1e-5, name


def test_losses_equal_those_of_the_basic_trainer(program, mojo_program, files):
    flags = [*FILES, "-e", "model.bin", "-b", 3, "-t", 17, "-x", 20, "-l", 0.002, "-v", 10, "-m", 2]
    output = mojo_program("train_gpt2_basic.mojo").output(*flags, cwd=files)
    log = log_of(program, files, *flags)
    assert step_losses(log) == pytest.approx(losses("train", output), rel=1e-4)
    assert list(log[1]) == [0, 10, 20]
    assert list(log[1].values()) == pytest.approx(losses("val", output), rel=1e-4)


def test_without_shuffling_the_data_comes_in_order(program, files):
    B, T = 3, 17
    trainer = reference.Trainer(SMALL, formats.read_checkpoint(files / "model.bin")[1], torch.float64)
    expected = []
    for path in sorted(files.glob("train_*.bin")):
        tokens = formats.read_tokens(path).astype(np.int32)
        for start in range(0, len(tokens) - B * T, B * T):
            x, y = tokens[start:][: B * T], tokens[start + 1 :][: B * T]
            expected.append(trainer.backward(x.reshape(B, T), y.reshape(B, T))[1])
    flags = ["-e", "model.bin", "-b", B, "-t", T, "-l", 0, "-x", len(expected) + 1, "--shuffle", 0]
    assert step_losses(log_of(program, files, *flags, *QUIET)) == pytest.approx([*expected, expected[0]], rel=1e-5)


# from random initialisation


def test_the_loss_falls(learned):
    steps, validations = read_log(learned[0])
    assert list(steps) == list(range(1, 151)) and list(validations) == [0, 50, 100, 150]
    assert steps[1]["loss"] == pytest.approx(np.log(len(ALPHABET)), rel=0.05)
    assert validations[150] < 0.3 < 2 < validations[0]


def test_the_log_holds_every_value(learned):
    steps, _ = read_log(learned[0])
    for row in steps.values():
        assert {"step", "loss", "norm", "lr", "ms", "tokens_per_second", "shard", "sample"} <= set(row)
        assert row["tokens_per_second"] == pytest.approx(8 * 32 / row["ms"] * 1000, rel=0.01, abs=1)
        assert row["lr"] == pytest.approx(0.005) and row["norm"] > 0 and row["shard"] == 0
    # 6,200 characters are 24 batches of 256: sample counts them, anew in each epoch.
    samples = (len(formats.read_tokens(learned[0].parent / "train_0.bin")) - 1) // 256
    assert [row["sample"] for row in steps.values()] == [i % samples + 1 for i in range(150)]


def test_samples_are_text_of_the_model(learned):
    samples = re.findall(r"^--- sample\n(.*?)\n---$", learned[1], re.M | re.S)
    assert len(samples) == 3
    assert set("".join(samples)) <= set(ALPHABET)
    assert len(samples[-1]) == 80 and TEXT[4:30] in samples[-1]


def test_checkpoints_are_models_that_python_reads(learned, text_files):
    for step in (100, 150):
        config, tensors = formats.read_checkpoint(learned[0] / f"model_{step:08}.bin")
        assert config == formats.ModelConfig(40, len(ALPHABET), 2, 2, 32)
        assert all(np.isfinite(values).all() for values in tensors.values())
        assert not tensors["wte"][len(ALPHABET) :].any()
    tokens = formats.read_tokens(text_files / "val_0.bin").astype(np.int64)
    batches = [torch.tensor(tokens[256 * i :][:257]) for i in range(3)]
    params = {name: torch.tensor(values) for name, values in tensors.items()}
    loss = [reference.forward(params, config, x[:-1].view(8, 32), x[1:].view(8, 32))[1].item() for x in batches]
    assert read_log(learned[0])[1][150] == pytest.approx(np.mean(loss), rel=1e-5)


def test_a_checkpoint_is_where_training_goes_on(learned, program, text_files):
    flags = ["-e", "learned/model_00000150.bin", "-b", 8, "-t", 32, "-x", 1, "-m", 3, "-s", 0, "-v", 1]
    _, validations = log_of(program, text_files, *flags)
    assert validations[0] == read_log(learned[0])[1][150]


def test_the_seed_decides_the_initialisation(program, text_files):
    def parameters(*flags):
        log_of(program, text_files, *RANDOM, "-b", 1, "-t", 8, "-x", 1, "-l", 0, *QUIET, *flags)
        return formats.read_checkpoint(text_files / "run/model_00000001.bin")[1]

    default, same, other = parameters(), parameters("--seed", 1337, "--threads", 3), parameters("--seed", 1)
    for name, values in default.items():
        np.testing.assert_array_equal(values, same[name])
        if name in ("wte", "wpe", "qkvw", "fcw"):
            words = slice(len(ALPHABET) if name == "wte" else None)
            assert values[words].std() == pytest.approx(0.02, rel=0.1) and abs(values.mean()) < 0.002
            assert (values[words] != other[name][words]).mean() > 0.99
        elif name in ("attprojw", "fcprojw"):
            assert values.std() == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2L)
        else:
            assert (values == float(name in ("ln1w", "ln2w", "lnfw"))).all()


# mistakes: the others are in test_bad_input.py


def test_without_files_the_commands_that_make_them_are_named(program, tmp_path):
    assert "python -m llm_mojo weights gpt2" in program.error(cwd=tmp_path)
    (tmp_path / "gpt2_124M.bin").touch()
    config = formats.ModelConfig(64, 50257, 1, 1, 2)
    formats.write_checkpoint(tmp_path / "gpt2_124M.bin", config, reference.init_tensors(config))
    assert "tiny_shakespeare_train.bin is not here; `python prepro_tinyshakespeare.py`" in program.error(cwd=tmp_path)
