"""Checkpoints and resuming: whatever happens to a run, the one that goes on from it equals the one left alone."""

import random
import signal
import subprocess
import time

import numpy as np
import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT
from tiny_run import STEPS, checkpoints, copy_back_to, final, flags, log, settings


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def test_what_a_run_leaves(whole):
    assert checkpoints(whole) == list(range(3, STEPS + 1, 3))
    assert not list(whole.glob("*.tmp"))
    steps = [line["step"] for line in log(whole) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert [line["step"] for line in log(whole) if "val_loss" in line] == list(range(0, STEPS + 1, 4))
    assert max(line["epoch"] for line in log(whole) if "loss" in line) == 2
    assert len((whole / "main.log").read_text().splitlines()) == len(log(whole))


@pytest.mark.parametrize("step", [3, 9, 12, 21])
def test_resumed_equals_uninterrupted(step, program, data, whole, tmp_path):
    out = copy_back_to(whole, step, tmp_path / "run")
    output = program.output(*flags(data, out, "-y", 1))
    assert f"resumed after step {step} of {STEPS}" in output
    assert final(out) == final(whole)


def test_the_folder_has_the_settings(program, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    program.output("-o", out, "-y", 1)
    assert final(out) == final(whole)


def test_settings_repeat_a_run(program, whole, tmp_path):
    program.output("--preset", whole / "run.toml", "-o", tmp_path / "again")
    assert final(tmp_path / "again") == final(whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(threads, program, data, whole, tmp_path):
    out = copy_back_to(whole, 9, tmp_path / "run")
    program.output(*flags(data, out, "-y", 1, "--threads", threads))
    assert final(out) == final(whole)


def test_the_end_is_the_end(program, data, whole, tmp_path):
    out = copy_back_to(whole, STEPS, tmp_path / "run")
    assert f"all {STEPS} steps are done" in program.output(*flags(data, out, "-y", 1))
    assert final(out) == final(whole)
    program.output(*flags(data, out, "-y", 1, "-x", STEPS + 2))
    assert checkpoints(out)[-1] == STEPS + 2


def test_the_newest_are_kept(program, data, whole, tmp_path):
    program.output(*flags(data, tmp_path / "run", "-nk", 2))
    assert checkpoints(tmp_path / "run") == [STEPS - 3, STEPS]
    assert len(list((tmp_path / "run").glob("*_000000*"))) == 8
    assert final(tmp_path / "run") == final(whole)


def test_best_is_the_lowest_validation_loss(program, data, whole, tmp_path):
    losses = {line["step"]: line["val_loss"] for line in log(whole) if "val_loss" in line}
    best = min(losses, key=losses.get)
    program.output(*flags(data, tmp_path / "run", "-n", 1))
    assert (whole / "best.bin").read_bytes() == (tmp_path / "run" / f"model_{best:08}.bin").read_bytes()


def test_patience(program, data, tmp_path):
    out = tmp_path / "run"
    output = program.output(*flags(data, out, "-l", 0.3, "-k", "constant", "--patience", 2, "-v", 1))
    losses = [line["val_loss"] for line in log(out) if "val_loss" in line]
    best = min(losses)
    assert losses.index(best) == len(losses) - 3
    assert f"no lower validation loss in 2 validations; the best was {best:.4}"[:60] in output
    assert checkpoints(out)[-1] == len(losses) - 1


def test_a_run_is_not_overwritten_unasked(program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    error = program.error(*flags(data, out))
    assert f"{out} holds a run, saved after step 6; go on with it (--resume 1), replace it (--resume 0)" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    program.output(*settings(data, out, "-y", 0))
    assert checkpoints(out) == [4]


def test_nothing_to_resume_is_a_start(program, data, tmp_path):
    program.output(*settings(data, tmp_path / "run", "-y", 1))
    assert checkpoints(tmp_path / "run") == [4]


# ----- llm.c's files


def test_the_state_is_llm_c_s(whole):
    config, _ = formats.read_checkpoint(whole / "model_00000009.bin")
    state = formats.read_state(whole / "state_00000009_00000.bin", config)
    # 9 steps of two passes over shards of 12 and 9 samples, in whichever order: 18 samples into the first epoch.
    assert (state.step, state.shard, state.processes, state.rank) == (9, 1, 1, 0)
    first = 12 if state.shard_order[0] == 0 else 9
    assert state.sample == 18 - first
    assert sorted(state.shard_order) == [0, 1]
    assert sorted(state.sample_order) == list(range(21 - first))
    # The generator as numpy has it after the draws of one epoch: 1 + 11 + 8.
    referee = np.random.RandomState(42)
    referee.randint(2**32, dtype=np.uint32, size=20)
    np.testing.assert_array_equal(state.rng["words"], referee.get_state()[1])
    assert (state.rng["next"], state.rng["left"], state.rng["matrix"][1]) == (20, 605, 0x9908B0DF)
    assert state.v.min() >= 0 and np.abs(state.m).max() > 0


def test_a_checkpoint_of_llm_c_is_resumed(program, data, whole, tmp_path):
    """Its model is bfloat16, the float32 parameters are in the state, and it knows no sidecar."""
    out = tmp_path / "run"
    out.mkdir()
    config, tensors = formats.read_checkpoint(whole / "model_00000009.bin")
    state = formats.read_state(whole / "state_00000009_00000.bin", config)
    state.master = np.concatenate([tensors[name].ravel() for name in formats.parameter_shapes(config)])
    formats.write_checkpoint(out / "model_00000009.bin", config, tensors, "bfloat16")
    formats.write_state(out / "state_00000009_00000.bin", state)
    (out / "DONE_00000009").touch()
    program.output(*flags(data, out, "-y", 1))
    name = f"state_{STEPS:08}_00000.bin"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [line["loss"] for line in log(out) if "loss" in line] == [
        line["loss"] for line in log(whole) if "loss" in line and line["step"] > 9
    ]


def test_unshuffled(program, data, tmp_path):
    program.output(*flags(data, tmp_path / "whole", "--shuffle", 0))
    out = copy_back_to(tmp_path / "whole", 9, tmp_path / "run")
    program.output(*flags(data, out, "--shuffle", 0, "-y", 1))
    assert final(out) == final(tmp_path / "whole")


def test_random_windows(program, data, tmp_path):
    """llm.c's state has no place for this order: the sidecar knows it."""
    program.output(*flags(data, tmp_path / "whole", "--shuffle", 2))
    out = copy_back_to(tmp_path / "whole", 9, tmp_path / "run")
    program.output("-o", out, "-y", 1)
    assert final(out) == final(tmp_path / "whole")


# ----- what does not fit


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-b", 4], "samples in the current shard, but"),
        (["-t", 4], "samples in the current shard, but"),
        (["--shuffle", 0], "was saved with --shuffle 1"),
        (["--shuffle", 2], "was saved with --shuffle 1, this run has --shuffle 2"),
        (["--overfit", 1], "was saved with --shuffle 1"),
        (["-i", "{data}/train_0.bin"], "the data has 1 shards, but"),
    ],
)
def test_other_data(more, message, program, data, whole, tmp_path):
    out = copy_back_to(whole, 9, tmp_path / "run")
    error = program.error(*flags(data, out, "-y", 1, *(str(word).format(data=data) for word in more)))
    assert message in error and "state_00000009_00000.bin" in error
    assert checkpoints(out) == [3, 6, 9]


# ----- a run that is killed


def kill_again_and_again(program, data, whole, out, kills, seed):
    """Starts a run that saves every step and kills it after a random time, until it is through."""
    dice = random.Random(seed)
    arguments = [str(word) for word in [program.path, *flags(data, out, "-n", 1, "-nk", 2, "-y", 1, "-x", 150)]]
    for _ in range(kills):
        process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = checkpoints(out)
        for step in steps[-1:]:
            config, _ = formats.read_checkpoint(out / f"model_{step:08}.bin")
            formats.read_state(out / f"state_{step:08}_00000.bin", config)
    program.output(*arguments[1:])
    assert final(out, 150) == final(whole, 150)
    assert checkpoints(out) == [149, 150]
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.fixture(scope="module")
def long_run(program, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "run"
    program.output(*flags(data, out, "-n", 1, "-nk", 2, "-x", 150))
    return out


@pytest.mark.parametrize("seed", [1])
def test_kill_9(seed, program, data, long_run, tmp_path):
    kill_again_and_again(program, data, long_run, tmp_path / "run", 5, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_kill_9_fifty_times(seed, program, data, long_run, tmp_path):
    kill_again_and_again(program, data, long_run, tmp_path / "run", 10, seed)
