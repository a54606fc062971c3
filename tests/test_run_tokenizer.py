"""A run owns its vocabulary: wherever its folder goes it is read with it, and no program takes another for it."""

import hashlib
import json
import shutil
import sys

import pytest

from llm_mojo import formats
from llm_mojo.__main__ import main
from tiny_run import STEPS, V, copy_back_to, final, flags, make_data, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="session")
def programs(mojo_program):
    return {name: mojo_program(f"{name}.mojo") for name in ("train_gpt2", "sample_gpt2", "eval_gpt2")}


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture
def other(tmp_path):
    """A tokenizer of as many tokens, which are other texts."""
    path = tmp_path / "other.bin"
    formats.write_tokenizer(path, [bytes([100 + i]) for i in range(V)], 0)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_keeps_its_tokenizer(whole, data):
    assert (whole / "tokenizer.bin").read_bytes() == (data / "tokenizer.bin").read_bytes()
    saved = tomllib.loads((whole / "run.toml").read_text())
    assert (saved["tokenizer"], saved["tokenizer-sha256"]) == ("tokenizer.bin", sha256(data / "tokenizer.bin"))
    for sidecar in whole.glob("extra_*.json"):
        assert json.loads(sidecar.read_text())["tokenizer"] == sha256(data / "tokenizer.bin")


def test_a_moved_run_is_whole(programs, whole, tmp_path, monkeypatch, capsys):
    """Nothing is left where it was made: neither the data nor the working directory."""
    train, sample, evaluate = programs.values()
    (tmp_path / "there/data").mkdir(parents=True)
    make_data(tmp_path / "there/data")
    place = ["-i", "data/train_*.bin", "-j", "data/val_*.bin"]
    # The run's own paths are relative to a folder that will be gone.
    train.output(*flags(tmp_path, None)[4:], *place, "-o", "run", cwd=tmp_path / "there")
    before = sample.output("-e", "run", "-p", "", "-n", 30, cwd=tmp_path / "there")
    moved = copy_back_to(tmp_path / "there/run", 6, tmp_path / "moved")
    shutil.move(tmp_path / "there/run", tmp_path / "elsewhere")
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "there/data", tmp_path / "new/data")
    shutil.rmtree(tmp_path / "there")

    monkeypatch.chdir(tmp_path / "new")
    assert sample.output("-e", "../elsewhere", "-p", "", "-n", 30) == before
    (tmp_path / "new/data/tokenizer.bin").rename(tmp_path / "new/tokenizer_of_data.bin")
    assert "bits per byte" in evaluate.output("-e", "../elsewhere", "-j", "data/val_*.bin", "-t", 8)
    assert main(["export", "../elsewhere", "--to", "hf"]) == 0
    assert "with the vocabulary of ../elsewhere/tokenizer.bin" in capsys.readouterr().out
    error = train.error("-o", "../moved", "-y", 1)
    assert f"{tmp_path}/there/data/train_*.bin" in error
    train.output("-o", "../moved", "-y", 1, *place)
    assert final(moved) == final(whole)


def test_it_goes_on_in_another_working_directory(program, whole, data, tmp_path):
    (tmp_path / "a [b]").mkdir()
    for path in data.glob("*.bin"):
        shutil.copy(path, tmp_path / "a [b]")
    place = ["-i", "train_*.bin", "-j", "val_0.bin"]
    program.output(*flags(data, None)[4:], *place, "-o", "run", "-x", 6, cwd=tmp_path / "a [b]")
    program.output("-o", tmp_path / "a [b]/run", "-y", 1, "-x", 9, cwd=tmp_path)


def test_data_that_are_made_again_change_nothing(programs, data, tmp_path, other):
    shutil.copytree(data, tmp_path / "data")
    programs["train_gpt2"].output(*settings(tmp_path / "data", tmp_path / "run"))
    before = programs["sample_gpt2"].output("-e", tmp_path / "run", "-p", "", "-n", 30)
    shutil.copy(other, tmp_path / "data/tokenizer.bin")
    assert programs["sample_gpt2"].output("-e", tmp_path / "run", "-p", "", "-n", 30) == before
    error = programs["eval_gpt2"].error("-e", tmp_path / "run", "-j", tmp_path / "data/val_0.bin", "-t", 8)
    assert "is not the one that" in error and f"{tmp_path}/data/tokenizer.bin" in error
    # Going on takes the run's own, and a new run from its model would take the one beside the data.
    programs["train_gpt2"].output("-o", tmp_path / "run", "-y", 1, "-x", 5)
    start = settings(tmp_path / "data", None)[:4]
    error = programs["train_gpt2"].error(*start, "-e", tmp_path / "run", "-t", 8, "-o", tmp_path / "new")
    assert "is not the one that" in error and not (tmp_path / "new").exists()


