"""The programs run from source, in the root of the tree, without a build."""

import subprocess

import pytest

from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT

PROGRAMS = ["train_gpt2.mojo", "test_gpt2.mojo"]


@pytest.fixture(scope="module")
def started():
    """Starts them all at once: compiling is what takes the time."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = {
        source: subprocess.Popen(["mojo", source, "--help"], cwd=ROOT, env=ENVIRONMENT, **pipes) for source in PROGRAMS
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("source", PROGRAMS)
def test_help(source, started):
    output, errors = started[source].communicate(timeout=TIMEOUT)
    assert started[source].returncode == 0, errors
    assert output.startswith(f"usage: {source.removesuffix('.mojo')} [flags]\n")
    assert "--init" in output and "--threads" in output
