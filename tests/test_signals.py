"""What stops a run from outside: signals, disks, folders. And divergence. The last good checkpoint survives it all."""

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT, TIMEOUT, wait_for
from tiny_run import STEPS, checkpoints, copy_back_to, final, flags, log, settings

NOBODY = 65534
ENDLESS = ["-x", 1_000_000_000, "-v", 0]


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def start(program, arguments, **options):
    """Starts a run and returns it when it has taken a step."""
    command = [str(word) for word in [program.path, *arguments]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "env": ENVIRONMENT}
    process = subprocess.Popen(command, **(pipes | options))
    for line in process.stdout:
        if line.startswith("step "):
            break
    return process


def is_pending(process, number):
    """Tells whether a signal is still on its way to a process; of two of a kind on their way only one arrives."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return any(int(mask, 16) >> number - 1 & 1 for mask in re.findall(r"^(?:Shd|Sig)Pnd:\s*(\w+)$", status, re.M))


def good(out, step):
    """Checks that a checkpoint is whole."""
    config, _ = formats.read_checkpoint(out / f"model_{step:08}.bin")
    assert formats.read_state(out / f"state_{step:08}_00000.bin", config).step == step
    assert (out / f"DONE_{step:08}").exists() and (out / f"extra_{step:08}.json").exists()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_a_run_after_its_step(number, name, program, data, tmp_path):
    out = tmp_path / "run"
    process = start(program, settings(data, out, *ENDLESS))
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (128 + number, "")
    [step] = checkpoints(out)
    good(out, step)
    assert output.endswith(
        f"stopped by {name} after step {step} of 1000000000; go on with: {program.path} -o {out} -y 1\n"
    )


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(delay, program, data, whole, tmp_path):
    out = tmp_path / "run"
    process = start(program, flags(data, out))
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, 130)
    program.output("-o", out, "-y", 1)
    assert final(out) == final(whole)


def test_without_a_folder_nothing_is_saved(program, data):
    process = start(program, settings(data, None, *ENDLESS))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=TIMEOUT)[0].endswith("; nothing was saved: no --out was given\n")
    assert process.returncode == 143


def test_the_second_ctrl_c_stops_at_once(program, data, whole, tmp_path):
    """The sample is so long that the step after it is never reached."""
    out = copy_back_to(whole, 6, tmp_path / "run")
    process = start(program, flags(data, out, "-y", 1, *ENDLESS, "-s", 8, "-g", 1_000_000_000, "-n", 2))
    while process.stdout.readline() != "--- sample\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    wait_for(lambda: not is_pending(process, signal.SIGINT))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 130
    assert checkpoints(out) == [3, 6]
    assert errors == (
        f"stopped at once; {out}/model_00000006.bin is the last checkpoint; go on with: {program.path} -o {out} -y 1\n"
    )
    good(out, 6)


@pytest.mark.parametrize(("saved", "step"), [(6, 8), (21, STEPS)], ids=["on the way", "at the end"])
def test_a_validation_that_is_stopped_is_made_by_the_resumed_run(saved, step, program, data, whole, tmp_path):
    """A validation without an end: had the signal to wait for it, this test would too."""
    out = copy_back_to(whole, saved, tmp_path / "run")
    command = [program.path, *flags(data, out, "-y", 1, "-m", 2_000_000_000)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "env": ENVIRONMENT}
    process = subprocess.Popen([str(word) for word in command], **pipes)
    while not process.stdout.readline().startswith(f"step {step:4}/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (130, "")
    assert "val loss" not in output
    assert f"stopped by Ctrl-C after step {step} of {STEPS}; go on with: " in output
    assert checkpoints(out)[-1] == step
    program.output("-o", out, "-y", 1, "-m", 2)
    assert final(out) == final(whole)
    # Now all is done, and stays done.
    assert f"all {STEPS} steps are done" in program.output("-o", out, "-y", 1)
    assert final(out) == final(whole)


def test_a_run_without_a_terminal_outlives_it(program, data, tmp_path):
    process = start(program, settings(data, tmp_path / "run", *ENDLESS, "--threads", 1))
    process.send_signal(signal.SIGHUP)
    # It has handled the signal, and steps have been taken since.
    wait_for(lambda: not is_pending(process, signal.SIGHUP))
    steps = len(log(tmp_path / "run"))
    wait_for(lambda: len(log(tmp_path / "run")) > steps)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143


# ----- on a terminal


def test_closing_the_terminal_stops_the_run(program, data, tmp_path):
    status, shown = program.on_terminal(*settings(data, tmp_path / "run", *ENDLESS), at="| loss", number=signal.SIGHUP)
    assert status == 129
    assert "stopped by SIGHUP after step" in shown
    good(tmp_path / "run", checkpoints(tmp_path / "run")[0])


def test_a_terminal_has_colours_and_a_live_line(program, data):
    status, shown = program.on_terminal(*settings(data, None, "-v", 2))
    assert status == 0
    rate = r"\d+ tok/s \| \d+(\.\d)?% peak \| ETA \d+:\d\d"
    assert re.search(rf"step    1/4 \| loss \d\.\d+ \| lr 1.0e-04 \| {rate}\r\x1b\[K", shown)
    validation = (
        r"step    4/4 \| train \d\.\d+ \| val loss \x1b\[3[23]m\d\.\d+\x1b\[0m \| perplexity \d+\.\d+ \| \d+:\d\d\r\n"
    )
    assert re.search(rf"step    4/4 \| loss [^\r\n]*\r\x1b\[K{validation}", shown)


def test_a_pipe_gets_some_hundred_lines(program, data, tmp_path):
    output = program.output(*settings(data, tmp_path / "run", "-x", 3000, "-v", 10, "-m", 1))
    steps = [int(step) for step in re.findall(r"^step +(\d+)/3000 \| loss ", output, re.M)]
    assert steps[:12] == [*range(1, 11), 34, 67] and steps[-1] == 3000 and len(steps) == 100
    validations = re.findall(r"^val loss ", output, re.M)
    assert 60 <= len(validations) <= 110
    assert len(output.splitlines()) < 270
    # The log has them all.
    assert len(log(tmp_path / "run")) == 3000 + 301


def test_the_end_says_what_to_do_next(program, data, tmp_path):
    out = tmp_path / "a run"
    output = program.output(*settings(data, out))
    commands = dict(re.findall(r"^(sample|plot|go on): +(.+)$", output, re.M))
    assert commands["sample"] == f"python -m llm_mojo sample -e '{out}'"
    assert commands["plot"] == f"python -m llm_mojo plot '{out}'"
    assert subprocess.run(commands["go on"], shell=True, env=ENVIRONMENT, capture_output=True).returncode == 0
    assert checkpoints(out)[-1] == 8
    assert "go on:" not in program.output(*settings(data, None))


def test_no_colours_where_none_are_wanted(program, data):
    assert "\x1b[1m" not in program.on_terminal(*settings(data, None), NO_COLOR="1")[1]
    assert "\x1b" not in program.output(*settings(data, None))


# ----- disks and folders


def no_file_beyond(size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("size", [20_000, 60_000], ids=["the model", "the state"])
def test_a_file_that_cannot_grow(size, program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    (out / "best.bin").unlink()
    error = program.error(*flags(data, out, "-y", 1, "-v", 0), preexec_fn=no_file_beyond(size))
    assert "save: cannot write" in error or "write_checkpoint: cannot write" in error
    assert "File too large" in error and "unchanged" in error
    assert checkpoints(out) == [3, 6] and not list(out.glob("*.tmp"))
    program.output("-o", out, "-y", 1, "-v", 4)
    assert checkpoints(out)[-1] == STEPS


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a disk")
def test_a_full_disk(program, data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        error = program.error(*flags(data, disk / "run"))
        assert "cannot write" in error and "No space left" in error
        steps = checkpoints(disk / "run")
        assert steps and steps[-1] < STEPS
        good(disk / "run", steps[-1])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_folder_that_vanishes(program, data, tmp_path):
    out = tmp_path / "run"
    process = start(program, settings(data, out, *ENDLESS))
    shutil.rmtree(out)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 1
    assert f"save: the folder {out} is gone" in errors
    assert not out.exists()


@pytest.fixture
def public(data):
    """A folder that every user may enter, with the data."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(data, folder / "data")
    (folder / "data").chmod(0o755)
    yield folder
    shutil.rmtree(folder)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root runs programs as another user")


