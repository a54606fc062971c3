"""What may be done to documents before they become tokens: each cleaning function gets a text and returns one, or None.

They are named, so that a manifest can say what was done: `strip`, `whitespace`, `min-chars:N`, `unique`, and
`FILE.py:FUNCTION` for one of the user's own.
"""

import functools
import hashlib
import importlib.util
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_mojo import Error

UNIQUE = "unique"
NAMES = f"strip, whitespace, min-chars:N, {UNIQUE}, FILE.py:FUNCTION"


def strip(text):
    """Removes white space around a document."""
    return text.strip() or None


def whitespace(text):
    """One space for several, no spaces at the ends of lines, one empty line for several."""
    text = re.sub(r"[^\S\n]+", " ", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n", "\n", text))


def min_chars(count, text):
    """Drops a document of fewer characters."""
    return text if len(text) >= count else None


@dataclass(frozen=True)
class Cleaning:
    """A chain of functions, by their names."""

    names: tuple = ()

    def __post_init__(self):
        self.functions  # noqa: B018, so that wrong names are found at once

    def __reduce__(self):
        return Cleaning, (self.names,)

    def __bool__(self):
        return bool(self.names)

    @functools.cached_property
    def functions(self) -> list[Callable]:
        return [_function(name) for name in self.names]

    @property
    def is_unique(self):
        return UNIQUE in self.names

    def __call__(self, text):
        """Returns (text, or None if the document is dropped; hash of the text where duplicates are looked for, or b"")."""
        key = b""
        for name, function in zip(self.names, self.functions):
            if name == UNIQUE:
                key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
                continue
            text = function(text)
            if text is None:
                break
            if not isinstance(text, str):
                raise Error(f"--clean {name}: expected a text or None from the function, got {text!r:.60}")
        return text, key

    def identity(self):
        """The names, with the hashes of the user's own files: two runs with the same identity do the same."""
        return [
            (
                f"{name} (sha256 {hashlib.sha256(Path(name.rpartition(':')[0]).read_bytes()).hexdigest()})"
                if ".py:" in name
                else name
            )
            for name in self.names
        ]


def _function(name):
    if name in ("strip", "whitespace", UNIQUE):
        return {"strip": strip, "whitespace": whitespace, UNIQUE: None}[name]
    start, _, end = name.rpartition(":")
    if start == "min-chars" and end.isdecimal():
        return functools.partial(min_chars, int(end))
    if not start.endswith(".py"):
        raise Error(f"--clean: expected names from {NAMES}, got {name}")
    spec = importlib.util.spec_from_file_location(Path(start).stem, start)
    assert spec and spec.loader  # every name that ends in .py has them
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise Error(f"--clean {name}: no such file: {start}") from None
    if not callable(getattr(module, end, None)):
        raise Error(f"--clean {name}: expected a function {end} in {start}, found none")
    return getattr(module, end)


class Seen:
    """The documents that have come before, by their hashes, in a file: memory does not grow with them."""

    def __init__(self, path, documents):
        """Goes on with those among the first `documents`; what a killed run noted after them is forgotten."""
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS seen (hash BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._database.execute("DELETE FROM seen WHERE number >= ?", (documents,))

    def add(self, key, number):
        """Notes document `number`; tells whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, number)).rowcount == 1

    def save(self):
        """Brings what was noted to the disk."""
        self._database.commit()

    def close(self):
        """Closes the file."""
        self._database.close()
