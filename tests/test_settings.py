"""Settings: presets, run.toml, what is wrong in them, and the plan that --dry-run makes of them."""

import os
import re
import subprocess
import sys

import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT, ROOT
from tiny_run import V, log, make_data, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = sorted((ROOT / "presets").glob("*.toml"))


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    formats.write_tokens(folder / "long.bin", [1] * 20_000)
    return folder


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_good(preset, program, data, tmp_path):
    """Every name and value is one that the trainer takes, and every preset is TOML to others too."""
    values = tomllib.loads(preset.read_text())
    assert not any(isinstance(value, dict | list) for value in values.values())
    flags = ["-i", data / "long.bin", "-j", data / "long.bin", "-e", "d12"] if "init" in values else []
    flags = flags or ["-i", data / "long.bin", "-j", data / "long.bin", "--vocab-size", V]
    plan = program.output("--preset", preset, *flags, "--tokenizer", "", "--dry-run", cwd=tmp_path)
    step = re.search(r"step +(\d+) x B=(\d+) x T=(\d+) = ([\d,]+) tokens", plan)
    assert (int(step[2]), int(step[3])) == (values["batch-size"], values["seq-len"])
    assert int(step[4].replace(",", "")) == values.get("total-batch-size", int(step[2]) * int(step[3]))


def test_presets_are_found_by_name(program, data, tmp_path):
    """In presets/ of the current folder, or beside the program's."""
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text("max-steps = 2\n")
    output = program.output(*settings(data, None)[:-4], "--preset", "mine", "-s", 0, cwd=tmp_path)
    assert "step    2/2 |" in output
    error = program.error("--preset", "none", cwd=tmp_path, status=2)
    assert "no preset none: neither the file none nor presets/none.toml is there" in error


def test_flags_count_more_than_a_preset(program, data, tmp_path):
    (tmp_path / "p.toml").write_text('max-steps = 3  # few\nlearning-rate = 0.5\n"schedule" = 1\n')
    error = program.error("--preset", tmp_path / "p.toml", status=2)
    assert 'line 3: unknown name "schedule"' in error
    (tmp_path / "p.toml").write_text("max-steps = 3  # few\n\n  learning-rate=1_0.5\ndecay-all = true\n")
    preset = ["--preset", tmp_path / "p.toml"]
    output = program.output(*preset, *settings(data, tmp_path / "run", "-l", 1e-3))
    assert "step    4/4 |" in output and "| lr 1.00e-03 |" in output
    output = program.output(*settings(data, None)[:-4], "-s", 0, *preset)
    assert "step    3/3 |" in output and "| lr 1.05e+01 |" in output
    saved = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert (saved["decay-all"], saved["learning-rate"], saved["max-steps"], saved["shuffle"]) == (True, 0.001, 4, 1)
    assert not saved.keys() & {"out", "preset", "resume", "dry-run"}


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "max-stps = 3": "line 1: unknown name max-stps; did you mean max-steps?",
        "\nmax-steps 3": "line 2: expected `name = value`, found 'max-steps 3'",
        "max-steps = 3\nmax-steps = 4": "line 2: max-steps is there twice",
        "max-steps = ": "line 1: expected a number, true, false, or a text in quotes, found ''",
        "max-steps = three": "line 1: expected a number, true, false, or a text in quotes, found 'three'",
        "max-steps = 3 4": "found '3 4'",
        "[model]": "expected `name = value`, found '[model]'",
        "tokenizer = 'x": "line 1: the text 'x does not end",
        "tokenizer = 'x' y": "line 1: expected the end of the line, found 'y'",
        'tokenizer = "a\\q"': "after a backslash",
        "decay-all = 2": "line 1: decay-all: expected true or false, found 2",
        "max-steps = 1.5": "p.toml: max-steps: expected an integer of at least -1, got '1.5'",
        "schedule = 'step'": "p.toml: schedule: expected cosine|linear|constant|wsd, got 'step'",
        "learning-rate = -1": "p.toml: learning-rate: expected a number of at least 0.0, got '-1'",
    }.items(),
)
def test_what_is_wrong_in_a_file_is_said(text, message, program, data, tmp_path):
    (tmp_path / "p.toml").write_text(text)
    error = program.error(*settings(data, None)[:-4], "--preset", tmp_path / "p.toml", status=2)
    assert error.startswith("train_gpt2: ") and message in error and f"{tmp_path}/p.toml" in error
    assert error.endswith("`train_gpt2 --help` lists the flags\n")


def test_the_start_shows_what_is_used(program, data, tmp_path):
    """Not only what was given: a default may stand for a file that is found, or for a size that follows from others."""

    def shown(*flags):
        settings_block = program.output(*flags).split("\n\n")[0]
        return dict(line.split(maxsplit=1) for line in settings_block.splitlines())

    run = tmp_path / "run"
    first = shown(*settings(data, run, "--shuffle", 2, "-v", 0))
    sizes = {"n-layer": "2", "n-head": "2", "n-embd": "16", "block-size": "8", "vocab-size": str(V)}
    found = {"tokenizer": f"{data}/tokenizer.bin", "total-batch-size": "16", "out": str(run), "max-steps": "4"}
    assert first.items() >= (sizes | found | {"init": "random"}).items()
    checkpoint = f"{run}/model_00000004.bin"
    flags = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", "-e", checkpoint, "-b", 2, "-t", 4, "-x", -1]
    second = shown(*flags, "-s", 0, "-v", 0, "--threads", 3, "-d", 24)
    found = {"total-batch-size": "24", "max-steps": "14", "threads": "3", "out": "none"}
    assert second.items() >= (sizes | found | {"init": checkpoint}).items()
    assert shown("-o", run, "-y", 1).items() >= (sizes | {"init": checkpoint, "resume": "1"}).items()
    assert shown(*settings(data, None, "-e", "d6", "--tokenizer", "", "-x", 0))["tokenizer"] == "none"


