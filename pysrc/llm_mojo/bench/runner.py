"""Runs a contestant's program turn by turn: between its turns it is stopped, keeps its memory and takes no time."""

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
SLOW_STEP_MS = 1000
"""Who needs longer for a step needs no second one to warm up, and none after a pause."""


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
        self.pid = self.started_ns = None
        self._unread = b""
        self._paused_at = None
        self.paused_s = 0.0
        """How long it has been stopped so far."""

    def line(self, patience):
        """Returns the next line, or None at the end of its output. Raises Missing after so many seconds of silence."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            if not self._read(deadline - time.monotonic()):
                return None
        line, _, self._unread = self._unread.partition(b"\n")
        line = line.decode(errors="replace")
        if self.pid is None and line.startswith("start "):
            self.pid, self.started_ns = (int(word) for word in line.split()[1:])
            return self.line(deadline - time.monotonic())
        return line

    def has_line(self):
        """Whether a whole line waits to be read."""
        while select.select([self._process.stdout], [], [], 0)[0] and self._read(0):
            pass
        return b"\n" in self._unread

    def _read(self, patience):
        if not select.select([self._process.stdout], [], [], max(0, patience))[0]:
            raise Missing(f"it printed nothing for {max(1, patience):.0f} s")
        read = os.read(self._process.stdout.fileno(), 1 << 16)
        self._unread += read
        return bool(read)

    def pause(self):
        """Stops it where it is, and returns once it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        while _status(self.pid) not in "TZX":
            time.sleep(0.0005)
        self._paused_at = time.monotonic()

    def resume(self):
        self.paused_s += time.monotonic() - self._paused_at
        os.kill(self.pid, signal.SIGCONT)

    def end(self):
        """Kills it; returns its exit status."""
        for pid in {self.pid, self._process.pid} - {None}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.stdout.close()
        return self._process.wait()

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
    """How long a turn is."""

    seconds: float
    """Once the counted steps have taken this long, the turn is over."""
    most: int = 20
    """Or once there are so many."""
    warm_up: int = 2
    """Steps that are not counted in a fresh process: the first touches memory for the first time."""
    patience: float = 200.0
    """Seconds without a step after which a process is stopped: compiling takes its time."""


@dataclass
class Turn:
    """What was seen of one turn."""

    ms: list = field(default_factory=list)
    """Of every step, those to warm up included."""
    losses: list = field(default_factory=list)
    first_step_s: float | None = None
    """From the start of the process to the end of its first step, if that was in this turn."""
    peak_mb: float | None = None
    warm_up: int = 0
    """How many of the steps do not count."""
    others: float | None = None
    """Share of the processors' time that others took meanwhile, the hypervisor's guests included."""

    @property
    def timed(self):
        return self.ms[self.warm_up :]


class Trainee:
    """A program that trains and prints a line for every step."""

    def __init__(self, command, prefix=()):
        self._command = command
        self._prefix = prefix
        self._process = None

    def turn(self, pace):
        """Lets it do some steps, then stops it. Raises Missing if it fails or is too slow."""
        turn = Turn()
        fresh = self._process is None
        if fresh:
            self._process = Process(self._command, self._prefix)
        process = self._process
        paused_before, began, load = process.paused_s, time.monotonic(), Load()
        own = 0 if fresh else process.cpu_seconds()
        if not fresh:
            process.resume()
        ended = False
        try:
            while not turn.timed or not _is_enough(turn.timed, pace):
                line = process.line(pace.patience)
                if line is None:
                    ended = True
                    break
                self._note(line, turn, fresh, pace, process.paused_s - paused_before, time.monotonic() - began)
        except Missing:
            self.end()
            raise
        turn.peak_mb = process.peak_mb()
        # What a compiler's helpers take in a fresh process is not others'.
        turn.others = None if fresh else load.others(process.cpu_seconds() - own)
        if ended:
            self._process = None
            reason = process.complaint()
            process.end()
            if not turn.timed:
                raise Missing(reason)
        else:
            process.pause()
            while process.has_line():
                self._note(process.line(0), turn, fresh, pace, 0, 0)
        return turn

    def end(self):
        if self._process:
            self._process.end()
            self._process = None

    def _note(self, line, turn, fresh, pace, paused_s, running_s):
        match = _STEP.match(line)
        if not match:
            return
        ms = float(match["ms"])
        if not turn.ms:
            if fresh:
                turn.first_step_s = round((time.time_ns() - self._process.started_ns) / 1e9, 3)
                turn.warm_up = pace.warm_up
            else:
                ms = _without_pause(ms, 1000 * paused_s, 1000 * running_s)
                turn.warm_up = 1
        turn.ms.append(ms)
        turn.losses.append(float(match["loss"]))
        if ms > SLOW_STEP_MS:
            turn.warm_up = min(turn.warm_up, 1 if fresh else 0)


def _without_pause(ms, paused_ms, running_ms):
    """A step's time without the pause, which fell into it, or, at times, between it and the step before.

    Which of the two, tells the time that the program has run since: `running_ms` at most, and not much less.
    """
    return round(min((ms, ms - paused_ms), key=lambda value: abs(value - running_ms)), 3)


def _is_enough(timed, pace):
    return len(timed) >= pace.most or sum(timed) >= 1000 * pace.seconds


def _status(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _die_with_parent():
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
