"""The programs under test: how the Mojo ones are built, and how they are run and waited for."""

import codecs
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tests"
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MODULAR_TELEMETRY_ENABLED": "0"}
TIMEOUT = 600
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
    if CHECKED:
        command += CHECKS[CHECKED]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    if result.returncode:
        return binary, f"{source.relative_to(ROOT)} does not build:\n{result.stderr}"
    # A source that changes during the build is newer than the binary.
    os.utime(fresh, (start, start))
    os.replace(fresh, binary)
    return binary, ""


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
