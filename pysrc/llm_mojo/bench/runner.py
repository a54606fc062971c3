"""Runs a contestant's program in a fresh process: some steps to warm up, and those that count."""

import ctypes
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

from llm_mojo.bench.machine import Load
from llm_mojo.bench.workshop import Missing

_STEP = re.compile(r"step\s+\d+.*?loss\s+(?P<loss>[\d.]+).*?(?P<ms>[\d.]+)\s*ms")
# The shell tells its process number and the time, then becomes the contestant, whatever it was started by.
_ANNOUNCE = 'echo "start $$ $(date +%s%N)"; exec "$@"'
_DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


class Process:
    """A program whose output is read line by line."""

    def __init__(self, command, prefix=()):
        argv = [*prefix, "sh", "-c", _ANNOUNCE, "sh", *(str(word) for word in command.argv)]
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=command.cwd,
            env=os.environ | command.environment,
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdout
        self._output = self._process.stdout
        self.pid: int | None = None
        self.started_ns = 0
        self._unread = b""

    def line(self, patience):
        """Returns the next line, or None at the end of its output. Raises Missing after so many seconds of silence."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            if not self._read(deadline - time.monotonic()):
                return None
        start, _, self._unread = self._unread.partition(b"\n")
        line = start.decode(errors="replace")
        if self.pid is None and line.startswith("start "):
            self.pid, self.started_ns = (int(word) for word in line.split()[1:])
            return self.line(deadline - time.monotonic())
        return line

    def _read(self, patience):
        if not select.select([self._output], [], [], max(0, patience))[0]:
            raise Missing(f"it printed nothing for {max(1, patience):.0f} s")
        read = os.read(self._output.fileno(), 1 << 16)
        self._unread += read
        return bool(read)

    def end(self):
        """Kills it."""
        for pid in {self.pid or self._process.pid, self._process.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._output.close()
        self._process.wait()

    def complaint(self):
        """Waits for a program that has closed its output and returns why it did, in a line."""
        status = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        if status == -signal.SIGKILL and not said:
            return "it was killed; perhaps memory was short"
        # A traceback ends in what is wrong; a complaint about flags begins with it.
        return (said or [f"it ended with status {status}"])[0 if status == 2 else -1][:200]

    def peak_mb(self):
        """The largest resident memory so far."""
        try:
            with open(f"/proc/{self.pid}/status") as file:
                for line in file:
                    if line.startswith("VmHWM:"):
                        return round(int(line.split()[1]) * 1024 / 1e6, 1)
        except OSError:
            pass
        return None

    def cpu_seconds(self):
        """Processor time of all its threads so far."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Pace:
    """How long a process is kept."""

    seconds: float
    """Once the counted steps have taken this long, that is enough."""
    most: int = 20
    """Or once there are so many."""
    warm_up: int = 1
    """Steps that are not counted: the first touches memory for the first time."""
    patience: float = 200.0
    """Seconds without a step after which a process is stopped: compiling takes its time."""


@dataclass
class Run:
    """What was seen of one process."""

    ms: list = field(default_factory=list)
    """Of every step, those to warm up included."""
    losses: list = field(default_factory=list)
    warm_up: int = 0
    """How many of the steps do not count."""
    first_step_s: float | None = None
    """From the start of the process to the end of its first step."""
    peak_mb: float | None = None
    others: float | None = None
    """Share of the processors' time that others took during the steps that count, the hypervisor's guests included."""

    @property
    def timed(self):
        return self.ms[self.warm_up :]


def run_steps(command, pace, prefix=()):
    """Starts a program that prints a line for every step, ends it after enough. Raises Missing if it ends before."""
    run = Run(warm_up=pace.warm_up)
    process = Process(command, prefix)
    try:
        load, own = Load(), 0.0
        while not _is_enough(run.timed, pace):
            line = process.line(pace.patience)
            if line is None:
                raise Missing(process.complaint())
            step = _STEP.match(line)
            if not step:
                continue
            run.ms.append(float(step["ms"]))
            run.losses.append(float(step["loss"]))
            if len(run.ms) == 1:
                run.first_step_s = round((time.time_ns() - process.started_ns) / 1e9, 3)
            if len(run.ms) == pace.warm_up:
                load, own = Load(), process.cpu_seconds()
        run.peak_mb = process.peak_mb()
        run.others = load.others(process.cpu_seconds() - own)
    finally:
        process.end()
    return run


def _is_enough(timed, pace):
    return len(timed) >= pace.most or sum(timed) >= 1000 * pace.seconds


def _die_with_parent():
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
