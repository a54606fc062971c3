"""Finds the files that others publish: in the folder named by LLM_MOJO_CACHE, in data/.cache, in a Python package that
carries them, or on the network; in this order.

Every file has a place `<set>/<file>` under both folders (`gpt2/vocab.bpe`). A download grows as `<file>.part`, next to
`<file>.part.json` which says what it is a part of, and continues there when it was cut off. A SHA-256 is checked where
the source publishes one; where not, it is recorded in data/.cache at first use (`<file>.lock.json`) and checked afterwards.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from llm_mojo import Error
from llm_mojo.files import LOCK, AnyPath, atomic_file, naming, open_own
from llm_mojo.progress import Progress

CACHE = Path("data/.cache")
BLOCK_BYTES = 1 << 16
TIMEOUT_SECONDS = 30
SLOW_SECONDS, SLOW_BYTES = 60, 10_000  # a server that sends less is given up, as one that sends nothing
LARGEST_DOWNLOAD = 10_000_000_000  # bytes, of a file whose size nobody says: more than GPT-2 XL
ATTEMPTS_WITHOUT_PROGRESS = 4
BACKOFF_SECONDS = 1.0
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class Package(NamedTuple):
    """A Python package that has files of a set: its module, the folder in it, and the extra that installs it."""

    module: str
    folder: str
    extra: str

    def find(self, file_name, sha256):
        """The path of a file with this SHA-256, or None. Nothing is imported."""
        spec = importlib.util.find_spec(self.module)
        folders = spec.submodule_search_locations or () if spec else ()
        paths = (Path(folder) / self.folder / file_name for folder in folders)
        return next((path for path in paths if path.is_file() and sha256_of(path) == sha256), None)


def fetch(set_name, file_name, url, sha256=None, package=None, at_most=LARGEST_DOWNLOAD):
    """Returns the path of a whole and checked file, after downloading it if it is nowhere on this machine.

    A `package` is only asked for files whose SHA-256 is published; where it has another file of that name, it counts as
    not installed. A download of more than `at_most` bytes is given up.
    """
    where_to_put = _where_to_put(set_name, file_name, url, package)
    path = CACHE / set_name / file_name
    given = os.environ.get("LLM_MOJO_CACHE")
    if given and (Path(given) / set_name / file_name).is_file():
        path = Path(given) / set_name / file_name
    with locked(CACHE / set_name):
        lock = CACHE / set_name / f"{file_name}.lock.json"
        if path.is_file():
            if wrong := _wrong_hash(path, url, lock, sha256):
                raise Error(f"{path}: {wrong}; move the file away to fetch it again. {where_to_put}")
            return path
        if package and (found := package.find(file_name, sha256)):
            return found
        part = _download(url, path, where_to_put, at_most)
        if wrong := _wrong_hash(part, url, lock, sha256):
            os.replace(part, f"{path}.wrong")
            raise Error(f"download: {url}: {wrong}; what came is kept as {path}.wrong: try again. {where_to_put}")
        os.replace(part, path)
    return path


@contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Creates `folder` and lets one process at a time work in it; the others wait."""
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open_own(folder / LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is at work in {folder}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Of work that has failed nothing stays but what is worth going on with.
            if is_new and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


def write_json(path: AnyPath, value: object) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def read_json(path):
    """Returns what a JSON file written by write_json holds, or None where there is none or it is damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# hashes


def _wrong_hash(path, url, lock, sha256):
    """Compares a file with its published SHA-256, else with the one recorded in `lock` (recording it if there is none).

    Returns None if they agree, else what was expected and found.
    """
    found = sha256_of(path)
    recorded = {} if sha256 else read_json(lock)
    if not sha256 and not (isinstance(recorded, dict) and recorded.get("sha256")):
        write_json(lock, {"url": url, "sha256": found, "bytes": path.stat().st_size})
        return None
    expected = sha256 or recorded["sha256"]
    if found == expected:
        return None
    origin = "published" if sha256 else f"recorded at first use in {lock}; delete that file if the new content is right"
    return f"expected SHA-256 {expected} ({origin}), found {found}"


def _where_to_put(set_name, file_name, url, package):
    given, file = os.environ.get("LLM_MOJO_CACHE"), f"{set_name}/{file_name}"
    place = f"{given}/{file}" if given else f"<folder>/{file} with LLM_MOJO_CACHE=<folder>"
    install = f"install a package that has it: pip install -e '.[{package.extra}]'; or " if package else ""
    return (
        f"Without a network, {install}get {file_name} from {url} on another machine and put it at {CACHE}/{file} or at"
        f" {place}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# one file over HTTP


class _Refused(Exception):
    """The server said no in a way that asking again will not change."""


def _download(url, path, where_to_put, at_most):
    """Downloads all of `path`.part and returns its path; asks again after errors of the network, with growing pauses."""
    import requests
    from urllib3.exceptions import HTTPError

    part, failures = Path(f"{path}.part"), 0
    most = _size(part)
    print(f"downloading {url} to {path}", flush=True)
    while True:
        try:
            _continue_part(requests, url, part, at_most)
            _description(part).unlink(missing_ok=True)
            return part
        except _Refused as error:
            raise Error(f"download: {error}. {where_to_put}") from None
        except (requests.RequestException, HTTPError) as error:
            # Only what has never come before is progress: a server may make us start over for ever.
            failures = 1 if _size(part) - most > SLOW_BYTES else failures + 1
            most = max(most, _size(part))
            if failures >= ATTEMPTS_WITHOUT_PROGRESS:
                message = f"download: cannot get {url}: {_reason(error)}"
                if _size(part):
                    message += f"; {_size(part):,} bytes are kept in {part}, the same command goes on from there"
                raise Error(f"{message}. {where_to_put}") from None
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))


def _continue_part(requests, url, part, at_most):
    """One request: appends to `part` if the server still has the same file, else starts over. Raises if it is cut off."""
    known = read_json(_description(part))
    known = known if isinstance(known, dict) else {}
    start = _size(part) if known.get("url") == url and isinstance(known.get("validator"), str) else 0
    if start and start == known.get("total"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "llm.mojo"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416 or (response.status_code == 206 and not _continues(response, start, known)):
            part.unlink()
            raise requests.ConnectionError("the file on the server has changed; starting over")
        if response.status_code in RETRIED_STATUS:
            raise requests.ConnectionError(f"the server answered {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise _Refused(f"the server answered {response.status_code} {response.reason} for {url}")
        if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise _Refused(f"expected the file as it is, the server packs it ({packed}) for {url}")
        start = start if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if re.fullmatch(r"[0-9]{1,100}", length) else None
        if total is not None and total > at_most:
            raise _Refused(f"expected at most {at_most:,} bytes, the server has {total:,} for {url}")
        write_json(_description(part), {"url": url, "validator": _validator(response), "total": total})
        _copy(requests, response, part, start, total, at_most)


def _continues(response, start, known):
    """Whether a partial answer begins where the part ends, and belongs to the file that the part came from."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != start:
        return False
    same_total = match[2] == "*" or known.get("total") in (None, int(match[2]))
    return same_total and _validator(response) in (None, known["validator"])


def _copy(requests, response, part, start, total, at_most):
    url, limit = response.url, at_most if total is None else total
    with open_own(part, "ab" if start else "wb") as file, naming(part), Progress(part.stem) as progress:
        began, seconds = file.tell(), time.monotonic()
        while block := response.raw.read1(BLOCK_BYTES):
            file.write(block)
            found = file.tell()
            progress.show(found / total if total else None, found - start)
            if found > limit:
                raise _Refused(f"expected at most {limit:,} bytes, the server sends more for {url}")
            if time.monotonic() - seconds >= SLOW_SECONDS:
                if found - began < SLOW_BYTES:
                    raise requests.ConnectionError(f"less than {SLOW_BYTES:,} bytes came in {SLOW_SECONDS} seconds")
                began, seconds = found, time.monotonic()
        found = file.tell()
    if total is not None and found != total:
        raise requests.ConnectionError(f"the connection was cut at {found:,} of {total:,} bytes")


def _validator(response):
    """What identifies this version of the file in an If-Range header, or None. A weak ETag cannot."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _description(part):
    return Path(f"{part}.json")


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _reason(error):
    """The innermost of nested network errors: `Name or service not known` rather than a page of wrapping."""
    while True:
        inner = getattr(error, "reason", None) or next((arg for arg in error.args if isinstance(arg, Exception)), None)
        if not isinstance(inner, Exception):
            return f"{error}" or type(error).__name__
        error = inner
