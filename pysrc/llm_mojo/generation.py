"""Text from a model: one prompt or many side by side, as it comes, with the alternatives of each token on request."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mojo.arguments import integer, real
from llm_mojo.engine import EngineError, Handle, address_of, call, view

if TYPE_CHECKING:
    from llm_mojo.model import GPT2
    from llm_mojo.text import Tokenizer

SIDE_BY_SIDE = 32  # texts that generate() has under way; more wait
Alternatives = list[tuple[int, float]]  # (token, log-probability), the likeliest first


@dataclass
class Drawn:
    """A token that a text has got: `logprobs` has its log-probability first, then the likeliest tokens of its place."""

    text: int
    token: int
    logprob: float | None = None
    alternatives: Alternatives = field(default_factory=list)


@dataclass
class Piece:
    """What has come of text `index`: some characters, perhaps none yet; with the last one why it ended."""

    index: int
    text: str
    drawn: Drawn | None
    finish_reason: str | None = None


@dataclass
class Completion:
    """A continued prompt, without the prompt. `finish_reason`: "length" (max_tokens) or "stop" (end of text, or a stop text)."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    finish_reason: str = "length"

    def __str__(self) -> str:
        return self.text


class Batch:
    """Texts that a model is writing side by side. They come and go between steps, and none depends on what runs beside it.

    A step gives each text its next token. Where a text would outgrow the context, its older half is dropped and the rest is
    read again. While texts are under way the model's parameters should stay as they are.
    """

    def __init__(self, model: "GPT2", texts: int = 8, context: int | None = None):
        """Makes room for so many texts of up to `context` tokens (default: the model's)."""
        longest = model.config.max_seq_len
        self.model = model
        self.capacity = integer("texts", texts, 1, 4096)
        self.context = longest if context is None else integer("context", context, 1, longest)
        settings = model.threads, self.capacity, self.context
        self._bf16 = model._bf16
        with model._lock:
            # The decoder reads the model's parameters: the model must not end before.
            where, others = model._where, (model._handle,)
            self._decoder = Handle("decoder", *where, *settings, more=(self._bf16,), others=others)
        self._texts: dict[int, _Text] = {}
        self._free = list(range(self.capacity))

    def __len__(self) -> int:
        return len(self._texts)

    def add(
        self,
        prompt: Sequence[int],
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1337,
        logprobs: int | None = None,
    ) -> int:
        """Reads a prompt of token ids and returns the text's number. Raises EngineError if there is no room: see `len`.

        Draws are those of `sample_gpt2` with these settings; `logprobs` = n also tells the n likeliest tokens of each place.
        """
        if not self._free:
            raise EngineError(f"add: expected at most {self.capacity} texts side by side; remove one first")
        tokens = self.model._tokens("prompt", prompt)
        if tokens.ndim != 1:
            raise EngineError(f"prompt: expected token ids of shape (T,), found {tokens.shape}")
        most = min(self.model.config.vocab_size, 1000)
        number = None if logprobs is None else integer("logprobs", logprobs, 0, most)
        settings = integer("seed", seed, -(2**63)), real("temperature", temperature, 0), integer("top_k", top_k, 0)
        sampler = Handle("sampler", *settings, real("top_p", top_p, 0, 1))
        kept = tokens if len(tokens) <= self.context else self._newest(tokens)
        with self.model._lock:
            slot = self._free[-1]
            self._read(slot, kept, restarts=False)
            self._free.pop()
        self._texts[slot] = _Text(kept.tolist(), sampler, number)
        return slot

    def step(self) -> list[Drawn]:
        """Appends a token to every text and returns them, in the order in which the texts came. Nothing if there is none."""
        if not self._texts:
            return []
        V = self.model.config.vocab_size
        with self.model._lock:
            for slot, text in self._texts.items():
                if len(text.tokens) > self.context:
                    text.tokens = self._newest(text.tokens)
                    self._read(slot, np.array(text.tokens, dtype=np.int32), restarts=True)
            slots = np.array(list(self._texts), dtype=np.int32)
            last = np.array([text.tokens[-1] for text in self._texts.values()], dtype=np.int32)
            where = np.zeros(1, dtype=np.int64)
            call("decoder_step", *self._where, address_of(last), address_of(slots), len(slots), address_of(where))
            token = np.zeros(1, dtype=np.int64)
            drawn = []
            for row, (slot, text) in enumerate(self._texts.items()):
                address = int(where[0]) + 4 * V * row
                call("sampler_draw", text.sampler.address, address, V, address_of(token))
                each = Drawn(slot, int(token[0]))
                if text.logprobs is not None:
                    each.logprob, each.alternatives = log_probabilities_of(
                        view(address, (V,)), each.token, text.logprobs
                    )
                text.tokens.append(each.token)
                drawn.append(each)
        return drawn

    def remove(self, text: int) -> None:
        """Ends a text, whose room is free for another."""
        if text not in self._texts:
            raise EngineError(f"remove: expected a text that is under way, of {sorted(self._texts)}, got {text!r:.60}")
        with self.model._lock:
            call("decoder_end", *self._where, text)
        del self._texts[text]
        self._free.append(text)

    @property
    def _where(self):
        return self._decoder.address, self._bf16

    def _read(self, slot, tokens, restarts):
        """Reads all tokens but the last, which the next step appends."""
        call("decoder_begin", *self._where, slot, address_of(tokens), len(tokens) - 1, int(restarts))

    def _newest(self, tokens):
        """Half a context of tokens, and the one that is still to be read."""
        return tokens[len(tokens) - self.context // 2 - 1 :]


@dataclass
class _Text:
    tokens: list[int]
    """What the context holds; the last one is still to be read."""
    sampler: Handle
    logprobs: int | None


def log_probabilities_of(logits: np.ndarray, token: int, count: int) -> tuple[float, Alternatives]:
    """The log-probability of a token, and the likeliest tokens with theirs: of the model as it is, at temperature 1."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    order = np.argpartition(values, -count)[-count:] if count else np.array([], dtype=np.int64)
    order = order[np.lexsort((order, -values[order]))]
    return float(values[token]), [(int(id), float(values[id])) for id in order]


class Writer:
    """Turns the tokens of a text into characters: whole ones, and nothing from a stop text on. It ends after `most` tokens."""

    def __init__(self, tokenizer: "Tokenizer | None", stops: Sequence[str], most: int):
        self._words = tokenizer.words() if tokenizer else None
        self._eot = tokenizer.end_of_text if tokenizer else None
        self._stops, self._left = stops, most
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.finish_reason: str | None = None

    def push(self, token: int) -> str:
        """Takes a token and returns what can be shown; with the last one all, and `finish_reason` says why it ended."""
        self._left -= 1
        if token == self._eot:
            self.finish_reason = "stop"
            return self._finish()
        self._held += self._decoder.decode(self._words[token]) if self._words else ""
        text = self._release()
        reason = self.finish_reason or ("length" if self._left == 0 else None)
        if reason:
            text += self._finish()
            self.finish_reason = reason
        return text

    def _finish(self):
        self._held += self._decoder.decode(b"", True)
        text = self._release()
        text, self._held = text + self._held, ""
        return text

    def _release(self):
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.finish_reason = "stop"
            text, self._held = self._held[: min(found)], ""
            return text
        overlap = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        size = len(self._held) - overlap
        text, self._held = self._held[:size], self._held[size:]
        return text


def _overlap(text, stop):
    """How many characters at the end of a text a stop text may begin with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def _stop_texts(stop):
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    for each in stops:
        if not isinstance(each, str) or not each:
            raise EngineError(f"stop: expected text that is not empty, or a list of such, got {each!r:.60}")
    return stops


def _prompt_tokens(model, prompts):
    """The token ids of each prompt, and whether it was a single one."""
    if isinstance(prompts, (str, bytes)):
        single, prompts = True, [prompts]
    else:
        prompts = list(prompts)
        single = bool(prompts) and not isinstance(prompts[0], (str, bytes)) and np.ndim(prompts[0]) == 0
        prompts = [prompts] if single else prompts
    if not prompts:
        raise EngineError("prompts: expected at least one, got none")
    return [model._tokens("prompts", prompt) for prompt in prompts], single


def generate(
    model: "GPT2",
    prompts: Any = "",
    max_tokens: int = 100,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int = 1337,
    n: int = 1,
    logprobs: int | None = None,
    stream: bool = False,
) -> Any:
    """Continues a prompt (text or token ids) or a list of them, `n` times each, side by side.

    Returns a Completion for one prompt and n = 1, else a list of them in the order of the prompts; with `stream` an iterator
    of Pieces as they come. A text ends after max_tokens, at its end-of-text token, or before a `stop` text. Text i has
    the seed `seed` + i and is what it is alone, whatever runs beside it. temperature 0 takes the likeliest token; top_k and
    top_p as in `sample_gpt2`. `logprobs` = k keeps each token's log-probability and the k likeliest tokens of its place.
    Ctrl-C ends it at the next token.
    """
    tokens, single = _prompt_tokens(model, prompts)
    count = integer("max_tokens", max_tokens, 0)
    copies = integer("n", n, 1, 4096)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "logprobs": logprobs}
    first_seed = integer("seed", seed, 0, 2**62)
    wanted = [(prompt, first_seed + i) for i, prompt in enumerate(each for each in tokens for _ in range(copies))]
    pieces = _pieces(model, wanted, count, _stop_texts(stop), settings)
    if stream:
        return pieces
    completions = [Completion() for _ in wanted]
    for piece in pieces:
        completion = completions[piece.index]
        completion.text += piece.text
        if piece.drawn:
            completion.tokens.append(piece.drawn.token)
            if piece.drawn.logprob is not None:
                completion.logprobs.append(piece.drawn.logprob)
                completion.alternatives.append(piece.drawn.alternatives)
        completion.finish_reason = piece.finish_reason or completion.finish_reason
    return completions[0] if single and copies == 1 else completions


def _pieces(model, wanted, count, stops, settings) -> Iterator[Piece]:
    longest = max(len(prompt) for prompt, _ in wanted)
    context = min(model.config.max_seq_len, max(longest + count, 1))
    batch = Batch(model, min(len(wanted), SIDE_BY_SIDE), context)
    waiting = list(enumerate(wanted))
    writers: dict[int, tuple[int, Writer]] = {}
    while waiting or writers:
        while waiting and len(batch) < batch.capacity and count:
            index, (prompt, seed) = waiting.pop(0)
            text = batch.add(prompt, seed=seed, **settings)
            writers[text] = index, Writer(model.tokenizer, stops, count)
        if not count:
            yield from (Piece(index, "", None, "length") for index, _ in waiting)
            return
        for drawn in batch.step():
            index, writer = writers[drawn.text]
            come = writer.push(drawn.token)
            if writer.finish_reason:
                batch.remove(drawn.text)
                del writers[drawn.text]
            yield Piece(index, come, drawn, writer.finish_reason)
