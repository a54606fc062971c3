"""The models that are served: those named at the start, and every run that has a checkpoint. Each is loaded when it is wanted."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mojo import Error, run_files
from llm_mojo.model import GPT2
from llm_mojo.runs import Run
from llm_mojo.serve.completions import BadRequest
from llm_mojo.serve.scheduler import Scheduler

MOST_LOADED = 4


@dataclass
class Loaded:
    """A model in memory, and which checkpoint it is."""

    source: Path
    scheduler: Scheduler
    used: float


class Registry:
    """Models by name. A run that has saved again is loaded anew at the next request."""

    def __init__(self, names: list[str], runs: Path, **settings: Any):
        self._runs, self._settings = runs, settings
        self._named = list(dict.fromkeys(names))
        self._loaded: dict[str, Loaded] = {}
        self._lock = threading.Lock()
        self._started = int(time.time())

    def names(self) -> list[str]:
        """What can be asked for: the named ones first, then the runs, the newest first."""
        found = []
        if self._runs.is_dir():
            runs = [path for path in self._runs.iterdir() if path.is_dir() and Run(path).newest() is not None]
            found = sorted(runs, key=lambda path: -path.stat().st_mtime)
        return list(dict.fromkeys([*self._named, *(f"{path.name}" for path in found)]))

    def models(self) -> list[dict[str, Any]]:
        """The list of /v1/models."""
        return [
            {"id": name, "object": "model", "created": self._started, "owned_by": "llm.mojo"} for name in self.names()
        ]

    def get(self, name: str) -> Scheduler:
        """The scheduler of a model; an empty name means the first. Raises BadRequest if there is none."""
        names = self.names()
        name = name or (names[0] if names else "")
        if name not in names:
            known = f"the models are {', '.join(names)}" if names else "no run has a checkpoint yet"
            raise BadRequest(f"The model {name!r:.200} does not exist; {known}", "model", "model_not_found", 404)
        with self._lock:
            source = self._source(name)
            loaded = self._loaded.get(name)
            if loaded and loaded.source != source and not loaded.scheduler.active:
                self._drop(name)
                loaded = None
            if not loaded:
                self._make_room()
                try:
                    model = GPT2.from_pretrained(source, **self._settings)
                except (Error, OSError) as error:
                    raise BadRequest(f"{name}: {error}", "model", "model_not_loaded", 503) from None
                loaded = self._loaded[name] = Loaded(source, Scheduler(model), 0)
            loaded.used = time.monotonic()
            return loaded.scheduler

    def _source(self, name):
        if name in self._named:
            path = Path(name)
            return run_files.newest_checkpoint(path) if path.is_dir() and Run(path).newest() is not None else path
        return run_files.newest_checkpoint(self._runs / name)

    def _make_room(self):
        idle = [name for name, loaded in self._loaded.items() if not loaded.scheduler.active]
        if len(self._loaded) >= MOST_LOADED and idle:
            self._drop(min(idle, key=lambda name: self._loaded[name].used))

    def _drop(self, name):
        self._loaded.pop(name).scheduler.close()

    def close(self) -> None:
        """Ends all decoding."""
        with self._lock:
            for name in list(self._loaded):
                self._drop(name)
