"""Mistakes that are easily made, and the words that lead out of them."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from llm_mojo.__main__ import main
from mojo_programs import ENVIRONMENT, ROOT
from tiny_run import V, checkpoints, copy_back_to, flags, settings


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="session")
def sample(mojo_program):
    return mojo_program("sample_gpt2.mojo")


def test_no_name_of_a_folder(program, data):
    error = program.error(*settings(data, None), "-o", "", status=2)
    assert "--out: expected the name of a folder, got ''; leave it out to keep nothing" in error


def test_a_folder_of_runs_is_no_run(program, sample, whole):
    error = sample.error("-e", whole.parent, "-p", "x")
    assert f"{whole.parent}: a folder of runs; name one of them, as {whole}" in error
    error = program.error("-e", whole.parent, status=1)
    assert f"a folder of runs; name one of them, as {whole}" in error


def test_an_exported_folder_is_no_run(sample, whole, tmp_path):
    assert main(["export", str(whole), "--to", str(tmp_path / "hf")]) == 0
    error = sample.error("-e", tmp_path / "hf", "-p", "x")
    command = re.search(r"`python -m llm_mojo (weights \S+ --out \S+)` makes a checkpoint of it", error)[1]
    assert main(command.split()) == 0
    assert sample.output("-e", tmp_path / "hf.bin", "-p", "", "-n", 3)


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_the_newest_checkpoint_is_damaged(damage, program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    model = out / "model_00000006.bin"
    model.write_bytes(model.read_bytes()[:-5]) if damage == "cut off" else model.unlink()
    error = program.error("-o", out, "-y", 1)
    done = re.search(r"\(to go on from an earlier checkpoint, remove (\S+)\)", error)[1]
    os.remove(done)
    program.output("-o", out, "-y", 1, "-x", 7)
    assert checkpoints(out) == [3, 6, 7]


def test_a_run_without_its_settings_says_so(program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    (out / "run.toml").unlink()
    result = program.run(*flags(data, out, "-y", 1, "-x", 7))
    assert result.returncode == 0
    assert f"note: {out} has no run.toml: what is not given as a flag is the default" in result.stderr


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.toml")))
def test_presets_name_the_command_that_makes_their_data(preset, program, tmp_path):
    if preset == "gpt2-finetune":
        (tmp_path / "gpt2_124M.bin").write_bytes(b"")
        pytest.skip("it looks for GPT-2's weights first, and says what downloads them")
    error = program.error("--preset", ROOT / f"presets/{preset}.toml", cwd=tmp_path)
    assert "the data of this preset are not here; make them with: python " in error


@pytest.mark.parametrize("preset", ["shakespeare-char", "pydocs-small", "gpt2-124M-fineweb"])
def test_presets_are_planned_without_their_data(preset, program, tmp_path):
    result = program.run("--preset", ROOT / f"presets/{preset}.toml", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0 and "the data are not here yet" in result.stderr
    assert re.search(r"^time +about ", result.stdout, re.M) and not list(tmp_path.iterdir())


def test_the_tokenizer_is_the_wrong_one(program, data, tmp_path):
    (tmp_path / "text.txt").write_text("A text of some length that is long enough to be cut into two parts. " * 20)
    assert main(["prepare", str(tmp_path / "text.txt"), "--tokenizer", "byte", "--out", str(tmp_path / "d")]) == 0
    place = ["-i", tmp_path / "d/*_train.bin", "-j", tmp_path / "d/*_val.bin", "-b", 1, "-t", 8, "--n-embd", 16]
    error = program.error(*place, "--n-head", 2, "--tokenizer", data / "tokenizer.bin")
    assert f"{data}/tokenizer.bin has {V} tokens" in error and "give the tokenizer.bin beside the data" in error


def test_prepared_data_are_not_replaced_by_another_vocabulary(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("A text of some length that is long enough to be cut into two parts. " * 20)
    command = ["prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "d"), "--tokenizer"]
    assert main([*command, "byte"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    assert main([*command, "char"]) == 1
    assert "holds this text with the tokenizer byte, not char; choose another folder (--out)" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    assert main([*command, "char", "--force"]) == 0


def test_what_fails_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("short")
    assert main(["prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "d")]) == 1
    assert not (tmp_path / "d").exists()
    (tmp_path / "mine").mkdir()
    assert main(["prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "mine")]) == 1
    assert (tmp_path / "mine").exists()


def test_help_without_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')\n")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'pysrc'}"}
    command = [sys.executable, "-m", "llm_mojo", "reference"]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "--spread" in result.stdout
    result = subprocess.run([*command, "--init", "d6"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "needs the Python package torch" in result.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_prompt_keeps_its_dollar():
    """What make would run, run: the words as the program gets them."""
    plan = ["make", "-n", "-o", ".venv/.ready", "-o", "build/sample_gpt2", "sample", "PROMPT=$HOME $(x) 'a' \"b\""]
    # Of `make test` nothing, in which this may run.
    outside = {name: value for name, value in ENVIRONMENT.items() if "MAKE" not in name and name != "MFLAGS"}
    recipe = subprocess.run(plan, capture_output=True, text=True, cwd=ROOT, env=outside).stdout
    words = next(line for line in recipe.splitlines() if "--prompt" in line).partition("--init")[2]
    shell = ["make", "-f", "-", "PROMPT=$HOME $(x) 'a' \"b\""]
    makefile = "override export PROMPT := $(value PROMPT)\nall:\n\t@printf '%s\\n' --init " + words.replace("$", "$$")
    shown = subprocess.run(shell, input=makefile, capture_output=True, text=True, cwd=ROOT, env=outside).stdout
    assert shown.splitlines()[2:4] == ["--prompt", "$HOME $(x) 'a' \"b\""]
