"""--trace: a build with -D TRACE writes what each thread did; others say how to get one."""

import json
import subprocess

import pytest

from mojo_programs import ENVIRONMENT, ROOT, Program
from tiny_run import make_data, settings

TRACE = ["--threads", 2, "-v", 0, "--trace", "trace.json"]


def test_other_builds_refuse(mojo_program, tmp_path):
    make_data(tmp_path)
    errors = mojo_program("train_gpt2.mojo").error(*settings(tmp_path, None, *TRACE), cwd=tmp_path)
    assert "trace.json" in errors and "-D TRACE" in errors
    assert not list(tmp_path.glob("trace.json*"))


@pytest.mark.long
def test_trace(tmp_path):
    """All of four steps on two threads: in each thread one operation after the other, each within its step."""
    make_data(tmp_path)
    program = tmp_path / "train_gpt2"
    command = ["mojo", "build", "--Werror", "-D", "TRACE", "-I", ROOT, ROOT / "train_gpt2.mojo", "-o", program]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    Program(program).output(*settings(tmp_path, None, *TRACE), cwd=tmp_path)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert rows == {0: "thread 0", 1: "thread 1", 2: "steps"}
    timed = [event for event in events if event["ph"] == "X"]
    steps = [event for event in timed if event["tid"] == 2]
    assert [event["args"]["step"] for event in steps] == [1, 2, 3, 4]
    names = [[event["name"] for event in timed if event["tid"] == member] for member in (0, 1)]
    assert names[0] == names[1]
    # Two layers, each with four products forward and eight backward, and the three of the output layer.
    assert sum(name.startswith("gemm") for name in names[0]) == 4 * (2 * 12 + 3) and {
        "adamw_update",
        "attention_backward",
    } <= set(names[0])
    for member in (0, 1):
        end = 0
        for event in (event for event in timed if event["tid"] == member):
            assert event["ts"] >= end - 0.002
            end = event["ts"] + event["dur"]
            assert any(step["ts"] - 0.002 <= event["ts"] and end <= step["ts"] + step["dur"] + 0.002 for step in steps)
