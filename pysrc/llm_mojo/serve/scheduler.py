"""Decodes the texts of many requests side by side: a thread for each model, texts come and go between steps.

Nothing here knows of HTTP. What a text gets goes to its `deliver`, which is called in the decoding thread.
"""

import collections
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llm_mojo import Error
from llm_mojo.generation import Batch, Piece, Writer
from llm_mojo.model import GPT2

SIDE_BY_SIDE = 32
"""Texts that are decoded at a time; others wait."""


@dataclass
class Text:
    """A text to be written: its prompt, how it is drawn and where it ends, and who gets the pieces."""

    prompt: list[int]
    max_tokens: int
    settings: dict[str, Any]
    """temperature, top_k, top_p, seed, logprobs, as `Batch.add` takes them."""
    stops: list[str]
    deliver: Callable[["Piece | Exception"], None]
    index: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it, and the text ends at the next step."""


class Scheduler:
    """The decoding thread of one model."""

    def __init__(self, model: GPT2, texts: int = SIDE_BY_SIDE):
        self.model = model
        self._batch = Batch(model, texts)
        self._waiting: collections.deque[Text] = collections.deque()
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._ends = False
        self.active = 0
        """Texts that are being written or wait."""
        self._thread = threading.Thread(target=self._run, name="llm-mojo-decode", daemon=True)
        self._thread.start()

    def submit(self, text: Text) -> None:
        """Has a text written after those that wait."""
        with self._changed:
            self._waiting.append(text)
            self.active += 1
            self._changed.notify()

    def call(self, function: Callable[[GPT2], Any]) -> Future:
        """Runs function(model) between two steps, in the decoding thread."""
        future: Future = Future()
        with self._changed:
            self._work.put((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread; texts under way are not finished."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    # ----- in the thread

    def _run(self):
        writers: dict[int, tuple[Text, Writer]] = {}
        while True:
            with self._changed:
                while not (self._ends or writers or self._waiting or not self._work.empty()):
                    self._changed.wait()
                if self._ends:
                    return
            self._do_work()
            self._admit(writers)
            for slot, (text, _) in list(writers.items()):
                if text.cancelled.is_set():
                    self._leave(writers, slot)
            try:
                drawn = self._batch.step()
            except Exception as error:  # whoever waits for it has to know, whatever it is
                for slot, (text, _) in list(writers.items()):
                    text.deliver(error)
                    self._leave(writers, slot)
                continue
            for each in drawn:
                self._give(writers, each)

    def _do_work(self):
        while not self._work.empty():
            function, future = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self.model))
                except Exception as error:  # it goes to whoever asked
                    future.set_exception(error)

    def _admit(self, writers):
        while len(self._batch) < self._batch.capacity:
            with self._changed:
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            if text.cancelled.is_set() or not text.max_tokens:
                if not text.cancelled.is_set():
                    text.deliver(Piece(text.index, "", None, "length"))
                self._count_out()
                continue
            try:
                slot = self._batch.add(text.prompt, **text.settings)
            except Error as error:
                text.deliver(error)
                self._count_out()
                continue
            writers[slot] = text, Writer(self.model.tokenizer, text.stops, text.max_tokens)

    def _give(self, writers, drawn):
        text, writer = writers[drawn.text]
        come = writer.push(drawn.token)
        if writer.finish_reason:
            self._leave(writers, drawn.text)
        text.deliver(Piece(text.index, come, drawn, writer.finish_reason))

    def _leave(self, writers, slot):
        self._batch.remove(slot)
        del writers[slot]
        self._count_out()

    def _count_out(self):
        with self._changed:
            self.active -= 1