def test_a_plan_trains_nothing(program, data, tmp_path):
    plan = program.output(*settings(data, tmp_path / "run", "-d", 32, "--dry-run"))
    assert not (tmp_path / "run").exists()
    rows = dict(line.split(maxsplit=1) for line in plan.splitlines())
    config = formats.ModelConfig(max_seq_len=8, vocab_size=V, num_layers=2, num_heads=2, channels=16)
    assert rows["parameters"] == f"{formats.num_parameters(config):,}"
    assert rows["step"] == "2 x B=2 x T=8 = 32 tokens"
    assert rows["time"].startswith("about ")


def test_a_plan_of_a_model_that_fits_nowhere(program, data):
    """Planned in no time and memory: GPT-2 XL at B=64, T=1024."""
    flags = ["-i", data / "long.bin", "-j", data / "long.bin", "--tokenizer", "", "-e", "d48", "-b", 8, "-t", 1024]
    plan = program.output(*flags, "--block-size", 1024, "--dry-run")
    assert "parameters  1,557,686,400" in plan


def test_recomputing_takes_a_fifth(program, data):
    """GPT-2 774M at B=8, T=1024: both plans, each of which names the other, and activations as they are counted."""
    flags = ["-i", data / "long.bin", "-j", data / "long.bin", "--tokenizer", "", "-e", "d36", "-b", 8, "-t", 1024]
    plans = [program.output(*flags, "--recompute", i, "--dry-run") for i in (0, 1)]
    found = [[int(each.replace(",", "")) for each in re.findall(r"activations ([\d,]+) MB", plan)] for plan in plans]
    assert found[0] == found[1][::-1]
    # What blocks keep: 40 bytes a position and channel, or 4 and the room of one block, to some thousandths for statistics.
    unit = 8 * 1024 * 1280 / 1e6
    assert found[0][0] - found[0][1] == pytest.approx((36 * 40 - (36 * 4 + 36)) * unit, rel=0.01)
    total = int(re.search(r"\nmemory +([\d,]+) MB", plans[1])[1].replace(",", ""))
    assert total < 22_000


def planned_activations(program, *flags):
    """MB, from the plan."""
    return int(re.search(r"activations ([\d,]+) MB", program.output(*flags, "--dry-run"))[1].replace(",", ""))


def peak_memory(program, *flags):
    """MB that a run has had resident at most."""
    command = [str(word) for word in [program.path, *flags]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024 / 1e6


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_memory_grows_with_the_context_not_with_its_square(dtype, program, data):
    """A head's T x T scores would take 268 MB at T=8,192, and 4 MB at T=1,024."""
    flags = ["-i", data / "long.bin", "-j", data / "long.bin", "--tokenizer", "", "--vocab-size", V, "-b", 1]
    flags += ["--dtype", dtype, "--block-size", 8192, "-v", 0, "-s", 0, "-x", 1]
    # The 6 layers of 384 channels that the plan is for.
    large = [*flags, "--n-layer", 6, "--n-head", 6, "--n-embd", 384]
    plans = [planned_activations(program, *large, "-t", T) for T in (1024, 2048, 4096, 8192)]
    step = plans[1] - plans[0]
    assert step > 50
    assert plans == pytest.approx([plans[0], plans[0] + step, plans[0] + 3 * step, plans[0] + 7 * step], abs=8)
    # What a step really takes is what was planned for it; of a model so small that this takes a second.
    small = [*flags, "--n-layer", 1, "--n-head", 1, "--n-embd", 16]
    planned = [planned_activations(program, *small, "-t", T) for T in (1024, 8192)]
    peaks = [peak_memory(program, *small, "-t", T) for T in (1024, 8192)]
    assert peaks[1] - peaks[0] < planned[1] - planned[0] + 30


def test_help_lists_every_flag_once(program):
    text = program.output("--help")
    flags = re.findall(r"^ +(?:-\w+ )?--([\w-]+)", text, re.M)
    assert len(flags) == len(set(flags)) and {"resume", "keep", "preset", "dry-run", "patience"} <= set(flags)
    letters = re.findall(r"^ +-(\w+) --", text, re.M)
    assert len(letters) == len(set(letters))
    assert set("i j e o n y b t d x k l u q c v m s g a".split() + ["nk", "sl", "sg"]) <= set(letters)
    assert max(len(line) for line in text.splitlines()) <= 130


def test_overfitting(program, data, tmp_path):
    program.output(*settings(data, tmp_path / "run", "-a", 1, "-x", 60, "-l", 0.01))
    steps = [line for line in log(tmp_path / "run") if "loss" in line]
    assert steps[-1]["loss"] < steps[0]["loss"] / 5
    assert {line["sample"] for line in steps} == {1}
