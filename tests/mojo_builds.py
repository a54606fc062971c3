"""Builds Mojo programs for the tests: only what changed, in the background, in the order in which tests want them."""

import math
import os
import re
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import arm
from mojo_programs import ENVIRONMENT, ROOT

BUILD = ROOT / "build" / "tests"
# MOJO_TARGET_CPU=x86-64-v3 tests the code of a processor without AVX-512 on one that has it.
TARGET_CPU = os.environ.get("MOJO_TARGET_CPU")
if TARGET_CPU:
    BUILD = BUILD.with_name(f"tests-{TARGET_CPU}")
# MOJO_CHECKED=bounds tests builds in which every access through a Tensor and the library's own assertions are checked,
# MOJO_CHECKED=sanitizer such with the address sanitizer as well.
CHECKED = os.environ.get("MOJO_CHECKED")
CHECKS = {"bounds": ["-D", "CHECKS", "-D", "ASSERT=all"]}
CHECKS["sanitizer"] = [*CHECKS["bounds"], "-D", "SANITIZED", "--sanitize", "address", "-g1"]
if CHECKED:
    BUILD = BUILD.with_name(f"{BUILD.name}-{CHECKED}")
    # The library tells the sanitizer the bounds of an empty list, which begins nowhere: that ends the program.
    ENVIRONMENT["ASAN_OPTIONS"] = "detect_container_overflow=0"

# MOJO_TARGET=aarch64 tests programs for ARM, emulated.
TARGET = os.environ.get("MOJO_TARGET", "")
if TARGET:
    BUILD = BUILD.with_name(f"tests-{TARGET}")

FROM_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.*)", re.M)
IMPORT = re.compile(r"^[ \t]*import[ \t]+(.*)", re.M)


def imported_modules(text):
    """Yields (number of leading dots, name) for every module that a source may import, and for some that are none."""
    for dots, module, names in FROM_IMPORT.findall(text):
        yield len(dots), module
        # What is imported from a package can be a module of it.
        for name in re.findall(r"\w+", re.sub("#.*", "", names)):
            yield len(dots), f"{module}.{name}".strip(".")
    for names in IMPORT.findall(text):
        for name in re.findall(r"(?:^|,)\s*([\w.]+)", names):
            yield 0, name


def module_files(folder, name):
    """Yields the files that importing `name` reads if it lies in a folder: of each package on the way, and its own."""
    for part in filter(None, name.split(".")):
        yield folder / "__init__.mojo"
        yield folder / f"{part}.mojo"
        folder /= part
    yield folder / "__init__.mojo"


def sources_of(program, root=ROOT):
    """Returns the files that a program is built from: itself and what it imports, directly or not."""
    found = set()
    waiting = [program]
    while waiting:
        source = waiting.pop()
        if source in found or not source.is_file():
            continue
        found.add(source)
        for dots, name in imported_modules(source.read_text()):
            # Absolute names are looked up beside the program and from the repository's root.
            for folder in [source.parents[dots - 1]] if dots else [program.parent, root]:
                waiting += module_files(folder, name)
    return found


class Builder:
    """Builds programs in threads; who wants one waits for that one only."""

    def __init__(self, root=ROOT, folder=BUILD, environment=ENVIRONMENT, target=TARGET):
        self._root = root
        self._folder = folder
        self._environment = environment
        self._target = target
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._builds = {}
        self._compilers = set()
        self._lock = threading.Lock()
        self._stopped = False

    def start(self, programs):
        """Builds programs in this order, as many at a time as there are processors; does not wait."""
        for program in programs:
            if program not in self._builds:
                self._builds[program] = self._pool.submit(self._build, program)

    def build(self, program):
        """Waits until a program is built, unless the one in build/tests is newer than its sources: (binary, errors)."""
        if program not in self._builds:
            # Not behind the others in the pool: somebody is waiting.
            self._builds[program] = Future()
            self._builds[program].set_result(self._build(program))
        return self._builds[program].result()

    def stop(self):
        """Gives up all that is not built yet."""
        with self._lock:
            self._stopped = True
            for compiler in self._compilers:
                compiler.kill()
        self._pool.shutdown(cancel_futures=True)

    def _build(self, program):
        binary = self._folder / program.relative_to(self._root).with_suffix("")
        # Without a source the compiler says what is wrong.
        newest = max((path.stat().st_mtime for path in sources_of(program, self._root)), default=math.inf)
        if binary.exists() and binary.stat().st_mtime > newest:
            return binary, ""
        binary.parent.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        start = time.time()
        command = ["mojo", "build", "--Werror", "-I", self._root, program, "-o", fresh]
        if TARGET_CPU:
            command += ["--target-cpu", TARGET_CPU]
        if CHECKED:
            command += CHECKS[CHECKED]
        if self._target == arm.TARGET:
            command += arm.COMPILER_FLAGS
        try:
            status, errors = self._run(command)
            if not status and self._target == arm.TARGET:
                errors = arm.link(fresh, binary)
                status = bool(errors)
            if status:
                return binary, f"{program.relative_to(self._root)} does not build:\n{errors}"
            # A source that changes during the build is newer than the binary.
            os.utime(fresh, (start, start))
            os.replace(fresh, binary)
        finally:
            fresh.unlink(missing_ok=True)
        return binary, ""

    def _run(self, command):
        """Runs a compiler, which `stop` ends: (status, what it said)."""
        with self._lock:
            if self._stopped:
                return 1, "stopped"
            pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            compiler = subprocess.Popen(command, env=self._environment, cwd=self._root, **pipes)
            self._compilers.add(compiler)
        _, errors = compiler.communicate()
        with self._lock:
            self._compilers.remove(compiler)
        return compiler.returncode, errors
