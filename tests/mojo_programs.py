"""The programs under test: how they are run and waited for."""

import codecs
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MODULAR_TELEMETRY_ENABLED": "0"}
TIMEOUT = 600


def wait_for(condition, seconds=300):
    """Waits until something is so. The time is only there to end a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


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
