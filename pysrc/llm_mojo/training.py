"""Training from Python: the trainer runs beside, and its records come as it writes them.

The run is the program's own: the same files, and the same bits, for the same settings.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mojo import Error, native
from llm_mojo.callables import as_option
from llm_mojo.files import AnyPath
from llm_mojo.run_log import LOG, Follower, read_settings
from llm_mojo.trainer_flags import as_words

if TYPE_CHECKING:
    from llm_mojo.model import GPT2

Record = dict[str, Any]
POLL_SECONDS = 0.02


class Training(Iterator[Record]):
    """A run under way: iterate over it for the records of log.jsonl, of a step ("loss" ...) or a validation ("val_loss").

    It ends when the run does. `stop`, or leaving a `with` block or the loop's last reference, ends it after the step that it is
    in, saved if it has a folder; the same call of `train` then goes on.
    """

    def __init__(self, words: list[str], folder: Path | None, on_record: Callable[[Record], None] | None, show: bool):
        self.folder = folder
        """The folder of the run; None if it keeps nothing."""
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="llm-mojo-")
        place = folder or Path(self._temporary.name) / "run"  # type: ignore[union-attr]  # one of both is there
        if not folder:
            words = [*words, "-o", f"{place}", "-n", "0"]
        self._log = place / LOG
        self._first = _steps_done(place) if _resumes(words) else 0
        self._old = self._log.read_bytes() if self._log.is_file() else b""
        self._on_record = on_record
        self._waiting: list[Record] = []
        self._follower: Follower | None = None
        self._stopped = False
        self._errors = tempfile.TemporaryFile()
        sys.stdout.flush()
        shown = None if show else subprocess.DEVNULL
        # In a session of its own: Ctrl-C comes to this process, which passes it on.
        command = [f"{native.program('train_gpt2')}", *words]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=shown, stderr=self._errors, start_new_session=True
        )

    def __iter__(self) -> "Training":
        return self

    def __next__(self) -> Record:
        try:
            record = self._next()
            if self._on_record:
                self._on_record(record)
            return record
        except StopIteration:
            raise
        except BaseException:
            self.stop()
            raise

    def _next(self):
        while not self._waiting:
            ended = self._process.poll() is not None
            self._read()
            if not self._waiting:
                if ended:
                    self._finish()
                    raise StopIteration
                time.sleep(POLL_SECONDS)
        return self._waiting.pop(0)

    def _read(self):
        """Takes what has come to the log; what an earlier run left there does not count."""
        if self._follower is None:
            if not self._log.is_file() or (self._old and self._is_old()):
                return
            self._follower = Follower(self._log)
        self._waiting += [record for record in self._follower.read() if record["step"] > self._first or not self._first]

    def _is_old(self):
        """Whether the log still ends in steps that the trainer will take again."""
        last = Follower(self._log).read()[-1:]
        if self._first and last and last[0]["step"] <= self._first:
            return False
        with open(self._log, "rb") as file:
            return file.read(len(self._old)) == self._old

    def stop(self) -> None:
        """Ends the run after the step that it is in, and waits until it is saved."""
        if self._process.poll() is None:
            self._stopped = True
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def model(self, **settings: Any) -> "GPT2":
        """The model of the run's newest checkpoint."""
        from llm_mojo.model import GPT2

        if not self.folder:
            raise Error("train: this run keeps nothing; give it a folder (out)")
        return GPT2.from_pretrained(self.folder, **settings)

    def steps(self) -> int | None:
        """How many steps the run has, once the trainer knows."""
        steps = read_settings(self._log.with_name("run.toml")).get("max-steps")
        return steps if type(steps) is int and steps >= 0 else None

    def _finish(self):
        status = self._process.returncode
        if status and not self._stopped:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            raise Error(said.removeprefix("train_gpt2: ") or f"train: the trainer ended with status {status}")

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    def __del__(self):
        if hasattr(self, "_process"):
            self.stop()
            self._errors.close()


def train(
    *texts: AnyPath,
    on_record: Callable[[Record], None] | None = None,
    show: bool | None = None,
    **settings: Any,
) -> Training:
    """Trains a model: `for record in train("my.txt", max_minutes=2): ...`.

    Does what `llm-mojo train` does with texts; with `train_data` (and `val_data`) what the program `train_gpt2` does. Settings are
    the flags of the trainer by their long names: learning_rate=1e-3, out="runs/mine", n_layer=4; True is a flag without a value.
    `on_record` is called with each record before it is returned. `show`: the program's lines; by default a live curve in
    a notebook, and elsewhere the lines.

    Raises Error if a setting makes no sense, or the run fails.
    """
    flags = {as_option(name).lstrip("-"): value for name, value in settings.items() if value is not None}
    words = as_words({name: int(value) if value is False else value for name, value in flags.items()})
    if "train-data" in flags:
        if texts:
            raise Error("train: expected texts or train_data, got both")
        folder = Path(os.fspath(flags["out"])) if "out" in flags else None
    else:
        from llm_mojo.train import trainer_words

        words = [*(os.fspath(text) for text in texts), *words]
        words = trainer_words(words, ["train", *words])
        folder = Path(words[words.index("-o") + 1]) if "-o" in words else None
    from llm_mojo import notebook

    in_notebook = show is None and notebook.is_here()
    run = Training(words, folder, on_record, show=not in_notebook and show is not False)
    if in_notebook:
        notebook.follow(run)
    return run


def _resumes(words):
    return any(flag in ("-y", "--resume") and value == "1" for flag, value in zip(words, words[1:]))


def _steps_done(folder):
    from llm_mojo.runs import Run

    return Run(folder).newest() or 0