@needs_root
def test_a_folder_that_may_not_be_written(program, public, whole):
    out = copy_back_to(whole, 6, public / "run")
    for path in out.iterdir():
        path.chmod(0o644)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for more in (["-y", 1], ["-y", 0]):
        error = program.error(*flags(public / "data", out, *more), user=NOBODY)
        assert "cannot write" in error and "Permission denied" in error
    error = program.error(*settings(public / "data", out / "below"), user=NOBODY)
    assert f"cannot make the folder {out / 'below'}" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@needs_root
def test_data_that_may_not_be_read(program, public):
    (public / "data" / "val_0.bin").chmod(0)
    error = program.error(*settings(public / "data", None), user=NOBODY)
    assert "data: cannot open" in error and "Permission denied" in error


@needs_root
def test_a_folder_that_becomes_read_only(program, public):
    out = public / "run"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    process = start(program, settings(public / "data", out, *ENDLESS, "-n", 50), user=NOBODY)
    wait_for(lambda: checkpoints(out))
    out.chmod(0o555)
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 1
    assert "cannot write" in errors and "Permission denied" in errors
    good(out, checkpoints(out)[-1])


# ----- divergence


def test_divergence_leaves_the_last_good_checkpoint(program, data, tmp_path):
    """A learning rate beyond reason, after steps that do no harm."""
    out = tmp_path / "run"
    program.output(*settings(data, out, "-n", 1, "-v", 0))
    error = program.error("-o", out, "-y", 1, "-x", 2000, "-l", 1e38)
    assert "the model has diverged; use a lower --learning-rate" in error
    last = checkpoints(out)[-1]
    assert last == 4
    good(out, last)
    assert f"{out}/model_{last:08}.bin is the last checkpoint" in error and f"-o {out} -y 1" in error
