"""`make train`: which words the command gets, for texts of any name."""

import os
import shutil
import subprocess

import pytest

from mojo_programs import ROOT

ECHO = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"


@pytest.fixture
def train(tmp_path):
    """Calls `make train` in a folder where Python only prints its words, and returns them."""
    for name in ("pyproject.toml", ".venv/bin/python", ".venv/.ready"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ECHO)
        path.chmod(0o755)
    (tmp_path / "llm").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    for age, name in enumerate([".venv/.ready", "pyproject.toml"]):
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))

    def call(*settings):
        command = ["make", "-s", "-C", tmp_path, "train", *settings]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()

    return call


@pytest.mark.parametrize("text", ["my.txt", "it's [draft].txt", "folder/a b.v2.txt", 'a"b*?$x`c`\\(1).txt'])
def test_texts_of_any_name(text, train):
    assert train(f"TEXT={text}") == ["-m", "llm_mojo", "train", text]


def test_without_a_text(train):
    assert train("OUT=my run", "FLAGS=-x 3") == ["-m", "llm_mojo", "train", "--out", "my run", "-x", "3"]
