"""The rooms of llm/: what may import what, who speaks to a person; and the version, which stands in three places."""

import re
from pathlib import Path

import pytest

from mojo_programs import ROOT

# From the top of the house to its ground: a room imports from itself and from those after it.
ROOMS = ["cli", "train", "eval", "infer", "optim", "model", "data", "text", "formats", "dist", "cpu", "base"]
SOURCES = sorted((ROOT / "llm").rglob("*.mojo"))
IMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+import\b|import\s+(\S+))", re.M)
SPEAKS = re.compile(r"\b(?:print|exit|_exit|abort)\(|\"(?:_exit|exit|abort|signal|sigaction)\"")
# Where a check that only `-D CHECKS` makes has failed, a kernel cannot raise: the one place that ends a process.
ABORTS = ("base/checks.mojo", 2)


def name_of(path):
    return path.relative_to(ROOT / "llm").as_posix()


def imports(path):
    """The modules of llm/ that a file names, as paths below llm/."""
    folder = path.relative_to(ROOT).parent.parts
    for match in IMPORT.finditer(path.read_text()):
        module = match[1] or match[2]
        if module.startswith("."):
            up = len(module) - len(module.lstrip("."))
            module = ".".join([*folder[: len(folder) - up + 1], module.lstrip(".")])
        if module.split(".")[0] == "llm":
            yield tuple(module.rstrip(".").split(".")[1:])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_down(path):
    room = path.relative_to(ROOT / "llm").parts[0]
    if path.parent == ROOT / "llm":
        assert not list(imports(path)), "llm/__init__.mojo only says what is here"
        return
    below = ROOMS[ROOMS.index(room) :]
    for module in imports(path):
        assert module[0] in ROOMS, f"llm.{'.'.join(module)}: no such room"
        assert module[0] in below, f"{name_of(path)} imports llm.{'.'.join(module)}, which stands above it"


def test_every_room_is_in_the_order():
    assert {path.relative_to(ROOT / "llm").parts[0] for path in SOURCES if path.parent != ROOT / "llm"} == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path).split("/")[0] != "cli"], ids=name_of)
def test_only_cli_and_programs_speak(path):
    found = [line.strip() for line in path.read_text().splitlines() if SPEAKS.search(line)]
    if name_of(path) == ABORTS[0]:
        assert all(line.startswith("abort(") for line in found) and len(found) == ABORTS[1]
    else:
        assert not found


def test_kernels_know_no_model():
    for path in SOURCES:
        if name_of(path).startswith("cpu/"):
            assert {module[0] for module in imports(path)} <= {"cpu", "base"}, name_of(path)


def test_training_needs_the_compiler_alone():
    """MAX's packages are for the bench's comparison; they are as large as all else that training installs."""
    for path in [*SOURCES, *ROOT.glob("*.mojo")]:
        modules = {(match[1] or match[2]).split(".")[0] for match in IMPORT.finditer(path.read_text())}
        assert {module for module in modules if module} <= {"std", "llm"}, path


def test_programs_never_import_python():
    for path in [*SOURCES, *ROOT.glob("*.mojo")]:
        assert "std.python" not in path.read_text(), path


def pyproject_version():
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def test_one_version():
    version = pyproject_version()
    for path in ["llm/cli/version.mojo", "train_gpt2_basic.mojo"]:
        assert re.search(r'^comptime VERSION = "(.+)"$', (ROOT / path).read_text(), re.M)[1] == version, path


def test_programs_say_their_version(mojo_program):
    version = pyproject_version()
    programs = [
        mojo_program("train_gpt2.mojo"),
        mojo_program("train_gpt2_basic.mojo"),
        mojo_program("sample_gpt2.mojo"),
    ]
    programs += [mojo_program("eval_gpt2.mojo"), mojo_program("test_gpt2.mojo"), mojo_program("tokenize_text.mojo")]
    for program in programs:
        assert program.output("--version") == f"{Path(program.path).name} (llm.mojo) {version}\n"
