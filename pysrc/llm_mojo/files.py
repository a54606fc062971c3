"""Files that we make: whole or not there, through no symbolic links, and in place of nothing that is not ours.

Temporary names are a process's own: NAME.<random>.llm-mojo.tmp, locked for as long as that process lives. What a killed
process has left is known by that name and a lock that nobody holds, and is removed by the next one that writes NAME.
"""

import errno
import fcntl
import filecmp
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llm_mojo import Error

AnyPath = str | os.PathLike[str]
LOCK = ".lock"


# ---------------------------------------------------------------------------------------------------------------------
# names and links


def is_plain_name(name: Any) -> bool:
    """Whether this is the name of a file in a folder, rather than a path that leads elsewhere."""
    return isinstance(name, str) and bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name


def fingerprint(path: AnyPath) -> tuple[int, int, int]:
    """What changes when a file is written to or replaced."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def open_own(path: AnyPath, mode: str) -> IO:
    """Opens a file that is ours to write; raises Error if a symbolic link or no ordinary file has its name."""

    def opener(name, flags):
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)

    try:
        file = open(path, mode, opener=opener)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _not_ours(path) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_ours(path)
    return file


def _not_ours(path):
    found = "a symbolic link" if os.path.islink(path) else "something else"
    return Error(
        f"{path}: expected a file of our own to write to, found {found}; move it away, or choose another place"
    )


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Gives errors of the system that name no file, as a full disk does when one writes, this file's name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# whole or not there


@contextmanager
def atomic_file(path: AnyPath, replace: bool = True) -> Iterator[IO[bytes]]:
    """Opens a binary file for writing that appears under `path` only when the block ends without an exception.

    Without `replace` a file that is there already stays, and unless it has the same bytes that is an Error.
    """
    given, path = path, os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove_leftovers(path)
    temporary, file = _new_temporary(path)
    try:
        with file, naming(path):
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Before the lock goes: without it this is a leftover.
            if replace or not os.path.lexists(path):
                os.replace(temporary, path)
            elif not (os.path.isfile(path) and filecmp.cmp(temporary, path, shallow=False)):
                raise Error(
                    f"{given} is there already, with other content; --force replaces it, --out names another place"
                )
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    _sync_folder(os.path.dirname(path))


@contextmanager
def atomic_folder(path: AnyPath) -> Iterator[Path]:
    """Makes a folder beside `path`, for files that are to move there; it is gone when the block ends."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary_name(path)
    os.mkdir(temporary)
    try:
        with open_own(os.path.join(temporary, LOCK), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path):
    return f"{path}.{secrets.token_hex(4)}.llm-mojo.tmp"


def _new_temporary(path):
    """Returns (name, file): open and locked, and still under its name, which another process may have tidied up."""
    while True:
        temporary = _temporary_name(path)
        file = open_own(temporary, "x+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(temporary):
            return temporary, file
        file.close()


def _remove_leftovers(path):
    """Removes what processes that were killed have left under temporary names of `path`."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder):
        if re.fullmatch(re.escape(name) + r"\.[0-9a-f]{8}\.llm-mojo\.tmp", other):
            leftover = os.path.join(folder, other)
            is_folder = os.path.isdir(leftover) and not os.path.islink(leftover)
            try:
                with open_own(os.path.join(leftover, LOCK) if is_folder else leftover, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover, ignore_errors=True) if is_folder else os.unlink(leftover)
            except (Error, OSError):
                pass  # another process is writing it, or has just finished; or it is not ours


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
