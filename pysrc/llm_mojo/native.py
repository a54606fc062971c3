"""The compiled programs and the Python extension: built at first use in a checkout, chosen by processor in an installed wheel.

`python -m llm_mojo.native SOURCE.mojo RESULT` is what make calls to build.
"""

import ctypes
import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llm_mojo import Error, compiler, processor

PROGRAMS = "train_gpt2", "sample_gpt2", "eval_gpt2", "tokenize_text", "test_gpt2"
# The name under which Python imports it is `llm_mojo._engine`.
EXTENSION = "_engine.so"
EXTENSION_SOURCE = Path("python") / "llm_mojo_engine.mojo"
# In a wheel: compiled/<build>/<program>, and compiled/presets, where programs look for them.
INSTALLED = Path(__file__).resolve().parent / "compiled"
# Where what is installed looks for the run-time libraries: the package mojo-compiler in the same place as ours.
BESIDE = INSTALLED.parents[1] / "modular" / "lib"
LEAST_ADDRESSES = 2_200_000_000
CHECKOUT = Path(__file__).resolve().parents[2]


def is_installed() -> bool:
    """Whether this package comes with what is compiled, as that of a wheel does."""
    return INSTALLED.is_dir()


def program(name: str) -> Path:
    """The program `name`, ready to run. Raises Error if it cannot be built here, or no build runs on this processor."""
    assert name in PROGRAMS, name
    _expect_addresses()
    if is_installed():
        return _installed(name)
    return compiler.build(_checkout(), CHECKOUT / f"{name}.mojo", CHECKOUT / "build" / name)


def become(name: str, words: Sequence[str], called: str, processes: int = 1) -> NoReturn:
    """Runs a program in place of this process, or an mpiexec of several: signals, terminal and exit status are its own.

    `called` is what a person has typed, as in "llm-mojo train"; the program's hints say it again.
    """
    path = program(name)
    launcher = mpiexec() if processes > 1 else None
    os.environ["LLM_MOJO_CALLED"] = called
    if is_installed() and not BESIDE.is_dir():
        os.environ["LD_LIBRARY_PATH"] = f"{compiler.libraries()}"
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores it, and what is ignored stays so.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if launcher:
        os.execv(launcher, [launcher, "-n", f"{processes}", f"{path}", *words])
    os.execv(path, [f"{_shown(path)}", *words])


def mpiexec() -> str:
    """The launcher of several processes, beside this Python or on the path. Raises Error if there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = f"{beside}" if beside.exists() else shutil.which("mpiexec")
    if not found:
        raise Error("mpiexec: not found; several processes need MPICH or Open MPI: pip install mpich")
    return found


def presets() -> Path:
    """The folder of the presets."""
    return (INSTALLED if is_installed() else CHECKOUT) / "presets"


def extension_path() -> Path:
    """The shared library of the extension module `llm_mojo._engine`, ready to import. Raises Error as `program` does."""
    _expect_addresses()
    if is_installed():
        if not BESIDE.is_dir():
            # What is loaded already is found by its name.
            ctypes.CDLL(f"{compiler.libraries() / 'libKGENCompilerRTShared.so'}", ctypes.RTLD_GLOBAL)
        return _installed(EXTENSION)
    options = ["--emit", "shared-lib"]
    return compiler.build(_checkout(), CHECKOUT / EXTENSION_SOURCE, CHECKOUT / "build" / EXTENSION, options)


def _expect_addresses():
    """What the programs say of a limit themselves; with a lower one Mojo's allocator ends before it could (llm/cli/start.mojo)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        raise Error(
            f"memory: expected a limit of {LEAST_ADDRESSES / 1e9:.1f} GB of addresses or more, found {limit / 1e9:.1f} GB;"
            " say ulimit -v unlimited before (it limits addresses, not memory)"
        )


def _installed(name):
    path = INSTALLED / processor.best_build() / name
    if not path.is_file():
        raise Error(f"{path} is missing: the package is not whole; `pip install --force-reinstall llm-mojo` mends it")
    return path


def _shown(path):
    """As a person would call it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _checkout():
    if not (CHECKOUT / "llm" / "__init__.mojo").is_file():
        raise Error(
            f"{CHECKOUT} has neither compiled programs nor Mojo sources; install llm-mojo from its wheel, or with"
            " `pip install -e .` in a checkout"
        )
    return CHECKOUT


def main(source: str, result: str) -> None:
    """Builds one program of the checkout that make is in."""
    try:
        compiler.build(Path.cwd(), Path.cwd() / source, Path.cwd() / result)
    except Error as error:
        sys.exit(f"make: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
