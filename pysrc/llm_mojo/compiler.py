"""Builds Mojo sources of a checkout, once: again when sources, compiler, processor or the environment's place change.

A stamp beside each result, NAME.stamp, says what it was built from. The place counts because results look for the compiler's
run-time libraries where they lay when they were linked.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_mojo import Error, processor
from llm_mojo.files import atomic_file, open_own

# As the package's own console script does, which a moved environment would not find.
_CALL = "import sys; from mojo._entrypoints import exec_mojo; sys.argv[0] = 'mojo'; exec_mojo()"


def libraries() -> Path:
    """The folder of the run-time libraries that `mojo-compiler` brings. Raises Error if it is not installed."""
    spec = importlib.util.find_spec("mojo")
    for place in (spec.submodule_search_locations or []) if spec else []:
        # As it is named, not where links lead: so the linker writes it into results.
        folder = Path(place).parent / "modular" / "lib"
        if folder.is_dir():
            return folder
    raise Error(
        "the package mojo-compiler is not installed; `make setup` or `pip install mojo-compiler==1.2.0` does it"
    )


def build(root: Path, source: Path, result: Path, options: Sequence[str] = ()) -> Path:
    """Builds the program or library `result` from `source` of the checkout `root`, unless it is there and up to date.

    One process at a time builds; others wait for it and use what it made. Raises Error if the compiler or linker fails.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    stamp = result.with_name(f"{result.name}.stamp")
    with open_own(result.with_name(f"{result.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = _stamp(root, source, options)
        if result.exists() and stamp.exists() and stamp.read_text() == wanted:
            return result
        print(f"Compiling {_shown(result)} ...", file=sys.stderr, flush=True)
        compile_mojo(root, source, result, options)
        with atomic_file(stamp) as file:
            file.write(wanted.encode())
    return result


def compile_mojo(root: Path, source: Path, result: Path, options: Sequence[str] = ()) -> None:
    """Compiles and links. Raises Error with what the compiler said; then a result of before is still there."""
    if not shutil.which("cc"):
        raise Error("no C compiler: linking needs 'cc'; on Debian and Ubuntu: sudo apt install gcc")
    fresh = result.with_name(f"{result.name}.{secrets.token_hex(4)}.tmp")
    # The compiler looks its tools up on the path, and should not look anything up on the network.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = os.environ | {"PATH": path, "MODULAR_TELEMETRY_ENABLED": "0"}
    words = [sys.executable, "-c", _CALL, "build", "-I", f"{root}", f"{source}", "-o", f"{fresh}", *options]
    try:
        done = subprocess.run(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            said = done.stdout.decode(errors="replace")
            raise Error(f"{source} does not build, status {done.returncode} of the compiler:\n{said}")
        os.replace(fresh, result)
    finally:
        fresh.unlink(missing_ok=True)


def _stamp(root, source, options):
    folders = {root / "llm", source.parent} - {root}
    sources = {source, *(path for folder in folders for path in folder.rglob("*.mojo"))}
    lines = [
        f"compiler: {importlib.metadata.version('mojo-compiler')}",
        f"libraries: {libraries()}",
        f"options: {' '.join(options)}",
        f"processor: {processor.identity()}",
        f"sources: {_hash(root, sorted(sources))}",
    ]
    return "\n".join(lines) + "\n"


def _hash(root: Path, sources: Iterable[Path]) -> str:
    sum_of_all = hashlib.sha256()
    for path in sources:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise Error(f"{path} is missing, which the build needs; get the checkout whole again") from None
        sum_of_all.update(f"{path.relative_to(root)}\0{len(text)}\0".encode() + text)
    return sum_of_all.hexdigest()


def _shown(path):
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
