"""The figures that a run shows and logs, computed again from the flags and the data alone."""

import json
import math
import re

import numpy as np
import pytest

from tiny_run import SIZES, V, log

STEPS, PASSES, B, T, L, C = 160, 2, 2, 8, 2, 64
LR, WARMUP, FINAL = 3e-3, 20, 0.1
ROUNDING_MS = 0.0005
FLAGS = [*SIZES, "--n-embd", C, "-x", STEPS, "-d", PASSES * B * T, "-v", 25, "-m", 2, "-s", 0]
FLAGS += ["-l", LR, "-k", "cosine", "-u", WARMUP, "-q", FINAL, "--grad-clip", 1]


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def shown_run(program, data, tmp_path_factory):
    """The folder of a run, and what a terminal showed of it, without colours."""
    out = tmp_path_factory.mktemp("run") / "run"
    flags = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *FLAGS, "-o", out]
    status, shown = program.on_terminal(*flags, NO_COLOR="1")
    assert status == 0
    return out, shown


@pytest.fixture(scope="module")
def piped_run(program, data, tmp_path_factory):
    """The same of another run, into a pipe."""
    out = tmp_path_factory.mktemp("piped") / "run"
    flags = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *FLAGS, "-o", out]
    return out, program.output(*flags)


def records_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def records(shown_run):
    return records_of(shown_run[0])


def test_learning_rates_follow_the_schedule(records):
    for record in records:
        if "loss" in record:
            step = record["step"] - 1
            expected = LR * (step + 1) / WARMUP
            if step >= WARMUP:
                part = (step - WARMUP) / (STEPS - WARMUP)
                expected = LR * FINAL + LR * (1 - FINAL) * (1 + math.cos(math.pi * part)) / 2
            assert record["lr"] == pytest.approx(expected, rel=1e-12)


def test_tokens_and_places_are_counted(records):
    """The shards of 200 and 155 tokens hold 12 and 9 batches of 16 tokens and the one behind them."""
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    for record in steps:
        assert record["tokens"] == PASSES * B * T
        rate = record["tokens"] / record["ms"] * 1000
        # Both are rounded, the time to so many milliseconds and the rate to a whole token.
        assert record["tokens_per_second"] == pytest.approx(
            rate, rel=0, abs=1 + 1.01 * rate * ROUNDING_MS / record["ms"]
        )
        assert record["epoch"] == (PASSES * record["step"] - 1) // 21
    assert [record["step"] for record in records if "val_loss" in record] == [*range(0, STEPS, 25), STEPS]


def test_z_scores_are_those_of_the_last_128_values(records):
    for name in ("loss", "norm"):
        steps = [record for record in records if "loss" in record]
        values = np.array([record[name] for record in steps])
        for i, record in enumerate(steps):
            assert (f"{name}_z" in record) == (i >= 128)
            if i >= 128:
                window = values[i - 127 : i + 1]
                assert record[f"{name}_z"] == pytest.approx((values[i] - window.mean()) / window.std(), abs=2e-3)


@pytest.mark.parametrize("where", ["shown_run", "piped_run"])
def test_validations_are_those_of_the_log(where, request):
    out, shown = request.getfixturevalue(where)
    losses = {record["step"]: record["val_loss"] for record in records_of(out) if "val_loss" in record}
    found = re.findall(r"val loss (\S+) \| perplexity (\S+)\s", shown)
    assert [float(loss) for loss, _ in found] == pytest.approx(list(losses.values()), abs=1e-6)
    perplexities = [math.exp(loss) for loss in losses.values()]
    assert [float(value) for _, value in found] == pytest.approx(perplexities, abs=0.0051)


def test_lines_of_steps_are_those_of_the_log(piped_run):
    out, shown = piped_run
    by_step = {record["step"]: record for record in records_of(out) if "loss" in record}
    line = r"step +(\d+)/(\d+) \| loss (\S+)(?: \((\S+)z\))? \| norm (\S+)(?: \((\S+)z\))? \| lr (\S+) \| (\S+) ms \| (\d+) tok/s"
    found = re.findall(line, shown)
    assert len(found) >= 90
    for step, steps, loss, loss_z, norm, norm_z, lr, ms, rate in found:
        record = by_step[int(step)]
        assert int(steps) == STEPS and int(rate) == record["tokens_per_second"]
        assert float(loss) == pytest.approx(record["loss"], abs=1e-6)
        assert float(norm) == pytest.approx(record["norm"], abs=6e-5)
        assert float(lr) == pytest.approx(record["lr"], rel=1e-2) and float(ms) == pytest.approx(record["ms"], abs=0.06)
        assert bool(loss_z) == bool(norm_z) == ("loss_z" in record)
        if loss_z:
            assert float(loss_z) == pytest.approx(record["loss_z"], abs=0.006)
            assert float(norm_z) == pytest.approx(record["norm_z"], abs=0.006)


def test_the_line_that_lives(shown_run, records):
    """Its share of the peak: 6 operations a token for each weight of a matrix product, the embedding's as the output's,
    and attention's half.
    """
    _, shown = shown_run
    gigaflops = float(re.search(r"peak +(\S+) GFLOP/s", shown)[1])
    operations = 6 * (L * 12 * C * C + V * C) + 6 * L * C * T
    by_step = {record["step"]: record for record in records if "loss" in record}
    found = re.findall(
        r"step +(\d+)/160 \| loss (\S+) \| lr (\S+) \| (\d+) tok/s \| (\S+)% peak \| ETA \d+:\d\d\r", shown
    )
    assert int(found[0][0]) == 1 and int(found[-1][0]) == STEPS
    for step, loss, lr, rate, share in found:
        record = by_step[int(step)]
        assert float(loss) == pytest.approx(record["loss"], abs=6e-5) and float(lr) == pytest.approx(
            record["lr"], rel=0.1
        )
        assert int(rate) == record["tokens_per_second"]
        expected = 100 * operations * PASSES * B * T / (record["ms"] / 1000) / (1e9 * gigaflops)
        # Of the share itself, of the peak and of the time.
        rounding = (0.051 if expected < 9.9 else 0.51) + expected * (
            0.051 / gigaflops + 1.01 * ROUNDING_MS / record["ms"]
        )
        assert float(share) == pytest.approx(expected, abs=rounding)


def test_llm_c_s_log_says_the_same(shown_run):
    out, _ = shown_run
    lines = (out / "main.log").read_text().splitlines()
    expected = []
    for record in log(out):
        if "val_loss" in record:
            expected.append((record["step"], "tel", record["val_loss"]))
        else:
            expected.append((record["step"] - 1, "trl", record["loss"]))
    found = [re.match(r"s:(\d+) (t[er]l):(\S+)", line).groups() for line in lines]
    assert [(int(step), name) for step, name, _ in found] == [row[:2] for row in expected]
    assert [float(value) for *_, value in found] == pytest.approx([row[2] for row in expected], abs=5.1e-5)
