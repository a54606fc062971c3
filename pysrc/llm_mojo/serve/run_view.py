"""Runs for the page: what there is, and the records of one as columns of numbers."""

import json
import os
from pathlib import Path
from typing import Any

from llm_mojo import Error
from llm_mojo.run_log import LOG, Follower, read_settings
from llm_mojo.runs import Run

SAMPLES = "samples.jsonl"
MOST_SAMPLES = 5
COLUMNS = "step", "loss", "norm", "lr", "tokens", "ms"


def list_of(folder: Path) -> list[dict[str, Any]]:
    """All runs in a folder, the one that wrote last first."""
    runs = []
    if folder.is_dir():
        for path in folder.iterdir():
            if (path / LOG).is_file():
                runs.append({"name": path.name, "running": _is_running(path), "written": (path / LOG).stat().st_mtime})
    return sorted(runs, key=lambda run: -run["written"])


def read(folder: Path, name: str, offset: int) -> dict[str, Any] | None:
    """The records of a run from a byte of its log on, its settings and where it stands; None if there is no such run.

    The answer has the byte where the next call goes on. A log that has become shorter is read from its start.
    """
    # Names of what is in the folder, and nothing that leads elsewhere.
    if not folder.is_dir() or name not in os.listdir(folder) or not (folder / name / LOG).is_file():
        return None
    path = folder / name
    size = (path / LOG).stat().st_size
    running = _is_running(path)
    follower = Follower(path / LOG)
    restarts = offset > size
    follower.go_on_from(0 if restarts else offset)
    try:
        records = follower.read()
        problem = ""
    except Error as error:
        records, problem = [], f"{error}"
    steps = [record for record in records if "loss" in record]
    run = Run(path)
    return {
        "name": name,
        "running": running,
        "from": 0 if restarts else offset,
        "next": follower.offset,
        "problem": problem,
        "train": {column: [_number(record.get(column)) for record in steps] for column in COLUMNS},
        "val": [[record["step"], _number(record["val_loss"])] for record in records if "val_loss" in record],
        "samples": _samples(path / SAMPLES),
        "settings": {key: f"{value}" for key, value in read_settings(path / "run.toml").items()},
        "steps": run.steps(),
        "checkpoint": run.newest(),
    }


def _samples(path):
    """(step, text) of the newest samples."""
    try:
        lines = path.read_bytes().splitlines()[-MOST_SAMPLES:]
        found = [json.loads(line) for line in lines]
        return [[int(each["step"]), str(each["sample_text"])] for each in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_running(path):
    try:
        return Run(path).is_running()
    except OSError:
        return False


def _number(value):
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
