"""Mojo under pytest: collects `test_*.mojo`, each `def test_*` as an item, and builds programs for the Python tests.

And the fixtures that test files share.
"""

import functools
import hashlib
import re
import signal
import subprocess
import threading

import numpy as np
import pytest

from llm_mojo import native, pydocs, tokenize
from mojo_builds import Builder
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT, Program
from tiny_run import flags, make_data
from vocabularies import write_toy

pytest.register_assert_rewrite("prepared")

BUILDER = Builder()


def pytest_configure(config):
    """Gives the programs that tests start the signals' defaults, also below nohup and in the background of a script.

    An ignored signal stays ignored in the programs that a process starts, but a handler does not go over to them: so
    pytest itself goes on to ignore the signal, by a handler. (subprocess resets SIGPIPE and SIGXFSZ by itself.)
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


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
        if any(item.get_closest_marker("engine") for item in session.items):
            # Whoever wants it waits for this build.
            threading.Thread(target=native.extension_path, daemon=True).start()
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
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(program, data, tmp_path_factory):
    """A tiny run of the module's trainer that nothing happened to."""
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
    return pydocs.documents()


@pytest.fixture(scope="session")
def gpt2_files():
    """The paths of the published vocab.bpe and encoder.json."""
    return [path.resolve() for path in tokenize.gpt2_files()]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """GPT-2's tokenizer with the toy vocabulary, in the folder of the test, where `gpt2` then means this one."""
    folder = write_toy(tmp_path / "cache/gpt2")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("vocab.bpe", "encoder.json")}
    monkeypatch.setattr(tokenize, "GPT2_SHA256", hashes)
    monkeypatch.setenv("LLM_MOJO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tokenize.gpt2_tokenizer()


@pytest.fixture
def encode(program, tmp_path):
    """The module's program's tokens of each text: it has checked that decoding them gives the text back."""

    def encoded(tokenizer, texts, mode="ordinary"):
        raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
        starts = np.concatenate([[len(raw), 0], np.cumsum([len(text) for text in raw])]).astype("<i8")
        (tmp_path / "texts").write_bytes(starts.tobytes() + b"".join(raw))
        program.output(tokenizer, tmp_path / "texts", tmp_path / "tokens", mode)
        output = (tmp_path / "tokens").read_bytes()
        places = np.frombuffer(output, dtype="<i8", count=len(raw) + 1)
        return np.diff(places), np.frombuffer(output, dtype="<i4", offset=places.nbytes)

    return encoded
