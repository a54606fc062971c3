"""Damaged files of all kinds, 10,000 of them: read, or refused with their name; never a crash, a hang or a wild allocation.

The reading program is built with the address sanitizer, which ends it at the first access out of bounds and at the first
allocation of more than 64 MB.
"""

import shutil
import subprocess

import numpy as np
import pytest

from llm_mojo import formats
from mojo_builds import BUILD
from mojo_programs import ENVIRONMENT, ROOT
from tiny_run import STEPS, V, flags, make_data

B, T = 2, 8
KINDS = [
    "model.bin",
    "state.bin",
    "extra.json",
    "tokenizer.bin",
    "tokens.bin",
    "hellaswag.bin",
    "run.toml",
    "log.jsonl",
]
CASES = 10_000
PART = 1_000
LARGEST_ALLOCATION = 64  # MB
OPTIONS = f"max_allocation_size_mb={LARGEST_ALLOCATION}:allocator_may_return_null=0:abort_on_error=0:detect_leaks=0"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The reader with the sanitizer."""
    binary = BUILD / "damaged-sanitized"
    binary.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests" / "programs" / "damaged.mojo"
    command = ["mojo", "build", "--sanitize", "address", "-g1", "-I", ROOT, source, "-o", binary]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    return binary


@pytest.fixture(scope="module")
def good(mojo_program, tmp_path_factory):
    """A good file of each kind, those of a run as it leaves them."""
    folder = tmp_path_factory.mktemp("good")
    make_data(folder)
    mojo_program("train_gpt2.mojo").output(*flags(folder, folder / "run"))
    shutil.copy(folder / "run" / f"model_{STEPS:08}.bin", folder / "model.bin")
    shutil.copy(folder / "run" / f"state_{STEPS:08}_00000.bin", folder / "state.bin")
    shutil.copy(folder / "run" / f"extra_{STEPS:08}.json", folder / "extra.json")
    shutil.copy(folder / "run" / "run.toml", folder)
    shutil.copy(folder / "run" / "log.jsonl", folder)
    shutil.copy(folder / "train_0.bin", folder / "tokens.bin")
    random = np.random.default_rng(0)
    pieces = [[random.integers(V, size=1 + i).tolist() for i in range(5)] for _ in range(9)]
    formats.write_hellaswag(
        folder / "hellaswag.bin", [formats.Choice(piece[0], piece[1:], i % 4) for i, piece in enumerate(pieces)]
    )
    return folder


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_damaged_files(first, program, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "files")
    command = [program, folder, STEPS, V, B, T, first, PART]
    environment = ENVIRONMENT | {"ASAN_OPTIONS": OPTIONS}
    result = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counts = {name: (int(refused), int(read)) for name, refused, read in map(str.split, result.stdout.splitlines())}
    assert list(counts) == KINDS and sum(map(sum, counts.values())) == PART
    # Most of what matters is noticed; in a log anything may be between the lines.
    for name in KINDS[:-1]:
        assert counts[name][0] > 0, name
