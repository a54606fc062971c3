"""Kills at random moments, again and again: the same bytes as without, and no file stays that nothing removes.

Of training in tests/test_resume.py; here of what writes data and models.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_mojo import formats, reference
from mojo_programs import ENVIRONMENT, ROOT
from test_export import VOCABULARIES

pytestmark = pytest.mark.long
COMMAND = [sys.executable, "-m", "llm_mojo"]
PYTHON = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
WORDS = "the a of one Thing other stone Water under 7 , .".split()


def contents(folder):
    """All files below a folder with what is in them; the moment at which a manifest was made does not count."""
    return {
        f"{path.relative_to(folder)}": b"" if path.name == "manifest.json" else path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def write_text(path, size):
    dice = random.Random(3)
    lines = [" ".join(dice.choices(WORDS, k=12)) for _ in range(500)]
    with open(path, "w") as file:
        while file.tell() < size:
            file.write(dice.choice(lines) + "\n\n")


def kill_and_repeat(command, folder, kills, seed):
    """Kills a command after random parts of the time that it takes, `kills` times; then lets it end.

    Returns how many were killed before their end, and the folder's contents.
    """
    begin = time.monotonic()
    subprocess.run(command, cwd=folder, env=PYTHON, check=True, stdout=subprocess.DEVNULL)
    whole_s, whole = time.monotonic() - begin, contents(folder)
    made = [name for name in whole if name.startswith("out")]
    for name in made:
        (folder / name).unlink()
    dice, killed = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=folder, env=PYTHON, stdout=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.3, 1.1) * whole_s)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:
            # It was through: from the start again.
            for name in made:
                (folder / name).unlink(missing_ok=True)
    subprocess.run(command, cwd=folder, env=PYTHON, check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == whole
    return killed


@pytest.mark.parametrize("seed", range(5))
def test_prepare(seed, tmp_path):
    write_text(tmp_path / "a.txt", 6_000_000)
    flags = ["--tokenizer", "byte", "--shard-tokens", "700000", "--val-tokens", "700000", "--separator", r"\n\n"]
    assert kill_and_repeat([*COMMAND, "prepare", "a.txt", *flags, "--out", "out"], tmp_path, 10, seed) >= 5


def make_model(folder):
    tokens, eot, _ = VOCABULARIES["bpe"]
    config = formats.ModelConfig(64, len(tokens), 6, 4, 256)
    formats.write_checkpoint(folder / "model.bin", config, reference.init_tensors(config, seed=2))
    formats.write_tokenizer(folder / "model_tokenizer.bin", tokens, eot)


def test_export(tmp_path):
    make_model(tmp_path)
    assert kill_and_repeat([*COMMAND, "export", "model.bin", "--to", "out"], tmp_path, 30, 1) >= 15


def test_weights(tmp_path):
    make_model(tmp_path)
    subprocess.run([*COMMAND, "export", "model.bin", "--to", "folder"], cwd=tmp_path, env=PYTHON, check=True)
    assert kill_and_repeat([*COMMAND, "weights", "folder", "--out", "out.bin"], tmp_path, 30, 2) >= 15


def test_tokenize_text(mojo_program, tmp_path):
    """Killed, and behind a reader that goes after the first line."""
    program = mojo_program("tokenize_text.mojo").path
    formats.write_tokenizer(tmp_path / "bytes.bin", [bytes([value]) for value in range(256)], None)
    write_text(tmp_path / "a.txt", 60_000_000)
    command = [f"{program}", "-i", "a.txt", "-o", "out", "--name", "a", "--tokenizer", "bytes.bin"]
    kill_and_repeat(command, tmp_path, 30, 3)
    whole = contents(tmp_path)
    dice = random.Random(4)
    for _ in range(30):
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        lines = dice.randint(1, 3)
        piped = f"'{program}' -i a.txt -o out --name a --tokenizer bytes.bin | head -n {lines} > /dev/null"
        subprocess.run(["bash", "-c", piped], cwd=tmp_path, env=PYTHON, check=True)
        if contents(tmp_path) != whole:
            # It ended with its reader: nothing is there that looks whole, and the next one makes all of it.
            assert not (tmp_path / "out" / "manifest.json").exists()
            subprocess.run(command, cwd=tmp_path, env=PYTHON, check=True, stdout=subprocess.DEVNULL)
        assert contents(tmp_path) == whole
