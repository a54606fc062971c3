"""The command `tune`: which rates it tries, for how many steps, and that its losses are those of the trainer's own runs."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from llm_mojo import Error, native, tune
from llm_mojo.__main__ import main
from mojo_programs import ENVIRONMENT, ROOT

TINY = ["--n-layer", "1", "--n-head", "1", "--n-embd", "16", "-b", "2", "-t", "8"]
SCHEDULE = ["-x", "64", "-u", "16", "--max-minutes", "0", "--optimizer", "adamw"]


@pytest.fixture
def call(mojo_program, tmp_path, monkeypatch, capfd):
    """Calls `tune` in a folder with a text: (status, what it said)."""
    path = mojo_program("train_gpt2.mojo").path
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(native, "program", lambda name: path)
    Path("a.txt").write_text("one two three " * 60)

    def call(*more):
        capfd.readouterr()
        status = main(["tune", "a.txt", *TINY, *SCHEDULE, *more])
        captured = capfd.readouterr()
        return status, captured.err if status else captured.out

    call.trainer = path
    return call


def read(folder):
    return json.loads(Path(folder, "tune.json").read_bytes())


def test_rates():
    grid = tune.rates_to_try({"learning-rate": "1e-3"})
    assert grid[0] == {"learning-rate": 1e-3}
    assert sorted(each["learning-rate"] for each in grid) == [6.25e-05, 1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    grid = tune.rates_to_try({"learning-rate": 3e-3, "optimizer": "muon"})
    assert grid[0] == {"muon-rate": 0.01, "learning-rate": 3e-3}
    assert {each["muon-rate"] for each in grid} == {0.0025, 0.005, 0.01, 0.02}
    assert {each["learning-rate"] for each in grid} == {1e-3, 3e-3, 9e-3} and len(grid) == 12
    for name, value in [("optimizer", "sgd"), ("learning-rate", "0"), ("learning-rate", "x")]:
        with pytest.raises(Error, match=f"tune: --{name}: expected"):
            tune.rates_to_try({name: value})


def test_the_best_third():
    grid = [{"learning-rate": float(rate)} for rate in range(5)]
    assert tune.best_of(grid, [3, 1, float("inf"), 0, 2]) == [grid[1], grid[3]]
    assert tune.best_of(grid[:1], [3]) == grid[:1]


@pytest.mark.parametrize(("choices", "kept"), [(12, 4), (8, 3), (3, 1)])
def test_the_steps_take_the_time_that_there_is(choices, kept):
    short, long = tune.plan(choices, 120, step_s=0.01, start_s=0.5, full_steps=10**6)
    assert short == long // 8
    assert 118 < choices * (0.5 + 0.01 * short) + kept * (0.5 + 0.01 * long) <= 120
    assert tune.plan(choices, 120, 0.01, 0.5, full_steps=100) == [12, 100]
    with pytest.raises(Error, match=r"found it for 0; a step takes 60000 ms here: use --minutes [0-9.]+ or more"):
        tune.plan(choices, 120, 60, 0.5, 10**6)


def test_losses_are_those_of_the_trainers_runs(call):
    status, output = call("-l", "3e-3")
    assert status == 0, output
    found = read("runs/a-tune")
    assert found["steps"] == [8, 64]
    counts = [sum(trial["steps"] == steps for trial in found["trials"]) for steps in found["steps"]]
    assert counts == [8, 3]
    for first, second in zip(found["steps"], found["steps"][1:]):
        losses = {
            trial["rates"]["learning-rate"]: trial["val_loss"] for trial in found["trials"] if trial["steps"] == first
        }
        longer = {trial["rates"]["learning-rate"] for trial in found["trials"] if trial["steps"] == second}
        assert longer == set(sorted(losses, key=losses.get)[: len(longer)])

    # By hand, with the words that it prints: the whole run with the best rate.
    best = min((trial for trial in found["trials"] if trial["steps"] == 64), key=lambda trial: trial["val_loss"])
    rate = f"{best['rates']['learning-rate']:g}"
    assert f"best: learning-rate {rate}, val loss {best['val_loss']:.4f} after 64 steps" in output
    words = re.search(r"train with them: \S.* train (.*)", output)[1].split()
    assert words[0] == "a.txt" and words[-2:] == ["--learning-rate", rate]
    data = ["-i", "data/a/a_train.bin", "-j", "data/a/a_val.bin", "--tokenizer", "data/a/tokenizer.bin"]
    flags = ["--preset", "pydocs-small", *words[1:], "-s", "0", "-v", "64", "-m", "-1", "-o", "by_hand"]
    subprocess.run([call.trainer, *data, *flags], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    losses = [json.loads(line) for line in Path("by_hand/log.jsonl").read_text().splitlines()]
    assert losses[-1]["val_loss"] == best["val_loss"]
    assert Path("runs/a-tune/tune.png").is_file()
    assert sorted(os.listdir("runs")) == ["a-tune"]


def test_it_goes_on_where_it_was_interrupted(call):
    call("-l", "3e-3")
    whole = read("runs/a-tune")
    Path("runs/a-tune/tune.json").write_text(json.dumps(whole | {"trials": whole["trials"][:5]}))
    status, output = call("-l", "3e-3")
    assert status == 0 and "going on with runs/a-tune/tune.json, 5 trials" in output
    assert read("runs/a-tune") == whole
    # Other settings get a folder of their own; a folder with something else is left alone.
    assert call("-l", "3e-3", "--seed", "5")[0] == 0
    assert read("runs/a-tune") == whole and read("runs/a-tune-2") != whole
    Path("mine").mkdir()
    Path("mine/notes").write_text("mine")
    for more, text in {(): "holds something else", ("--replace",): "holds something that tune did not make"}.items():
        status, said = call("--out", "mine", *more)
        assert status == 1 and text in said
    assert os.listdir("mine") == ["notes"]


def test_both_rates_of_muon_and_rates_that_diverge(call):
    status, output = call("--optimizer", "muon", "--full", "-x", "10")
    assert status == 0, output
    found = read("runs/a-tune")
    assert found["steps"] == [10] and len({tuple(trial["rates"].items()) for trial in found["trials"]}) == 12
    status, said = call("-l", "1e30", "--full", "-x", "10", "--out", "high")
    assert status == 1 and "diverges with all of these rates" in said
    assert [trial["val_loss"] for trial in read("high")["trials"]] == [None] * 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--minutes", "-1"], "--minutes: expected a number above 0"),
        (["--minutes", "1e-4"], "expected time for trials of 8 steps"),
        (["--dry-run"], "--dry-run is a flag of train"),
        (["-y", "1"], "tune: --resume is chosen here"),
        (["--n-heads", "2"], "n-heads"),
        (["--lerning-rate", "2"], "lerning-rate"),
    ],
)
def test_mistakes(call, words, text):
    status, said = call(*words)
    assert status == 1 and text in said
