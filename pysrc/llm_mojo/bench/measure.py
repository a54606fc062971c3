"""One run of the bench: its file, what is missing, the machine's limits, and how long the rest will take."""

import json
import shutil
import subprocess
import time
from datetime import datetime, timezone

from llm_mojo import Error
from llm_mojo.bench import machine, results
from llm_mojo.bench.workshop import Missing

WAIT_S = 20
"""Seconds to wait, at most, before a turn until other programs let the processors go."""
WAIT_IN_ALL_S = 180
"""The same for a whole run: on a machine that is never quiet it goes on, and says so."""


class Progress:
    """Says how far a run is. Seconds that parts are expected to take are those of the published results' machine."""

    def __init__(self, expected):
        self._expected = dict(expected)
        self._began = time.monotonic()
        self._done = 0.0
        self._number = 0
        self._part = None

    def begin(self, part, title):
        """Starts a part, which ends the one before."""
        self._finish_part()
        self._part = part
        self._number += 1
        place = f"part {self._number} of {len(self._expected)}"
        print(f"\n[{self.elapsed()}] {place}: {title}; {self._left(0)}", flush=True)

    def round(self, number, rounds):
        """Starts a round of a part: a number from 0."""
        print(f"[{self.elapsed()}] round {number + 1} of {rounds}; {self._left(number / rounds)}", flush=True)

    def elapsed(self):
        """Minutes and seconds since the start."""
        return "{}:{:02d}".format(*divmod(int(time.monotonic() - self._began), 60))

    def _finish_part(self):
        if self._part:
            self._done += self._expected[self._part]

    def _left(self, share):
        done = self._done + share * self._expected[self._part]
        left = sum(self._expected.values()) - done
        # This machine may be slower or faster: what has been done tells, once it is something.
        pace = (time.monotonic() - self._began) / done if done > 60 else 1.0
        return f"about {max(1, round(left * pace / 60))} min left"


class Bench:
    """One run and its file, which is written after every turn: what was measured is not lost."""

    def __init__(self, workshop, path, rounds, progress, prefix=(), quick=False, append=False):
        self.workshop = workshop
        self.path = path
        self.rounds = rounds
        self.progress = progress
        self.prefix = tuple(prefix)
        self.quick = quick
        self._may_wait_s = WAIT_S if quick else WAIT_IN_ALL_S
        self.results = {
            "format": results.FORMAT,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": machine.commit(),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "limits": [],
            "waits": [],
            "missing": [],
        } | {part: [] for part in results.PARTS}
        if append and path.exists():
            self._take_up(results.read(path))
        # So that the time to a compiled contestant's first step has the compilation in it.
        shutil.rmtree(workshop.compiled, ignore_errors=True)

    def _take_up(self, earlier):
        """Goes on with the results of an earlier run of the same code on the same machine."""
        for key in ("commit", "machine", "versions"):
            if earlier[key] != self.results[key]:
                found = f"{self.path} has {key} {earlier[key]}, now it is {self.results[key]}"
                raise Error(f"bench: {found}; use another --out")
        self.results = earlier

    def save(self):
        results.write(self.path, self.results)

    def measure_limits(self):
        """Measures the machine's limits once more."""
        self.results["limits"] += self.json_lines(self.workshop.mojo("bench/bench_limits.mojo"))

    def wait_for_quiet(self):
        """Waits for other programs to let the processors go; what cannot be waited for is written down."""
        waited, share = machine.wait_for_quiet(min(WAIT_S, self._may_wait_s))
        self._may_wait_s -= waited
        if waited > 1:
            print(f"  waited {waited:.0f} s for other programs; now they take {100 * share:.0f}%", flush=True)
            self.results["waits"].append({"seconds": round(waited, 1), "others": share})

    def leave_out(self, part, label, reason):
        """Names what does not take part, on the screen and in the file."""
        print(f"  {label:34} missing: {reason}", flush=True)
        entry = {"size": part, "label": label, "reason": str(reason)}
        if entry not in self.results["missing"]:
            self.results["missing"].append(entry)

    def json_lines(self, *command):
        """Runs a program of ours that prints JSON objects. Raises Missing if it fails."""
        argv = [*self.prefix, *(str(word) for word in command)]
        result = subprocess.run(argv, capture_output=True, text=True)
        if result.returncode:
            raise Missing((result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200])
        return [json.loads(line) for line in result.stdout.splitlines()]
