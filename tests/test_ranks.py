"""Training on several ranks over MPI: the same bits as one process, whatever the number; who differs or dies ends all."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT
from tiny_run import SIZES, checkpoints, copy_back_to, final, log

MPIEXEC = Path(sys.executable).with_name("mpiexec")
STEPS = 9
FLAGS = [
    *SIZES,
    "-b",
    1,
    "-d",
    64,
    "-x",
    STEPS,
    "-n",
    3,
    "-v",
    3,
    "-m",
    5,
    "-s",
    6,
    "-g",
    6,
    "-l",
    3e-3,
    "-u",
    3,
    "-q",
    0.1,
]
FLAGS += ["-c", 0.1, "--grad-clip", 1, "--dropout", 0.1, "--threads", 1]
KINDS = {
    "fp32": ["--replicas", 4],
    "bf16": ["--replicas", 4, "--dtype", "bf16", "--recompute", 1],
    "whole state": ["--replicas", 4, "--zero-stage", 0],
    "muon": ["--replicas", 4, "--optimizer", "muon"],
}
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich")


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def flags(data, out, *more):
    return [str(flag) for flag in ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *FLAGS, "-o", out, *more]]


def start(program, ranks, arguments):
    command = [MPIEXEC, "-n", ranks, program.path, *arguments]
    return subprocess.Popen(
        [str(word) for word in command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process, within=60):
    """Returns the status and what was said; a run that hangs is killed and fails the test."""
    try:
        output = process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


@needs_mpi
def test_sums_over_ranks(mojo_program):
    """What eight replicas have of three million numbers of any size, added up by one, two, four and eight ranks; and texts."""
    program = mojo_program("tests/programs/ranks.mojo")
    hashes = {program.output(8, 20).split()[-1]}
    for ranks in (2, 4, 8):
        status, output = end(start(program, ranks, [8, 20]))
        assert status == 0 and len(output.splitlines()) == ranks, output
        hashes |= {line.split()[-1] for line in output.splitlines()}
    assert len(hashes) == 1


@needs_mpi
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_gives_the_same_bits(kind, program, data, tmp_path):
    program.output(*flags(data, tmp_path / "1", *KINDS[kind]))
    for ranks in (2, 4):
        status, output = end(start(program, ranks, flags(data, tmp_path / str(ranks), *KINDS[kind])))
        assert status == 0, output
        assert final(tmp_path / str(ranks), STEPS) == final(tmp_path / "1", STEPS)


@needs_mpi
def test_gradients_that_leave_during_backward(program, data, tmp_path):
    """Blocks of two million parameters and more, which are sent while those before them are still computed."""
    wide = ["--n-embd", 416, "-x", 3, "-n", 3, "-v", 0, "-s", 0, "--replicas", 4]
    program.output(*flags(data, tmp_path / "1", *wide))
    for ranks in (2, 4):
        status, output = end(start(program, ranks, flags(data, tmp_path / str(ranks), *wide)))
        assert status == 0, output
        for kind in "model", "state":
            (one,), (several,) = [list((tmp_path / name).glob(f"{kind}_*")) for name in ("1", str(ranks))]
            assert several.read_bytes() == one.read_bytes()


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(program, data, tmp_path):
    arguments = KINDS["fp32"]
    status, output = end(start(program, 4, flags(data, tmp_path / "4", *arguments)))
    assert status == 0, output
    one = copy_back_to(tmp_path / "4", 3, tmp_path / "on_one")
    assert "resumed after step 3" in program.output(*flags(data, one, *arguments, "-y", 1))
    assert final(one, STEPS) == final(tmp_path / "4", STEPS)
    two = copy_back_to(tmp_path / "4", 6, tmp_path / "on_two")
    status, output = end(start(program, 2, flags(data, two, *arguments, "-y", 1)))
    assert status == 0 and "resumed after step 6" in output
    assert final(two, STEPS) == final(tmp_path / "4", STEPS)
    error = program.error(*flags(data, one, "--replicas", 2, "-y", 1))
    assert "--replicas 4" in error


@needs_mpi
def test_each_rank_may_save_its_part_of_the_state(program, data, tmp_path):
    """Two write two parts; one process and four ranks go on from them, and who misses a part says which."""
    parts = [*KINDS["fp32"], "--state-parts", 1]
    status, output = end(start(program, 2, flags(data, tmp_path / "two", *parts)))
    assert status == 0, output
    program.output(*flags(data, tmp_path / "one", *KINDS["fp32"]))
    assert (tmp_path / "two" / f"model_{STEPS:08}.bin").read_bytes() == final(tmp_path / "one", STEPS)[
        f"model_{STEPS:08}.bin"
    ]
    states = sorted(path.name for path in (tmp_path / "two").glob("state_*"))
    assert states == [f"state_{step:08}_{rank:05}.bin" for step in (3, 6, 9) for rank in (0, 1)]
    one = copy_back_to(tmp_path / "two", 6, tmp_path / "on_one")
    assert "resumed after step 6" in program.output(*flags(data, one, "--state-parts", 0, "-y", 1))
    assert final(one, STEPS) == final(tmp_path / "one", STEPS)
    assert not (one / f"state_{STEPS:08}_00001.bin").exists()
    four = copy_back_to(tmp_path / "two", 6, tmp_path / "on_four")
    status, output = end(start(program, 4, flags(data, four, "--state-parts", 0, "-y", 1)))
    assert status == 0 and final(four, STEPS) == final(tmp_path / "one", STEPS), output
    short = copy_back_to(tmp_path / "two", 6, tmp_path / "short")
    missing = short / "state_00000006_00001.bin"
    missing.unlink()
    assert f"{missing} is missing" in program.error(*flags(data, short, "-y", 1))


@needs_mpi
def test_parts_of_a_state_are_stripes(program, data, tmp_path):
    """A model of several stripes of 16 blocks of 16,384: two ranks have what the page of formats says, of one process's state."""
    wide = ["--n-layer", 3, "--n-embd", 128, "-x", 2, "-n", 2, "--replicas", 2]
    program.output(*flags(data, tmp_path / "one", *wide))
    status, output = end(start(program, 2, flags(data, tmp_path / "two", *wide, "--state-parts", 1)))
    assert status == 0, output
    name = "model_00000002.bin"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    config, _ = formats.read_checkpoint(tmp_path / "one" / name)
    moments = formats.read_state(tmp_path / "one" / "state_00000002_00000.bin", config)
    blocks = {"m": [], "v": []}
    start_of = 0
    for shape in formats.parameter_shapes(config).values():
        size = math.prod(shape)
        for slot, found in blocks.items():
            tensor = getattr(moments, slot)[start_of : start_of + size]
            found += [tensor[at : at + 16384] for at in range(0, size, 16384)]
        start_of += size
    B = len(blocks["m"])
    assert B >= 33
    left = B - B % 32
    for rank in 0, 1:
        own = [block for block in range(left) if block // 16 % 2 == rank]
        own += range(left + rank * (B - left) // 2, left + (rank + 1) * (B - left) // 2)
        path = tmp_path / "two" / f"state_00000002_{rank:05}.bin"
        scalars = sum(len(blocks["m"][block]) for block in own)
        expected = np.concatenate([blocks[slot][block] for slot in ("m", "v") for block in own])
        assert np.array_equal(np.fromfile(path, "<f4", 2 * scalars, offset=1024), expected)


def test_replicas_learn_from_the_same_tokens_as_one(program, data, tmp_path):
    """Without shuffling, replica r of R takes every R-th batch of B, as llm.c's rank r; together they are R*B in order."""
    common = [
        "-i",
        data / "train_0.bin",
        "-j",
        data / "val_0.bin",
        *SIZES,
        "-x",
        2,
        "-l",
        3e-3,
        "-s",
        0,
        "-v",
        0,
        "--shuffle",
        0,
    ]
    program.output(*common, "-b", 4, "-d", 32, "-o", tmp_path / "one")
    program.output(*common, "-b", 1, "-d", 32, "--replicas", 4, "-o", tmp_path / "four")
    losses = [[line["loss"] for line in log(tmp_path / name) if "loss" in line] for name in ("one", "four")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@needs_mpi
def test_other_data_than_rank_0_are_named(program, data, tmp_path):
    arguments = flags(data, tmp_path / "out", "--replicas", 2)
    other = flags(data, tmp_path / "out", "--replicas", 2, "--seed", 9)
    words = ["-n", 1, program.path, *arguments, ":", "-n", 1, program.path, *other]
    process = subprocess.run(
        [str(word) for word in [MPIEXEC, *words]], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode != 0
    host = os.uname().nodename
    assert f"rank 1 on {host} differs from rank 0 on {host} in flags" in process.stderr + process.stdout
    assert not checkpoints(tmp_path / "out")


@needs_mpi
@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_ends_all(how, program, data, tmp_path):
    out = tmp_path / "out"
    process = start(program, 2, flags(data, out, "-x", 10_000_000, "-n", 50, "-v", 0))
    try:
        while not out.exists() or len(checkpoints(out)) == 0:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=True).stdout.split()
        ranks = [int(pid) for pid in found if Path(f"/proc/{pid}/exe").resolve() == Path(program.path).resolve()]
        assert len(ranks) == 2
        os.kill(max(ranks), how)
        began = time.monotonic()
        status, output = end(process, 30)
        assert time.monotonic() - began < 30
        assert status != 0, output
        if how == signal.SIGSTOP:
            assert "nothing has been heard of rank" in output
    finally:
        process.kill()
        for pid in ranks:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
    last = checkpoints(out)[-1]
    assert f"resumed after step {last}" in program.output(
        *flags(data, out, "-x", last + 1, "--replicas", 2, "-y", 1, "-n", 0, "-v", 0)
    )
