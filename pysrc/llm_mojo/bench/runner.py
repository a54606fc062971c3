"""Runs a contestant for some steps and times it: each step by its own clock, its start and its memory from outside."""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field

from llm_mojo.bench.workshop import Missing

_STEP = re.compile(r"step\s+\d+.*?loss\s+(?P<loss>[\d.]+).*?(?P<ms>[\d.]+)\s*ms")
# The shell tells its process number and the time, then becomes the contestant, whatever it was started by.
_ANNOUNCE = 'echo "start $$ $(date +%s%N)"; exec "$@"'


@dataclass(frozen=True)
class Pace:
    """How long a contestant is watched."""

    warm_up: int = 2
    """Steps that are not counted: the first touches memory for the first time."""
    least: int = 2
    """Steps that are counted at least; one, if it takes longer than `seconds`."""
    most: int = 20
    seconds: float = 5.0
    """Once the counted steps have taken this long, there are enough of them."""
    patience: float = 140.0
    """Seconds after which a process is stopped."""


@dataclass
class Watched:
    """What was seen of one process."""

    ms: list = field(default_factory=list)
    """Of every step, those to warm up included."""
    losses: list = field(default_factory=list)
    first_step_s: float | None = None
    """From the start of the process to the end of its first step."""
    peak_mb: float | None = None
    warm_up: int = 0
    """How many of the steps do not count."""

    @property
    def timed(self):
        return self.ms[self.warm_up :]


def watch(command, pace, prefix=()):
    """Runs a command until the pace is satisfied. Raises Missing if it fails or is too slow."""
    argv = [*prefix, "sh", "-c", _ANNOUNCE, "sh", *(str(word) for word in command.argv)]
    seen = Watched()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=command.cwd,
            env=os.environ | command.environment,
        )
        pid = started = timer = None
        ended = False
        try:
            for line in process.stdout:
                if line.startswith("start "):
                    pid, started = (int(word) for word in line.split()[1:])
                    timer = threading.Timer(pace.patience, _kill, [pid])
                    timer.start()
                match = _STEP.match(line)
                if not match:
                    continue
                if not seen.ms:
                    seen.first_step_s = round((time.time_ns() - started) / 1e9, 3)
                seen.ms.append(float(match["ms"]))
                seen.losses.append(float(match["loss"]))
                seen.peak_mb = _peak_memory(pid) or seen.peak_mb
                # Who needs seconds for a step has done all that happens only once in the first.
                seen.warm_up = min(pace.warm_up, 1) if seen.ms[-1] > 2000 else pace.warm_up
                if _is_enough(seen.timed, pace):
                    break
            else:
                ended = True
        finally:
            if timer:
                timer.cancel()
            if pid and not ended:
                _kill(pid)
            process.stdout.close()
            process.wait()
        if not seen.timed:
            errors.seek(0)
            said = [line.strip() for line in errors.read().splitlines() if line.strip()]
            late = not said and started and process.returncode
            if late:
                raise Missing(f"no step within {pace.patience:.0f} s")
            # A traceback ends in what is wrong; a complaint about flags begins with it.
            raise Missing((said or ["it printed no steps"])[0 if process.returncode == 2 else -1][:200])
    return seen


def _is_enough(timed, pace):
    if not timed:
        return False
    long = sum(timed) >= 1000 * pace.seconds
    return len(timed) >= pace.most or long and (len(timed) >= pace.least or timed[-1] >= 1000 * pace.seconds)


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _peak_memory(pid):
    """The largest resident memory of a process so far, in MB."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    return None
