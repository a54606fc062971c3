"""What the Python commands print: nothing that a terminal obeys, whoever reads it or has gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mojo.__main__ import main
from llm_mojo.terminal import line, plain
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202egnp.\x00"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(words, redirections="", **options):
    """A command as a shell runs it."""
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
    text = f'"$0" -m llm_mojo {words} {redirections}'
    return subprocess.run(
        ["bash", "-c", text, sys.executable], capture_output=True, env=environment, timeout=TIMEOUT, **options
    )


def test_escapes():
    assert plain("a\tb\né 東 🙂") == "a\tb\né 東 🙂"
    assert plain(EVIL) == r"\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202egnp.\x00"
    assert line("a\tb\nc") == r"a\tb\nc"


def test_nothing_raw_from_files_or_arguments(capsys):
    evil = EVIL.replace("\x00", "")
    Path(f"{evil}.txt").write_text("text " * 50)
    Path(f"{evil}.jsonl").write_text(json.dumps({evil: 1}) + "\n")
    Path("run").mkdir()
    Path("run/log.jsonl").write_text(json.dumps({evil: 1}) + "\n")
    Path("m").mkdir()
    Path("m/config.json").write_text(json.dumps({"model_type": evil} | dict.fromkeys(["n_layer", "n_head"], evil)))
    Path("manifest.json").write_text(json.dumps({"manifest": 1, "outputs": {}, "inputs": [{"name": evil}]}))
    for words, status in [
        (["prepare", f"{evil}.txt"], 0),
        (["prepare", f"{evil}.txt", "--out", "."], 1),
        (["prepare", f"{evil}.jsonl"], 1),
        (["prepare", f"{evil}.txt", "--tokenizer", evil], 1),
        (["prepare", f"{evil}.txt", "--clean", evil], 1),
        (["plot", "run"], 1),
        (["watch", evil, "--to", "tensorboard"], 1),
        (["weights", "m"], 1),
        (["weights", evil], 1),
        (["export", evil, "--to", "x"], 1),
    ]:
        assert main(words) == status, words
        printed = "".join(capsys.readouterr())
        assert printed and printed == plain(printed), words
    with pytest.raises(SystemExit):
        main(["datasets", evil])
    printed = "".join(capsys.readouterr())
    assert "x1b[2J" in printed and printed == plain(printed)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files(closed):
    Path("t.txt").write_text("text " * 50)
    result = command("prepare t.txt", closed)
    assert result.returncode == 0, result
    made = {path.name: path.read_bytes() for path in Path("data/t").iterdir()}
    assert b"wrote" not in made["t_train.bin"] and b"preparing" not in b"".join(made.values())
    assert command("prepare none.txt", closed).returncode == 1


def test_a_full_standard_output():
    result = command("datasets", "> /dev/full")
    assert result.returncode == 1 and b"output was lost: No space left on device" in result.stderr


def test_a_reader_that_has_gone():
    """The work goes on to its end; nobody is told."""
    Path("t.txt").write_text("text " * 50)
    result = command("prepare t.txt", "| true; exit ${PIPESTATUS[0]}")
    assert result.returncode == 0 and result.stderr == b""
    assert Path("data/t/manifest.json").exists()
    result = command("datasets", "| true; exit ${PIPESTATUS[0]}")
    assert result.returncode == 0 and result.stderr == b""


def test_an_encoding_that_has_not_all_letters():
    Path("é東.txt").write_text("text " * 50)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT / "pysrc")}
    words = [sys.executable, "-m", "llm_mojo", "prepare", "é東.txt"]
    result = subprocess.run(words, capture_output=True, env=environment, timeout=TIMEOUT)
    assert result.returncode == 0 and rb"data/\xe9\u6771" in result.stdout
