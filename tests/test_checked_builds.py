"""Builds that check every access to a tensor, with and without the address sanitizer: they find what they are for, and
all our tests pass in them."""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

from mojo_builds import CHECKS
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT

PROGRAM = "tests/programs/beyond.mojo"


@functools.cache
def build(kind, folder, root=ROOT):
    binary = folder / f"beyond-{kind}"
    command = ["mojo", "build", "--Werror", *CHECKS[kind], "-I", root, root / PROGRAM, "-o", binary]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=root)
    assert result.returncode == 0, result.stderr
    return binary


def run(binary, *arguments):
    """Runs it and returns how it ended and all that it said."""
    command = [binary, *(str(argument) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=TIMEOUT)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checked")


@pytest.mark.parametrize(
    "case, message",
    [
        (("read", 9), ""),
        (("read", 10), "index 10, width 1 of a tensor of size 10"),
        (("read", -1), "index -1, width 1 of a tensor of size 10"),
        (("write", 10), "index 10, width 1 of a tensor of size 10"),
        (("load", 6), ""),
        (("load", 7), "index 7, width 4 of a tensor of size 10"),
        (("store", 2), ""),
        (("store", 3), "index 3, width 8 of a tensor of size 10"),
        (("slice", 6), ""),
        (("slice", 7), "index 7, width 4 of a tensor of size 10"),
        (("pointer write", 10), "something was written beside a tensor"),
        (("pointer write", -1), "something was written beside a tensor"),
        (("depth", 0), ""),
        (("depth", 1), "K is beyond what it can pack"),
        (("kernels",), ""),
    ],
    ids=lambda value: " ".join(str(word) for word in value) if isinstance(value, tuple) else None,
)
def test_an_access_beyond_a_tensor(case, message, folder):
    status, output = run(build("bounds", folder), *case)
    if message:
        assert status != 0 and "done" not in output
        assert f"check failed: {'gemm: ' if case[0] == 'depth' else ''}{message}" in output
        # Where it was: the line that reached too far, not the one that found out.
        assert "beyond.mojo:" in output or "gemm.mojo:" in output or "beside" in message
    else:
        assert (status, output.splitlines()[-1]) == (0, "done")


def test_a_pointer_meets_a_page_without_access(folder):
    """Also for reading: beyond the cache line in which the tensor ends."""
    status, output = run(build("bounds", folder), "pointer read", 16)
    assert status != 0 and "done" not in output


@pytest.mark.long
@pytest.mark.parametrize("place", [10, -1, 1023])
@pytest.mark.parametrize("access", ["pointer read", "pointer write"])
def test_the_sanitizer_knows_the_ends_of_tensors(access, place, folder):
    status, output = run(build("sanitizer", folder), access, place)
    assert status != 0 and "AddressSanitizer" in output


# One mistake each, as people make them.
MISTAKES = {
    "a row too many": ("llm/cpu/simd/tile.mojo", "for r in range(rows):", "for r in range(rows + 1):"),
    "a position too many": ("llm/cpu/attention.mojo", "for i in range(rows):", "for i in range(rows + 1):"),
    "a head too far": ("llm/cpu/attention.mojo", "item % (B * NH), NH)", "item % (B * NH) + 1, NH)"),
    "a channel too many": ("llm/cpu/layernorm.mojo", "range(full, inp.size)", "range(full, inp.size + 1)"),
    "a vector too many": ("llm/cpu/layernorm.mojo", "inp.size - inp.size % W", "inp.size - inp.size % W + W"),
    "tiles are always whole": ("llm/cpu/gemm/gemm.mojo", "min(NR, j1 - j)", "NR"),
}


@pytest.mark.long
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_kernel_is_found(mistake, tmp_path):
    name, right, wrong = mistake
    for part in ["llm", "tests/programs"]:
        shutil.copytree(ROOT / part, tmp_path / part)
    text = (tmp_path / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    status, output = run(build("bounds", tmp_path, root=tmp_path), "kernels")
    assert status != 0 and "done" not in output
    assert "check failed" in output


def files_that_run_mojo():
    """The tests that build something; but for the bench's, which time what they build, and those of this file."""
    for path in sorted((ROOT / "tests").rglob("test_*")):
        if path.suffix == ".mojo" or (path.suffix == ".py" and re.search(r"\bmojo_program\(\"", path.read_text())):
            if path.name != "test_bench.py":
                yield path


@pytest.mark.long
@pytest.mark.parametrize("kind", CHECKS)
def test_everything_passes(kind):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files_that_run_mojo()]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | ENVIRONMENT | {"MOJO_CHECKED": kind}
    )
    assert result.returncode == 0, result.stdout + result.stderr
