"""From files to token ids: one process reads, all cores clean and tokenize, the results come back in order."""

import collections
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from llm_mojo import Error
from llm_mojo.cleaning import Cleaning
from llm_mojo.formats import token_dtype
from llm_mojo.readers import TextReader, well_formed

BYTES_PER_WORKER = 1 << 23  # another process is started for so much more text


class Work(NamedTuple):
    """What is done to every block, wherever it is done."""

    tokenizer: Any
    cleaning: Cleaning
    separator: str  # between documents, for a tokenizer without an end of text


class Encoded(NamedTuple):
    """The tokens of a block."""

    ids: np.ndarray
    lengths: list  # tokens of each document that was kept, or of a part of one
    keys: list  # of these, for duplicates; empty where those are not looked for
    documents: int  # that begin here, with those that were dropped
    dropped: int
    replaced: int  # texts in which U+FFFD stands for halves of characters


class Result(NamedTuple):
    """The tokens of a block, and where it ends."""

    file: int  # number of the file
    block: Any  # without its data
    encoded: Encoded


def encode(work, reader, block, is_first):
    """Cleans and tokenizes the documents of a block. `is_first`: no text comes before it."""
    tokenizer, cleaning, separator = work
    as_bytes = tokenizer.takes_bytes and not cleaning
    separator = separator if tokenizer.eot is None else ""
    pieces: list[tuple] = []
    keys: list[bytes] = []
    documents = dropped = replaced = 0
    for text, starts in reader.documents(block, as_bytes):
        documents += starts
        if cleaning:
            text, key = cleaning(text)
            if text is None:
                dropped += 1
                continue
            keys.append(key)
        if isinstance(text, str):
            whole = well_formed(text)
            replaced += whole is not text
            text = whole
        if separator and starts and not (is_first and not pieces):
            text = separator + text
        pieces.append((text, starts))
    dtype = token_dtype(len(tokenizer.tokens))
    if cleaning.is_unique:
        # Each by itself: a duplicate will be cut out.
        parts = [tokenizer.encode([piece]) for piece in pieces]
        lengths = [len(part) for part in parts]
        ids = np.concatenate(parts) if parts else np.zeros(0)
    else:
        ids, lengths, keys = tokenizer.encode(pieces) if pieces else np.zeros(0), [], []
    return Encoded(np.asarray(ids).astype(dtype, copy=False), lengths, keys, documents, dropped, replaced)


def results(files, readers, work, workers, start=(0, None)):
    """Yields a Result for every block of the files from `start`, (number of a file, place in it), on, in order.

    `files` are functions that return a path: each is called when its turn has come.
    """

    def blocks():
        number, place = start
        for file in range(number, len(files)):
            for block in readers[file].blocks(files[file](), place, whole=bool(work.cleaning)):
                yield file, block, (file, place) == (0, None)
                place = block.after
            place = None

    with _pool(work, workers) as submit:
        pending: collections.deque[tuple] = collections.deque()
        try:
            for file, block, is_first in blocks():
                pending.append((file, block._replace(data=None), submit(readers[file], block, is_first)))
                if len(pending) > 2 * workers:
                    yield _result(*pending.popleft())
            while pending:
                yield _result(*pending.popleft())
        except BrokenProcessPool:
            raise Error(
                "prepare: a process that tokenizes was killed, by the system for want of memory or by someone; the same"
                " command goes on where this one stopped, --workers 1 takes the least memory"
            ) from None


def _result(file, block, wait):
    return Result(file, block, wait())


class _pool:
    """Gives a function that starts `encode` for a block and returns one that waits for its result."""

    def __init__(self, work, workers):
        self._work, self._workers, self._pool = work, workers, None

    def __enter__(self):
        if self._workers == 1:
            return lambda *block: lambda: encode(self._work, *block)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._workers, context, _start_worker, (self._work,))
        return lambda *block: self._pool.submit(_encode, *block).result

    def __exit__(self, *exception):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_work = None  # of this worker process


def _start_worker(work):
    global _work
    _work = work
    # Ctrl-C reaches every process of the terminal; the main one deals with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    parent = multiprocessing.parent_process()
    assert parent  # workers are children
    parent.join()
    os._exit(1)


def _encode(reader, block, is_first):
    return encode(_work, reader, block, is_first)


def workers_for(size, workers=None):
    """How many processes are worth starting for so many bytes (None: not known): at most `workers`, or all cores."""
    workers = workers or available_cores()
    return workers if size is None else max(1, min(workers, size // BYTES_PER_WORKER))


def available_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def place_of(character, path, reader):
    """Where a character first stands in a file, for people."""
    line, column, document = 1, 1, 0
    lines = isinstance(reader, TextReader)
    reader = TextReader() if lines else reader  # separators are counted too
    for block in reader.blocks(path):
        for text, starts in reader.documents(block):
            document += starts
            if not lines and starts:
                line = column = 1
            before, found, _ = text.partition(character)
            newlines = before.count("\n")
            line, column = line + newlines, len(before) - before.rfind("\n") if newlines else column + len(before)
            if found:
                return f"{path}, line {line}, column {column}" if lines else f"{path}, document {document}, line {line}"
    return f"{path}"


def first_unknown(error, files, readers):
    """An error that says where the first character stands that a vocabulary does not have."""
    for file, reader in zip(files, readers):
        place = place_of(error.character, file(), reader)
        if place != f"{file()}":
            return Error(f"{error}: it stands in {place}; remove it, or use --tokenizer byte")
    return Error(f"{error}; remove it, or use --tokenizer byte")
