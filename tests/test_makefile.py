"""`make train`: which words the programs get, for texts of any name."""

import os
import shutil
import subprocess

import pytest

from mojo_programs import ROOT

ECHO = '#!/bin/sh\nprintf \'%s\\n\' "--- $0" "$@"\n'


@pytest.fixture
def train(tmp_path):
    """Calls `make train` in a folder where both programs only print their words; returns those of each."""
    for name in ("pyproject.toml", "train_gpt2.mojo", ".venv/bin/python", "build/train_gpt2", ".venv/.ready"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ECHO)
        path.chmod(0o755)
    (tmp_path / "llm").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    for age, name in enumerate(["build/train_gpt2", ".venv/.ready", "pyproject.toml", "train_gpt2.mojo"]):
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))

    def call(*settings):
        command = ["make", "-s", "-C", tmp_path, "train", *settings]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return [block.splitlines()[1:] for block in output.split("--- ")[1:]]

    return call


@pytest.mark.parametrize(
    ("text", "name", "pattern"),
    [
        ("my.txt", "my", "my"),
        ("it's [draft].txt", "it's [draft]", "it's \\[draft\\]"),
        ("folder/a b.v2.txt", "a b.v2", "a b.v2"),
        ('a"b*?$x`c`\\(1).txt', 'a"b*?$x`c`\\(1)', 'a"b\\*\\?$x`c`\\\\(1)'),
    ],
)
def test_texts_of_any_name(text, name, pattern, train):
    prepare, trainer = train(f"TEXT={text}")
    assert prepare == ["-m", "llm_mojo", "prepare", text, "--out", f"data/{name}"]
    assert trainer[:8] == [
        *("-i", f"data/{pattern}/*_train*.bin", "-j", f"data/{pattern}/*_val*.bin"),
        *("--tokenizer", f"data/{name}/tokenizer.bin", "-o", f"runs/{name}"),
    ]


def test_without_a_text(train):
    prepare, trainer = train("OUT=my run", "FLAGS=-x 3", "RESUME=1")
    assert prepare == ["-m", "llm_mojo", "prepare", "pydocs", "--out", "data/pydocs"]
    assert trainer[6:10] == ["-o", "my run", "-y", "1"] and trainer[-2:] == ["-x", "3"]
