"""The folders of runs that `train` chooses: an unfinished run of the same text and settings goes on, others stay as they are.

`text.json` in a run says what it was asked for; run.toml, which the trainer writes, what came of it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mojo import Error
from llm_mojo.download import write_json
from llm_mojo.files import AnyPath
from llm_mojo.run_log import LOG, Follower, read_settings
from llm_mojo.trainer_flags import number

RUNS = Path("runs")
ASKED_FOR = "text.json"
CHOSEN_LATER = ("max-steps", "max-minutes", "step-plan", "train-data", "val-data", "tokenizer")


@dataclass(frozen=True)
class Run:
    """A folder of runs, and what is in it."""

    folder: Path

    def newest(self) -> int | None:
        """Steps of the newest whole checkpoint; None if there is none."""
        steps = [int(match[1]) for path in self._files("DONE_*") if (match := re.fullmatch(r"DONE_(\d{8})", path.name))]
        return max(steps, default=None)

    def steps(self) -> int | None:
        """How many steps the run has; None where nobody can tell yet."""
        settings = read_settings(self.folder / "run.toml")
        steps = settings.get("max-steps")
        waits = number(settings.get("max-minutes", 0)) and not settings.get("step-plan")
        return steps if type(steps) is int and steps >= 0 and not waits else None

    def is_finished(self) -> bool:
        """Whether all steps are done, and the evaluation after the last of them."""
        newest, steps = self.newest(), self.steps()
        if newest is None or steps is None or newest < steps:
            return False
        try:
            return json.loads((self.folder / f"extra_{newest:08}.json").read_bytes()).get("evaluated") is not False
        except (OSError, ValueError, AttributeError):
            return True

    def is_free(self) -> bool:
        """Whether a new run can begin here: nothing is in the folder that anybody could miss."""
        return not any(self._files("*")) or (not self.is_running() and self._is_ours() and self.newest() is None)

    def is_running(self) -> bool:
        """Whether a trainer is at work here."""
        log = self.folder / LOG
        return log.is_file() and Follower(log).is_running()

    def was_asked_for(self, what: dict[str, Any]) -> bool:
        """Whether the run is of this text and these settings, and has not been replaced by hand since."""
        try:
            asked = json.loads((self.folder / ASKED_FOR).read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        if asked != json.loads(json.dumps(what)):
            return False
        settings = read_settings(self.folder / "run.toml")
        return all(
            number(settings.get(name, value)) == number(value)
            for name, value in what["settings"].items()
            if name not in CHOSEN_LATER
        )

    def other_settings(self, what: dict[str, Any]) -> dict[str, Any]:
        """In which settings the run was asked for differently, with its own values; empty if in more than settings."""
        try:
            asked = json.loads((self.folder / ASKED_FOR).read_bytes())
            own, here = asked.pop("settings"), json.loads(json.dumps(what))
        except (OSError, ValueError, RecursionError, LookupError, AttributeError):
            return {}
        settings = here.pop("settings")
        if asked != here or settings.keys() - own.keys():
            return {}
        whole = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in own.items()}
        return {name: value for name, value in whole.items() if settings.get(name) != value}

    def _is_ours(self):
        """Whether nothing is there but what a run writes before its first checkpoint."""
        known = {ASKED_FOR, "run.toml", LOG, "main.log", "samples.jsonl", "tokenizer.bin", "best.bin"}
        return all(path.name in known or path.name.endswith(".tmp") for path in self._files("*"))

    def _files(self, pattern):
        return self.folder.glob(pattern) if self.folder.is_dir() else ()


def numbered(folder: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3 and so on."""
    yield folder
    number = 2
    while True:
        yield folder.with_name(f"{folder.name}-{number}")
        number += 1


def choose(name: str, out: AnyPath | None, what: dict[str, Any], replaces: bool) -> tuple[Path, bool]:
    """The folder for a run, and whether the run in it goes on. `what` is asked for; `out` is the folder if it is given.

    Raises Error if the folder given holds something else, or the run that would go on is running.
    """
    folder = Path(out) if out is not None else RUNS / name
    if folder.exists() and not folder.is_dir():
        raise Error(f"train: {folder} is a file; --out names the folder of the run")
    if replaces:
        return folder, False
    if out is not None:
        run = Run(folder)
        if run.is_free() or _goes_on(run, what):
            return folder, not run.is_free()
        found = "a finished run" if run.is_finished() else "a run of another text or other settings"
        found = found if run.newest() is not None else "something else"
        raise Error(f"train: {folder} holds {found}; --replace replaces it, --out names another folder")
    free = None
    for run in map(Run, numbered(folder)):
        if free is None and run.is_free():
            free = run.folder
        if not run.folder.exists():
            break
        if _goes_on(run, what) and not run.is_free():
            return run.folder, True
    assert free is not None
    return free, False


def _goes_on(run, what):
    if not run.was_asked_for(what) or run.is_finished():
        return False
    if run.is_running():
        raise Error(f"train: {run.folder} is this run, and another process is training it; --out names another folder")
    return True


def remember(folder: Path, what: dict[str, Any]) -> None:
    """Notes in the folder of a new run what it was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ASKED_FOR, what)
