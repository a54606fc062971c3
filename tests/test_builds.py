"""How the tests build programs: again when something that they import has changed, and only then."""

import os
import time

import pytest

from mojo_builds import Builder, sources_of
from mojo_programs import wait_for

SOURCES = {
    "program.mojo": '''"""From here nothing is imported."""
from std.sys import argv
from beside import help
from llm.kernels.first import (
    one,  # from llm.unused import this
    two,
)
import llm.named as name, llm.second
from llm.kernels import third

def main():
    from llm.late import later
    help()
''',
    "beside.mojo": "def help():\n    pass\n",
    "llm/__init__.mojo": "",
    "llm/kernels/__init__.mojo": "from .reexported import four\n",
    "llm/kernels/first.mojo": "from ..common import shared\n",
    "llm/kernels/third.mojo": "from . import sibling\n",
    "llm/kernels/reexported.mojo": "",
    "llm/kernels/sibling.mojo": "from llm.kernels.third import circle\n",
    "llm/common.mojo": "",
    "llm/named.mojo": "",
    "llm/second.mojo": "",
    "llm/late/__init__.mojo": "",
}
OTHERS = ["llm/unused.mojo", "llm/kernels/fourth.mojo", "other.mojo"]


@pytest.fixture
def tree(tmp_path):
    """A small repository."""
    for name, text in (SOURCES | dict.fromkeys(OTHERS, "")).items():
        path = tmp_path / "programs" / name if name in ("program.mojo", "beside.mojo") else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_sources_are_what_is_imported(tree):
    found = {
        str(path.relative_to(tree)).removeprefix("programs/")
        for path in sources_of(tree / "programs/program.mojo", tree)
    }
    assert found == set(SOURCES)


@pytest.mark.parametrize("name", [None, "programs/program.mojo", "llm/common.mojo", "llm/unused.mojo"])
def test_built_again_when_a_source_is_newer(name, tree):
    commands = []

    class Compiles(Builder):
        def _run(self, command):
            commands.append(command)
            command[command.index("-o") + 1].write_text("binary")
            return 0, ""

    program = tree / "programs" / "program.mojo"
    for path in tree.rglob("*.mojo"):
        os.utime(path, (1000, 1000))
    for _ in range(2):
        binary, errors = Compiles(tree, tree / "build").build(program)
        assert (binary, errors) == (tree / "build" / "programs" / "program", "")
    assert len(commands) == 1
    os.utime(binary, (2000, 2000))
    if name:
        os.utime(tree / name, (3000, 3000))
    Compiles(tree, tree / "build").build(program)
    assert len(commands) == (1 if name in (None, "llm/unused.mojo") else 2)


def test_stopping_gives_up_what_runs(tree):
    """The compiler here is one that would not end for long."""
    compiler = tree / "mojo"
    compiler.write_text("#!/bin/sh\ntouch started\nexec sleep 1000\n")
    compiler.chmod(0o755)
    path = f"{tree}{os.pathsep}{os.environ['PATH']}"
    builder = Builder(tree, tree / "build", os.environ | {"PATH": path})
    builder.start([tree / name for name in OTHERS])
    wait_for((tree / "started").exists)
    begin = time.monotonic()
    builder.stop()
    assert time.monotonic() - begin < 500
    assert not [path for path in (tree / "build").rglob("*") if path.is_file()]
