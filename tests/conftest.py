"""Mojo under pytest: collects `test_*.mojo`, each `def test_*` as an item, and builds programs for the Python tests."""

import codecs
import functools
import os
import re
import subprocess
import time

import pytest

from mojo_builds import ENVIRONMENT, ROOT, Builder

TIMEOUT = 600
BUILDER = Builder()


def wait_for(condition, seconds=300):
    """Waits until something is so. The time is only there to end a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class MojoError(Exception):
    """What the compiler or a test said; shown without a Python traceback."""


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".mojo" and file_path.name.startswith("test_"):
        return MojoFile.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(items):
    """Kernels first, then layers: what is broken fails its own test before those of everything built on it."""
    items.sort(key=lambda item: (ROOT / "tests" / "cpu" not in item.path.parents, item.path.name != "test_layers.py"))


def pytest_collection_finish(session):
    """Begins to build what the selected tests need, in their order: Mojo tests, and programs that Python tests name."""
    if not session.config.option.collectonly:
        BUILDER.start(program for item in session.items for program in programs_of(item))


def programs_of(item):
    """Lists the programs that a test runs: itself, those of its mark `builds`, or all that its file names."""
    if item.path.suffix == ".mojo":
        return [item.path]
    marked = [ROOT / name for mark in item.iter_markers("builds") for name in mark.args]
    return marked or programs_named_in(item.path)


@functools.cache
def programs_named_in(path):
    return [ROOT / name for name in re.findall(r'mojo_program\("(.+?)"\)', path.read_text())]


def pytest_sessionfinish():
    BUILDER.stop()


class MojoFile(pytest.File):
    def collect(self):
        for name in re.findall(r"^def (test_\w+)\(", self.path.read_text(), re.M):
            yield MojoItem.from_parent(self, name=name)


class MojoItem(pytest.Item):
    def runtest(self):
        binary, errors = BUILDER.build(self.path)
        if errors:
            raise MojoError(errors)
        result = subprocess.run(
            [binary, "--only", self.name], capture_output=True, text=True, env=ENVIRONMENT, timeout=TIMEOUT
        )
        if result.returncode:
            raise MojoError(result.stdout + result.stderr)

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, MojoError) else super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, self.name


class Program:
    """A built Mojo program."""

    def __init__(self, path):
        self.path = path

    def run(self, *arguments, **options):
        """Runs it; returns subprocess's CompletedProcess, with text output."""
        command = [self.path, *(str(argument) for argument in arguments)]
        defaults = {"capture_output": True, "encoding": "utf-8", "env": ENVIRONMENT, "timeout": TIMEOUT}
        return subprocess.run(command, **(defaults | options))

    def output(self, *arguments, **options):
        """Runs it and returns what it printed; it must succeed."""
        result = self.run(*arguments, **options)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def error(self, *arguments, status=1, **options):
        """Runs it and returns what it said on stderr; it must end with this status."""
        result = self.run(*arguments, **options)
        assert result.returncode == status, result.stdout + result.stderr
        return result.stderr

    def on_terminal(self, *arguments, at="", number=None, **more):
        """Runs it on a terminal, sends a signal when `at` has appeared, and returns the status and what was shown."""
        terminal, other_end = os.openpty()
        command = [str(word) for word in [self.path, *arguments]]
        process = subprocess.Popen(command, stdout=other_end, env=ENVIRONMENT | {"TERM": "xterm"} | more)
        os.close(other_end)
        shown = ""
        decode = codecs.getincrementaldecoder("utf-8")().decode
        while True:
            try:
                shown += decode(os.read(terminal, 65536))
            except OSError:  # how the end of a terminal is told
                break
            if number and at in shown:
                process.send_signal(number)
                number = None
        os.close(terminal)
        return process.wait(), shown


@pytest.fixture(scope="session")
def mojo_program():
    """Builds a program by its path in the repository: `mojo_program("tests/programs/files.mojo").run(...)`."""

    def built(path):
        binary, errors = BUILDER.build(ROOT / path)
        if errors:
            pytest.fail(errors, pytrace=False)
        return Program(binary)

    return built


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the shards and the tokenizer of a tiny run."""
    from tiny_run import make_data

    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(program, data, tmp_path_factory):
    """A tiny run of the module's trainer that nothing happened to."""
    from tiny_run import flags

    out = tmp_path_factory.mktemp("whole") / "run"
    program.output(*flags(data, out))
    return out


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that PyTorch's threads would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def documents():
    """Python's documentation: 2 MB of English, on every machine."""
    from llm_mojo import pydocs

    return pydocs.documents()
