"""What a run keeps where nobody asks, whether there is room for it, and what becomes of it without its folder."""

import os
import shutil
import signal
import subprocess

import pytest

from mojo_programs import TIMEOUT
from test_signals import ENDLESS, good, start
from tiny_run import checkpoints, log, settings


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def test_the_newest_and_the_best_are_kept(program, data, tmp_path):
    """Five minutes have not passed, so the newest is the last; test_keeping.mojo turns the clock."""
    out = tmp_path / "run"
    output = program.output(*settings(data, out, "-v", 1, "-l", 1e-2))
    assert checkpoints(out) == [4]
    assert (out / "best.bin").read_bytes() == (out / "model_00000004.bin").read_bytes()
    assert "checkpoints at validations, at most every 5 minutes, the newest 2 and the best: " in output
    program.output("-o", out, "-y", 1, "-x", 5)
    program.output("-o", out, "-y", 1, "-x", 6)
    assert checkpoints(out) == [5, 6]


def test_without_a_folder_nothing_is_kept(program, data, tmp_path):
    assert "checkpoints" not in program.output(*settings(data, None, "-v", 1), cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a disk")
def test_no_room_is_said_before_it_trains(program, data, tmp_path):
    """A checkpoint of this model takes 97 KB: 12 bytes for each of 8,128 parameters."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        error = program.error(*settings(data, disk / "run"))
        assert f"disk: a checkpoint of this model needs 0.1 MB, {disk}/run has 0.1 MB free" in error
        assert "nothing was trained" in error and not (disk / "run").exists()
        subprocess.run(["mount", "-o", "remount,size=240k", disk], check=True)
        output = program.output(*settings(data, disk / "run"))
        assert "THAT IS NOT ENOUGH" in output
        good(disk / "run", 4)
        # What it replaces makes room.
        program.output(*settings(data, disk / "run", "-y", 0))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "made anew by another"])
def test_a_folder_that_vanishes(anew, program, data, tmp_path):
    """The run is saved beside it, with all that belongs to it, and goes on there to the bits that it would have had."""
    out, rescued = tmp_path / "run", tmp_path / "run-rescued"
    rescued.mkdir()
    process = start(program, settings(data, out, *ENDLESS, "--threads", 1))
    shutil.rmtree(out)
    if anew:
        out.mkdir()
    rescued = tmp_path / "run-rescued-2"
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 1
    [step] = checkpoints(rescued)
    assert f"save: the folder {out} is gone, or another has its name; the run was saved as " in errors
    assert f"{rescued}/model_{step:08}.bin instead; go on with: {program.path} -o {rescued} -y 1" in errors
    assert not list(out.glob("*"))
    good(rescued, step)
    assert [record["step"] for record in log(rescued)] == list(range(1, step + 1))
    program.output("-o", rescued, "-y", 1, "-x", step + 3)
    whole = tmp_path / "whole"
    program.output(*settings(data, whole, "-x", step + 3, "-v", 0))
    name = f"model_{step + 3:08}.bin"
    assert (rescued / name).read_bytes() == (whole / name).read_bytes() and log(rescued) == log(whole)


def test_a_folder_that_vanishes_with_its_own_tokenizer(program, data, tmp_path):
    """Once the run has gone on, its tokenizer is nowhere but in the folder."""
    shutil.copytree(data, tmp_path / "data")
    out = tmp_path / "run"
    program.output(*settings(tmp_path / "data", out))
    (tmp_path / "data/tokenizer.bin").unlink()
    process = start(program, ["-o", out, "-y", 1, *ENDLESS])
    shutil.rmtree(out)
    process.communicate(timeout=TIMEOUT)
    assert (tmp_path / "run-rescued/tokenizer.bin").read_bytes() == (data / "tokenizer.bin").read_bytes()


def test_a_signal_and_no_folder(program, data, tmp_path):
    out = tmp_path / "run"
    process = start(program, settings(data, out, *ENDLESS, "-d", 1600))
    shutil.rmtree(out)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 1 and "run-rescued/model_" in errors
