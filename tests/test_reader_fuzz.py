"""Damaged files for every Python reader: data or a message of ours, within a gigabyte and some seconds (tests/fuzz_readers.py)."""

import os
import subprocess
import sys

import pytest

from fuzz_readers import READERS
from mojo_programs import ROOT


def feed(kind, inputs, seed, folder):
    (folder / "files").mkdir()
    command = [sys.executable, ROOT / "tests" / "fuzz_readers.py", kind, folder / "files", inputs, seed]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc")}
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path):
    feed(kind, 60, "every day", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", READERS)
def test_3000_damaged_files(kind, tmp_path):
    feed(kind, 3000, "long", tmp_path)
