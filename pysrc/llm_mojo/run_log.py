"""The log of a run, OUT/log.jsonl: one JSON object a line, of a step ("loss" ...) or of a validation ("val_loss")."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from llm_mojo import Error
from llm_mojo.files import AnyPath

LOG = "log.jsonl"
LARGEST = 1e300  # of numbers in a log; beyond, sums and floats end


def find_log(run: AnyPath) -> Path:
    """The log of a run, which is named by its folder or by the log itself."""
    run = Path(run)
    if run.is_file():
        return run
    log = run / LOG
    if log.is_file():
        return log
    if run.is_dir():
        raise Error(f"{run}: expected {LOG} in the folder of a run, found none; give a folder that --out named")
    raise Error(f"{run}: no such run; expected the folder that --out named, or its {LOG}")


def read_settings(path: AnyPath) -> dict[str, Any]:
    """The settings in a run.toml or a preset, flat TOML: name -> number, bool or text. Without a file, none.

    Paths may have bytes that are no UTF-8: they are as Python has them in names of files. Other lines are left out.
    """
    if not Path(path).is_file():
        return {}
    settings = {}
    for line in Path(path).read_bytes().decode(errors="surrogateescape").split("\n"):
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and not name.startswith("#"):
            try:
                settings[name] = _value(value)
            except (ValueError, RecursionError):
                continue
    return settings


def _value(text):
    """A TOML text, number or boolean, which a comment may follow."""
    if text.startswith("'"):
        return text[1 : text.index("'", 1)]
    if not text.startswith('"'):
        text = text.partition("#")[0].strip().replace("_", "")
    return json.JSONDecoder(strict=False).raw_decode(text)[0]


class Follower:
    """Reads a log that may be growing, piece by piece; each piece is whole lines."""

    def __init__(self, path: AnyPath):
        self.path = Path(path)
        self.offset = 0
        """Bytes that have been read."""
        self._lines = 0

    def go_on_from(self, offset: int) -> None:
        """Leaves out what is before a byte at which a line begins."""
        self.offset = offset

    def read(self) -> list[dict[str, Any]]:
        """The records that have been added since the last call, in order.

        A last line without its end is left for later. A resumed run cuts its log off where it goes on: when the log
        has become shorter, it is read again from the start.
        """
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < self.offset:
                self.offset = self._lines = 0
            file.seek(self.offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self.offset += len(text)
        records = []
        for line in text.splitlines():
            self._lines += 1
            records.append(self._parse(line))
        return records

    def _parse(self, line):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or not 0 <= step < 2**63:
            start = line[:40].decode(errors="replace")
            raise Error(f'{self.path}, line {self._lines}: expected an object with a "step", found {start!r}')
        for name, value in record.items():
            if isinstance(value, (int, float)) and abs(value) > LARGEST:
                raise Error(
                    f"{self.path}, line {self._lines}: expected {name} up to {LARGEST:g}, found {str(value):.40}"
                )
        return record

    def is_running(self) -> bool:
        """Whether a trainer holds the log; it does so from its start to its end."""
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
