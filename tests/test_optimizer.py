"""The trainer's optimizer: accumulation, clipping, weight decay and outliers, seen in its logs and states."""

import math

import numpy as np
import pytest

from llm_mojo import formats, reference
from tiny_run import SIZES, log, settings

CHARACTERS = formats.ModelConfig(max_seq_len=64, vocab_size=65, num_layers=4, num_heads=4, channels=128)


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def losses(out):
    return [line["loss"] for line in log(out) if "loss" in line]


def state(out, step):
    config, tensors = formats.read_checkpoint(out / f"model_{step:08}.bin")
    return tensors, formats.read_state(out / f"state_{step:08}_00000.bin", config)


# ----- accumulation


def test_eight_passes_of_8_equal_one_of_64(mojo_program, tmp_path):
    """The gradients, tensor by tensor, of a character model."""
    program = mojo_program("tests/programs/passes.mojo")
    tensors = reference.init_tensors(CHARACTERS, seed=1, spread=True)
    formats.write_checkpoint(tmp_path / "model.bin", CHARACTERS, tensors)
    formats.write_tokens(tmp_path / "tokens.bin", np.random.default_rng(2).integers(65, size=64 * 64 + 1))
    for pieces in (1, 8):
        program.output("model.bin", "tokens.bin", 2, 64, 64, pieces, 1, f"grads_{pieces}.bin", cwd=tmp_path)
    _, whole = formats.read_checkpoint(tmp_path / "grads_1.bin")
    _, accumulated = formats.read_checkpoint(tmp_path / "grads_8.bin")
    for name, expected in whole.items():
        assert np.abs(accumulated[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_accumulated_losses(program, tmp_path):
    formats.write_tokens(tmp_path / "tokens.bin", np.random.default_rng(2).integers(60, size=64 * 8 * 4 + 1))
    files = ["-i", tmp_path / "tokens.bin", "-v", 0, "-s", 0, "--shuffle", 0, *SIZES, "-x", 4, "-l", 1e-3]
    program.output(*files, "-b", 64, "-o", tmp_path / "whole")
    program.output(*files, "-b", 8, "-d", 64 * 8, "-o", tmp_path / "accumulated")
    np.testing.assert_allclose(losses(tmp_path / "accumulated"), losses(tmp_path / "whole"), rtol=1e-6)
    places = [[(line["sample"], line["epoch"]) for line in log(tmp_path / name)] for name in ("whole", "accumulated")]
    assert places == [[(1, 0), (2, 0), (3, 0), (4, 0)], [(8, 0), (16, 0), (24, 0), (32, 0)]]


def test_a_total_that_is_no_multiple(program, data):
    error = program.error(*settings(data, None, "-d", 40), status=2)
    assert "--total-batch-size: expected a multiple of B*T = 2*8 = 16, got 40; the nearest are 32 and 48" in error


def test_one_epoch(program, data, tmp_path):
    program.output(*settings(data, tmp_path / "run", "-x", -1))
    assert [line["epoch"] for line in log(tmp_path / "run") if "loss" in line] == [0] * 21
    assert "step    1/10 |" in program.output(*settings(data, None, "-x", -1, "-d", 32))


# ----- clipping and weight decay


def test_clipping(program, data, tmp_path):
    runs = {"never": [], "beyond reach": ["--grad-clip", 1e9], "always": ["--grad-clip", 0.01]}
    for name, more in runs.items():
        program.output(*settings(data, tmp_path / name, "-x", 1, *more))
    tensors, never = state(tmp_path / "never", 1)
    _, always = state(tmp_path / "always", 1)
    norm = next(line["norm"] for line in log(tmp_path / "never") if "norm" in line)
    # The norm costs a pass of its own when it is needed before the update; its bits are the same.
    assert log(tmp_path / "beyond reach") == log(tmp_path / "never")
    for name in ("model_00000001.bin", "state_00000001_00000.bin"):
        assert (tmp_path / "beyond reach" / name).read_bytes() == (tmp_path / "never" / name).read_bytes()
    # After one step m is a tenth of the gradient.
    assert math.isclose(np.linalg.norm(never.m.astype("f8")) * 10, norm, rel_tol=1e-6)
    assert math.isclose(np.linalg.norm(always.m.astype("f8")) * 10, 0.01, rel_tol=1e-5)
    np.testing.assert_allclose(always.m, never.m * (0.01 / norm), rtol=1e-5, atol=1e-12)


def test_weight_decay(program, data, tmp_path):
    """A decay of 1 at lr 0.01 takes a hundredth off the old value; layernorm weights start at 1 and show it."""
    flags = ["-x", 1, "-l", 0.01]
    runs = {"none": [], "matrices": ["-c", 1], "all": ["-c", 1, "--decay-all"]}
    for name, more in runs.items():
        program.output(*settings(data, tmp_path / name, *flags, *more))
    none, matrices, everything = (state(tmp_path / name, 1)[0] for name in runs)
    for name in none:
        is_matrix = name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
        assert np.array_equal(none[name], matrices[name]) != is_matrix, name
        if is_matrix:
            np.testing.assert_array_equal(matrices[name], everything[name])
    for name in ("ln1w", "ln2w", "lnfw"):
        np.testing.assert_allclose(none[name] - everything[name], 0.01, rtol=1e-4)


# ----- outliers


def z_scores(values):
    """llm.c's detector: against the last 128 values, the new one included, once there are more."""
    found = []
    for i, value in enumerate(values):
        window = np.array(values[max(0, i - 127) : i + 1])
        found.append((value - window.mean()) / window.std() if i >= 128 else None)
    return found


@pytest.mark.parametrize(("flag", "name"), [("-sl", "loss"), ("-sg", "norm")])
def test_outliers_are_skipped(flag, name, program, data, tmp_path):
    out = tmp_path / "run"
    program.output(*settings(data, out, "-x", 200, "-v", 0, flag, 1.2, "-n", 1, "-l", 1e-5))
    lines = log(out)
    for line, z in zip(lines, z_scores([line[name] for line in lines]), strict=True):
        assert (f"{name}_z" in line) == (z is not None)
        assert z is None or abs(line[f"{name}_z"] - z) < 2e-3
        if z is None or abs(z - 1.2) > 1e-3:
            assert line.get("skipped", False) == (z is not None and z > 1.2)
    skipped = [line["step"] for line in lines if "skipped" in line]
    assert 3 <= len(skipped) <= 30
    for step in (*skipped, 2):
        before, after = ((out / f"model_{number:08}.bin").read_bytes() for number in (step - 1, step))
        assert (before == after) == (step != 2)


def test_nothing_is_skipped_unasked(program, data, tmp_path):
    program.output(*settings(data, tmp_path / "run", "-x", 200, "-v", 0, "-l", 1e-3))
    assert sum("loss_z" in line for line in log(tmp_path / "run")) == 72
    assert not any("skipped" in line for line in log(tmp_path / "run"))