@pytest.mark.parametrize("note", ["sidecar", "run.toml"])
def test_another_tokenizer_is_refused(note, programs, whole, data, tmp_path, other, capsys):
    run = copy_back_to(whole, 6, tmp_path / "run")
    checkpoint = run / "model_00000006.bin"
    if note == "run.toml":
        for sidecar in run.glob("extra_*.json"):
            sidecar.unlink()
        checkpoint = run / "best.bin"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    place = ["-i", data / "train_*.bin", "-j", data / "val_*.bin"]
    errors = [
        programs["sample_gpt2"].error("-e", checkpoint, "--tokenizer", other, "-p", "x"),
        programs["eval_gpt2"].error("-e", checkpoint, "-j", data / "val_0.bin", "--tokenizer", other, "-t", 8),
        programs["train_gpt2"].error(*place, "-e", checkpoint, "-t", 8, "--tokenizer", other),
    ]
    if note == "sidecar":
        errors.append(programs["train_gpt2"].error("-o", run, "-y", 1, "--tokenizer", other))
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "hf"), "--tokenizer", str(other)]) == 1
    errors.append(capsys.readouterr().err)
    for error in errors:
        assert f"{other} (SHA-256 {sha256(other)[:12]}...) is not the one that {checkpoint} was trained with" in error
        assert "give that one with --tokenizer" in error
    # One that has been written over the run's own is noticed too.
    shutil.copy(other, run / "tokenizer.bin")
    assert "is not the one that" in programs["sample_gpt2"].error("-e", checkpoint, "-p", "x")
    shutil.copy(data / "tokenizer.bin", run / "tokenizer.bin")
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_a_run_starts_from_a_run(program, whole, data, tmp_path):
    """As from its newest checkpoint; with its tokenizer, where the data have none."""
    for name in ("train_0", "train_1", "val_0"):
        shutil.copy(data / f"{name}.bin", tmp_path)
    place = ["-i", "train_*.bin", "-j", "val_*.bin", "-b", 2, "-t", 8, "-x", 3, "-v", 0, "-s", 0]
    program.output(*place, "-e", whole, "-o", "a", cwd=tmp_path)
    program.output(*place, "-e", whole / f"model_{STEPS:08}.bin", "-o", "b", cwd=tmp_path)
    a, b = ((tmp_path / name / "model_00000003.bin").read_bytes() for name in "ab")
    assert a == b
    assert (tmp_path / "a/tokenizer.bin").read_bytes() == (data / "tokenizer.bin").read_bytes()
    saved = tomllib.loads((tmp_path / "a/run.toml").read_text())
    assert saved["init"] == str(whole / f"model_{STEPS:08}.bin")
    # Repeated from its settings, wherever that is.
    program.output("--preset", "../a/run.toml", "-o", "c", cwd=(tmp_path / "a"))
    assert (tmp_path / "a/c/model_00000003.bin").read_bytes() == a


def test_a_tokenizer_that_is_no_run_s_stays(program, data, tmp_path, other):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(other, out / "tokenizer.bin")
    error = program.error(*settings(data, out))
    assert f"{out}/tokenizer.bin is there and is not the tokenizer of this run" in error
    assert (out / "tokenizer.bin").read_bytes() == other.read_bytes()


def test_no_tokenizer_stays_none(program, data, tmp_path):
    program.output(*settings(data, tmp_path / "run", "--tokenizer", ""))
    assert not (tmp_path / "run/tokenizer.bin").exists()
    assert tomllib.loads((tmp_path / "run/run.toml").read_text())["tokenizer"] == ""
    assert "tokenizer          none" in program.output("-o", tmp_path / "run", "-y", 1, "-x", 5)
