"""--max-minutes: a run that chose its steps by the clock is repeated and resumed to the bit. How long it took decides nothing here."""

import math
import re
import shutil

import pytest

from llm_mojo.run_log import read_settings
from tiny_run import SIZES, checkpoints, final, log, make_data, settings

COSINE = ["-l", "3e-3", "-k", "cosine", "-q", 0.1, "-n", 1, "-nk", 0]


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def flags(data, out, *more):
    """A run that is told no number of steps."""
    files = ["-i", data / "train_*.bin", "-j", data / "val_*.bin"]
    return [*files, *SIZES, *COSINE, "-s", 0, "-v", 50, "-o", out, *more]


@pytest.mark.parametrize("warmup", [0, 10**6])
def test_repeated_to_the_bit(warmup, program, data, tmp_path):
    more = ["-u", warmup] if warmup else []
    limited = flags(data, "a", "--max-minutes", 0.004, "-n", 0, *more)
    output = program.output(*limited, cwd=tmp_path)
    found = read_settings(tmp_path / "a/run.toml")
    (step,) = checkpoints(tmp_path / "a")
    assert re.search(r"^[\d,]+ steps fit into 0\.004 minutes, after \d+ of them$", output, re.M)
    assert found["max-steps"] == step and found["step-plan"].split(":")[-1] == f"{step}"
    program.output("--preset", "a/run.toml", "-o", "b", cwd=tmp_path)
    names = [f"model_{step:08}.bin", f"state_{step:08}_00000.bin", f"extra_{step:08}.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert log(tmp_path / "a") == log(tmp_path / "b")
    # Chosen before the decay, the number is as good as one that was known from the start.
    if warmup:
        program.output(*flags(data, "c", "-x", step, "-n", 0, *more), cwd=tmp_path)
        assert (tmp_path / "a" / names[0]).read_bytes() == (tmp_path / "c" / names[0]).read_bytes()


PLAN = "3:30,9:16,12:24"


@pytest.fixture(scope="module")
def planned(program, data, tmp_path_factory):
    """A run whose number of steps was changed twice while its rate went down."""
    folder = tmp_path_factory.mktemp("planned")
    output = program.output(*flags(data, "a", "-u", 5, "-v", 4, "--step-plan", PLAN), cwd=folder)
    return folder, output


def test_the_rate_of_a_plan(planned):
    folder, output = planned
    decays = [(5, 30, 0.0), (9, 16, 4 / 25), (12, 24, 4 / 25 + 21 / 25 * 3 / 7)]
    for record in log(folder / "a"):
        if "lr" in record:
            step = record["step"] - 1
            start, end, before = [decay for decay in decays if decay[0] <= max(step, 5)][-1]
            progress = before + (1 - before) * (step - start) / (end - start)
            rate = 3e-4 + 2.7e-3 * 0.5 * (1 + math.cos(math.pi * progress))
            assert record["lr"] == pytest.approx(3e-3 * (step + 1) / 5 if step < 5 else rate, rel=1e-6)
    assert checkpoints(folder / "a")[-1] == 24
    assert "steps fit into" not in output


@pytest.mark.parametrize("step", [2, 10, 23])
def test_resumed_to_the_bit(step, planned, program, tmp_path):
    folder, _ = planned
    shutil.copytree(folder / "a", tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        found = re.fullmatch(r"(?:model|state|extra|DONE)_(\d{8}).*", path.name)
        if found and int(found[1]) > step:
            path.unlink()
    program.output("-o", "a", "-y", 1, cwd=tmp_path)
    assert final(tmp_path / "a", 24) == final(folder / "a", 24)


def test_a_flag_counts_more_than_a_file(program, data, tmp_path):
    (tmp_path / "preset.toml").write_text('max-minutes = 100\nstep-plan = "1:5"\n')
    run = settings(data, "out", "--preset", "preset.toml")
    at = run.index("-x")
    program.output(*run[:at], "-s", 0, "-o", "plan", "--preset", "preset.toml", cwd=tmp_path)
    assert checkpoints(tmp_path / "plan") == [5]
    program.output(*run, cwd=tmp_path)
    found = read_settings(tmp_path / "out/run.toml")
    assert checkpoints(tmp_path / "out") == [4] and found["max-minutes"] == 0 and "step-plan" not in found
    # A resumed run that is to take more steps takes them.
    program.output("-o", "plan", "-y", 1, "-x", 7, cwd=tmp_path)
    assert checkpoints(tmp_path / "plan") == [5, 7]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-minutes", 1, "-x", 3], "--max-minutes: it chooses the number of steps, which --max-steps gives"),
        (["--max-minutes", -1], "--max-minutes: expected a number of at least 0"),
        (["--step-plan", "3"], "--step-plan: expected STEP:STEPS"),
        (["--step-plan", "3:2"], "--step-plan: expected STEP:STEPS"),
        (["--step-plan", "3:9,2:8"], "--step-plan: expected STEP:STEPS"),
        (["--step-plan", "3:9,x:8"], "--step-plan: expected STEP:STEPS"),
        (["--step-plan", "3:99999999999"], "--step-plan: expected STEP:STEPS"),
    ],
)
def test_what_is_refused(more, message, program, data, tmp_path):
    assert message in program.error(*flags(data, "a", *more), status=2, cwd=tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_dry_run_expects_as_many_steps_as_fit(program, data, tmp_path):
    output = program.output(*flags(data, "a", "--max-minutes", 3, "--dry-run"), cwd=tmp_path)
    # Beyond the 40 of the default, on any machine.
    assert int(re.search(r"([\d,]+) steps$", output, re.M)[1].replace(",", "")) > 10_000
