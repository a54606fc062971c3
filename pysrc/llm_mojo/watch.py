"""Shows a run while it runs: the command `python -m llm_mojo watch RUN`, in the terminal, or `--to` TensorBoard or Weights &
Biases.

It follows a running run until that ends, and sends what a finished one has logged. Watching again goes on where the
last time ended. The trainer itself knows nothing of it.
"""

import argparse
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Any, Protocol

from llm_mojo import Error, watch_terminal
from llm_mojo.download import read_json, write_json
from llm_mojo.run_log import Follower, find_log, read_settings

SECONDS_BETWEEN_LOOKS = 0.5
TENSORBOARD_FOLDER = "tensorboard"
OUR_EVENTS = ".llm-mojo"  # ends the names of event files: others stay
WANDB_NOTE = "wandb.json"


class Sink(Protocol):
    """Where records go."""

    where: str
    """What to tell the user."""

    def send(self, step: int, values: dict[str, float], seconds: float) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo watch`."""
    parser.add_argument("run", metavar="RUN", help="folder of a run (what --out named), or its log.jsonl")
    parser.add_argument("--to", choices=["tensorboard", "wandb"], help="where to (default: a chart in this terminal)")
    parser.add_argument("--project", default="llm.mojo", help="W&B's project (default: %(default)s)")
    parser.add_argument("--offline", action="store_true", help="W&B: keep it on this disk for `wandb sync`")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo watch`."""
    log = find_log(args.run)
    if args.to is None:
        try:
            watch_terminal.follow(log)
        except KeyboardInterrupt:
            print("\nstopped watching; the run goes on")
        return
    sink: Sink
    if args.to == "tensorboard":
        sink = TensorBoard(log.parent)
    else:
        first = next((record["ms"] for record in Follower(log).read() if "ms" in record), None)
        sink = WandB(log.parent, args.project, args.offline, first)
    print(sink.where, flush=True)
    try:
        print(f"the run has ended after step {follow(log, sink)}")
    except KeyboardInterrupt:
        print("\nstopped watching; the run goes on")
    finally:
        sink.close()


def follow(log: Path, sink: Sink, wait: float = SECONDS_BETWEEN_LOOKS) -> int:
    """Sends every record once, in order, until no trainer holds the log. Returns the last step."""
    follower = Follower(log)
    sent: dict[str, int] = {}  # the last step of each kind of record: "loss", "val_loss" ...
    last, seconds = 0, 0.0
    while True:
        # Whether it runs is asked before the reading: what is written in between is not missed.
        running = follower.is_running()
        for record in follower.read():
            kind = next((name for name in record if name != "step"), None)
            if kind is None:
                continue
            # A run that was resumed writes its last steps again; they are the same to the bit.
            if record["step"] <= sent.get(kind, -1):
                continue
            sent[kind] = record["step"]
            last = max(last, record["step"])
            values = values_of(record)
            seconds += values.get("train/ms", 0) / 1000
            if values:
                sink.send(record["step"], values, seconds)
        sink.flush()
        if not running:
            return last
        time.sleep(wait)


def values_of(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record under the names of their curves: train/loss, train/lr ..., val/loss."""
    numbers = {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float)) and name != "step" and name.isidentifier()
    }
    if "loss" in record:
        return {f"train/{name}": float(value) for name, value in numbers.items()}
    return {name.replace("_", "/", 1): float(value) for name, value in numbers.items()}


class TensorBoard:
    """Event files in RUN/tensorboard, written anew each time: the log has everything."""

    def __init__(self, folder: Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = folder / TENSORBOARD_FOLDER
        if self._folder.is_symlink():
            raise Error(f"{self._folder}: expected a folder of our own, found a symbolic link; move it away")
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.glob(f"events.out.tfevents.*{OUR_EVENTS}"):
            old.unlink()
        self._writer = EventFileWriter(_utf8_name(self._folder), filename_suffix=OUR_EVENTS)
        self._start = None
        self.where = f"writing {self._folder}; look at it with: tensorboard --logdir {shlex.quote(str(self._folder))}"

    def send(self, step, values, seconds):
        """Writes the values after a step, so many seconds of training into the run."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._start is None:
            self._start = time.time() - seconds
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(step=step, wall_time=self._start + seconds, summary=summary))

    def flush(self):
        """Brings to the disk what TensorBoard is to see now."""
        self._writer.flush()

    def close(self):
        """Ends the event file."""
        self._writer.close()


def _utf8_name(folder):
    """A name of a folder that is UTF-8, as TensorBoard wants it: where its own is not, that of an open descriptor."""
    try:
        return str(folder).encode() and str(folder)
    except UnicodeEncodeError:
        place = Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}")
    if not place.is_dir():
        raise Error(f"{folder}: expected a name in UTF-8, which TensorBoard needs on this system; rename the folder")
    return str(place)


class WandB:
    """One W&B run for a run, however often it is watched: RUN/wandb.json has its id and what has been sent.

    Runs are told apart by the time of their first step, which a resumed one keeps and a repeated one does not.
    """

    def __init__(self, folder: Path, project: str, offline: bool, first: float | None):
        import wandb

        note = read_json(folder / WANDB_NOTE)
        ours = isinstance(note, dict) and isinstance(note.get("id"), str) and isinstance(note.get("sent"), dict)
        if os.path.lexists(folder / WANDB_NOTE) and not ours:
            raise Error(
                f"{folder / WANDB_NOTE}: expected what has been sent to W&B, found something else; move it away"
            )
        if first is None or not ours or note.get("first") != first:
            note = {"id": secrets.token_hex(4), "first": first, "sent": {}}
        self._note = note
        self._note_file = folder / WANDB_NOTE
        try:
            f"{folder.resolve()}".encode()
        except UnicodeEncodeError:
            raise Error(f"{folder}: expected a name in UTF-8, which W&B needs; rename the folder") from None
        mode = "offline" if offline else os.environ.get("WANDB_MODE", "online")
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=note["id"],
                resume="allow",
                dir=str(folder),
                mode=mode,
                config=settings_of(folder),
                settings=wandb.Settings(quiet=True),
            )
        except wandb.Error as error:
            raise Error(f"W&B: {error}; log in with `wandb login`, or use --offline") from None
        # W&B takes one row a step, in order, and a step and its validation are two: curves go by a step of their own.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.where = f"sending to the run {note['id']} of W&B's project {project} ({mode})"

    def send(self, step, values, seconds):
        """Sends the values after a step, unless an earlier watch has."""
        kind = min(values).partition("/")[0]
        if step <= self._note["sent"].get(kind, -1):
            return
        self._run.log({"step": step, "seconds": seconds, **values}, step=2 * step + (kind != "train"))
        self._note["sent"][kind] = step
        if self._note["first"] is None and kind == "train":
            self._note["first"] = values["train/ms"]

    def flush(self):
        """Notes how far the run has been sent."""
        write_json(self._note_file, self._note)

    def close(self):
        """Waits until W&B has everything."""
        self._run.finish()


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that a run wrote to its folder."""
    return read_settings(folder / "run.toml")
