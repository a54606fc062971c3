"""The manifest beside every prepared set: what it was made from, how, and the hash of every file.

The trainer reads `tokenizer` (vocab_size, sha256) to see that data, tokenizer and model belong together.
"""

import platform
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_mojo import Error, files
from llm_mojo.download import sha256_of

PACKAGES = ("llm-mojo", "numpy", "pyarrow", "tiktoken", "tokenizers")


def describe(recipe, argv, tokenizer, inputs, outputs, **counts):
    """The manifest as a dictionary. `recipe` is what the result depends on: equal recipes and inputs, equal files."""
    return {
        "manifest": 1,
        "command": shlex.join(["python", "-m", "llm_mojo", *argv]),
        "versions": versions(),
        "recipe": recipe,
        "tokenizer": tokenizer,
        **counts,
        "inputs": inputs,
        "outputs": outputs,
    }


def versions():
    """Python's version and those of the packages that have a part in the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


class Inputs:
    """The files of a data set as they are opened.

    Meanwhile, in threads, their hashes are computed and the file after the one in use is downloaded.
    """

    def __init__(self, files):
        self.files = files
        self.sizes = [file.size for file in files]
        self._entries = {}
        self._ahead = {}
        self._thread = ThreadPoolExecutor(1)

    def opener(self, number):
        """A function that fetches a file, notes it and returns its path."""

        def open_file():
            file = self.files[number]
            path = Path(self._ahead[number].path() if number in self._ahead else file.fetch())
            if number + 1 < len(self.files) and self.files[number + 1].url and number + 1 not in self._entries:
                self._ahead[number + 1] = _Fetching(self.files[number + 1])
            self.sizes[number] = path.stat().st_size
            if number not in self._entries:
                sha256 = file.sha256 or self._thread.submit(sha256_of, path)
                self._entries[number] = (path, files.fingerprint(path), fingerprint(path), sha256)
            return path

        return open_file

    def fraction(self, number, read):
        """How much has been read when so much of file `number` has been; None if that is not known."""
        if None in self.sizes:
            return None
        return (sum(self.sizes[:number]) + read) / max(sum(self.sizes), 1)

    def entries(self):
        """name, url, bytes, time of change and SHA-256 of every file; waits until all are known.

        Raises Error if one has changed since it was opened first: what was read of it is of several versions.
        """
        listed = []
        for number, file in enumerate(self.files):
            if number not in self._entries:
                self.opener(number)()
            path, before, mark, sha256 = self._entries[number]
            sha256 = sha256 if isinstance(sha256, str) else sha256.result()
            if files.fingerprint(path) != before:
                raise Error(
                    f"{path}: the file changed while it was read; run the command again when nobody writes to it"
                )
            entry = {"name": file.name, **({"url": file.url} if file.url else {}), **mark}
            listed.append(entry | {"sha256": sha256})
        return listed

    def close(self):
        """Gives up the hashes that nobody waits for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Fetching:
    """A download in a thread that does not keep the program from ending: what has come by then is used next time."""

    def __init__(self, file):
        self._file, self._path = file, None
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def _fetch(self):
        try:
            self._path = self._file.fetch()
        except (Error, OSError):
            pass  # path() tries again, and raises

    def path(self):
        """Waits for the file."""
        self._thread.join()
        return self._path or self._file.fetch()


def fingerprint(path):
    """What changes when a file is written to."""
    status = Path(path).stat()
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def inputs_are(files, entries):
    """Whether the files are still those that a manifest lists. What is on the network is taken to be as it was."""
    if [file.name for file in files] != [entry["name"] for entry in entries]:
        return False
    for file, entry in zip(files, entries):
        if file.url:
            continue
        path = file.fetch()
        mark = fingerprint(path)
        if mark["bytes"] != entry.get("bytes"):
            return False
        if mark["modified"] != entry.get("modified") and sha256_of(path) != entry.get("sha256"):
            return False
    return True
