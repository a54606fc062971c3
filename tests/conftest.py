"""Mojo under pytest: collects `test_*.mojo`, each `def test_*` as an item, and builds programs for the Python tests."""

import codecs
import functools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tests"
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MODULAR_TELEMETRY_ENABLED": "0"}
TIMEOUT = 600
# MOJO_TARGET_CPU=x86-64-v3 tests the code of a processor without AVX-512 on one that has it.
TARGET_CPU = os.environ.get("MOJO_TARGET_CPU")
if TARGET_CPU:
    BUILD = BUILD.with_name(f"tests-{TARGET_CPU}")


def wait_for(condition, seconds=300):
    """Waits until something is so. The time is only there to end a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class MojoError(Exception):
    """What the compiler or a test said; shown without a Python traceback."""


@functools.cache
def build(source):
    """Builds a program, unless the one in build/tests is newer than all sources. Returns (binary, errors)."""
    binary = BUILD / source.relative_to(ROOT).with_suffix("")
    sources = [source, *(ROOT / "llm").rglob("*.mojo")]
    if binary.exists() and binary.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return binary, ""
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_suffix(f".{os.getpid()}")
    start = time.time()
    command = ["mojo", "build", "--Werror", "-I", ROOT, source, "-o", fresh]
    if TARGET_CPU:
        command += ["--target-cpu", TARGET_CPU]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    if result.returncode:
        return binary, f"{source.relative_to(ROOT)} does not build:\n{result.stderr}"
    # A source that changes during the build is newer than the binary.
    os.utime(fresh, (start, start))
    os.replace(fresh, binary)
    return binary, ""


def pytest_configure(config):
    """Gives the programs that tests start the signals' defaults, also below nohup and in the background of a script.

    An ignored signal stays ignored in the programs that a process starts, but a handler does not go over to them: so
    pytest itself goes on to ignore the signal, by a handler. (subprocess resets SIGPIPE and SIGXFSZ by itself.)
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".mojo" and file_path.name.startswith("test_"):
        return MojoFile.from_parent(parent, path=file_path)


def pytest_collection_finish(session):
    """Builds what the selected tests need, several at a time: Mojo tests, and the programs that Python tests name."""
    if session.config.option.collectonly:
        return
    sources = set()
    for path in {item.path for item in session.items}:
        if path.suffix == ".mojo":
            sources.add(path)
        else:
            sources |= {ROOT / name for name in re.findall(r'mojo_program\("(.+?)"\)', path.read_text())}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, sources))


class MojoFile(pytest.File):
    def collect(self):
        for name in re.findall(r"^def (test_\w+)\(", self.path.read_text(), re.M):
            yield MojoItem.from_parent(self, name=name)


class MojoItem(pytest.Item):
    def runtest(self):
        binary, errors = build(self.path)
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
        binary, errors = build(ROOT / path)
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


@pytest.fixture(scope="session")
def gpt2_files():
    """The paths of the published vocab.bpe and encoder.json."""
    from llm_mojo import tokenize

    return [path.resolve() for path in tokenize.gpt2_files()]
