"""OpenAI's completions protocol: what a request may ask for, and what it gets back.

https://platform.openai.com/docs/api-reference/completions. Beside it: top_k in requests, token_ids in choices, top_token_ids in
logprobs, which clients that do not know them leave alone.
"""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from llm_mojo import Error
from llm_mojo.generation import Alternatives, Piece
from llm_mojo.model import GPT2

MOST_TEXTS = 128  # of a request, all prompts and n of each
MOST_TOKENS = 4096  # of a text
MOST_STOPS = 16
MOST_ALTERNATIVES = 20
MOST_CHARACTERS = 1 << 20  # of a prompt
DEFAULT_TOKENS = 16
IGNORED = "user", "store", "metadata"
REFUSED = {"suffix": None, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": None}
"""What the protocol has and this server has not, with the values that ask for nothing."""


class BadRequest(Error):
    """What a request asks for cannot be: the status of the answer, and which parameter."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass
class Request:
    """A request that has been looked at: all texts that it wants, as tokens."""

    model: str
    prompts: list[list[int]]
    max_tokens: int
    n: int
    stops: list[str]
    settings: dict[str, Any]
    seed: int
    logprobs: int | None
    echo: bool
    stream: bool
    usage_at_end: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def texts(self) -> list[tuple[list[int], int]]:
        """(prompt, seed) of each choice, in order."""
        return [(prompt, self.seed + i) for i, prompt in enumerate(p for p in self.prompts for _ in range(self.n))]

    def usage(self, written: int) -> dict[str, int]:
        """Tokens of the prompts, and of what was written."""
        read = sum(map(len, self.prompts))
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def envelope(self, choices: list, **more: Any) -> dict[str, Any]:
        """What is around the choices."""
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return head | {"choices": choices} | more


def parse(body: Any, model: GPT2) -> Request:
    """Looks at the body of a request. Raises BadRequest with what was expected and what was found."""
    known = {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "best_of",
        "stream",
        "stream_options",
    }
    known |= {"logprobs", "echo", "stop", "seed", *IGNORED, *REFUSED}
    if unknown := body.keys() - known:
        name = min(unknown)
        raise BadRequest(f"Unrecognized request argument: {name:.60}", name[:60])
    for name, nothing in REFUSED.items():
        if body.get(name) not in (nothing, None, {}, ""):
            raise BadRequest(f"{name}: this server has no {name}; leave it out", name)
    n = _integer(body, "n", 1, 1, MOST_TEXTS)
    if _integer(body, "best_of", n, 1, MOST_TEXTS) != n:
        raise BadRequest("best_of: expected the same as n, or nothing", "best_of")
    prompts = _prompts(body.get("prompt", ""), model)
    if len(prompts) * n > MOST_TEXTS:
        raise BadRequest(f"n: expected at most {MOST_TEXTS} texts in a request, found {len(prompts) * n}", "n")
    echo, logprobs = _boolean(body, "echo"), None
    if body.get("logprobs") is not None and body["logprobs"] is not False:
        wanted = body | {"logprobs": 1} if body["logprobs"] is True else body
        logprobs = min(_integer(wanted, "logprobs", 0, 0, MOST_ALTERNATIVES), model.config.vocab_size)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options: expected an object", "stream_options")
    return Request(
        model=body.get("model", ""),
        prompts=prompts,
        max_tokens=_integer(body, "max_tokens", DEFAULT_TOKENS, 0, MOST_TOKENS),
        n=n,
        stops=_stops(body.get("stop")),
        settings={
            "temperature": _real(body, "temperature", 1.0, 0, 100),
            "top_p": _real(body, "top_p", 1.0, 0, 1),
            "top_k": _integer(body, "top_k", 0, 0, 2**31 - 1),
            "logprobs": logprobs,
        },
        seed=_integer(body, "seed", secrets.randbits(31), 0, 2**62),
        logprobs=logprobs,
        echo=echo,
        stream=_boolean(body, "stream"),
        usage_at_end=bool(options.get("include_usage")),
    )


def tokens_of(text: str, model: GPT2, param: str = "prompt") -> list[int]:
    """The tokens of a text; of an empty one the token with which texts begin."""
    if len(text) > MOST_CHARACTERS:
        raise BadRequest(f"{param}: expected at most {MOST_CHARACTERS:,} characters, found {len(text):,}", param)
    if model.tokenizer is None:
        raise BadRequest(f"{param}: this model has no vocabulary; give token ids", param)
    try:
        return model.tokenizer.encode(text, allow_special=True) if text else [model.tokenizer.first_token]
    except ValueError as error:
        raise BadRequest(f"{param}: {error}", param, "unknown_character") from None


def _prompts(value, model):
    if value is None:
        value = ""
    values = [value] if isinstance(value, str) or (isinstance(value, list) and value and _is_token(value[0])) else value
    if not isinstance(values, list) or not values:
        raise BadRequest("prompt: expected a text, token ids, or a list of such", "prompt")
    if len(values) > MOST_TEXTS:
        raise BadRequest(f"prompt: expected at most {MOST_TEXTS} prompts, found {len(values)}", "prompt")
    found = []
    for each in values:
        if isinstance(each, str):
            each = tokens_of(each, model)
        V, context = model.config.vocab_size, model.config.max_seq_len
        if not isinstance(each, list) or not each or not all(_is_token(id) and 0 <= id < V for id in each):
            raise BadRequest(f"prompt: expected texts, or lists of token ids from 0 to {V - 1}", "prompt")
        if len(each) > context:
            raise BadRequest(
                f"prompt: this model's context is {context} tokens, the prompt has {len(each)}; give less text",
                "prompt",
                "context_length_exceeded",
            )
        found.append(each)
    return found


def _is_token(value):
    return type(value) is int


def _stops(value):
    stops = [value] if isinstance(value, str) and value else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(each, str) and each for each in stops)
    ):
        raise BadRequest(f"stop: expected a text that is not empty, or up to {MOST_STOPS} of them", "stop")
    return stops


def _boolean(body, name):
    value = body.get(name)
    if value not in (None, True, False) or type(value) not in (bool, type(None)):
        raise BadRequest(f"{name}: expected true or false, found {value!r:.60}", name)
    return bool(value)


def _integer(body, name, default, least, most):
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{name}: expected a whole number from {least} to {most}, found {value!r:.60}", name)
    return value


def _real(body, name, default, least, most):
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most:
        raise BadRequest(f"{name}: expected a number from {least} to {most}, found {value!r:.60}", name)
    return float(value)


def spelled(word: bytes) -> str:
    """A token as text, or if its bytes are no UTF-8 by themselves as OpenAI spells such: bytes:\\xe2\\x80."""
    try:
        return word.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in word)


class Choice:
    """One text of an answer, as it grows."""

    def __init__(self, request: Request, index: int, prompt: list[int], words: list[bytes] | None):
        self._request, self._words, self.index = request, words, index
        self.finish_reason: str | None = None
        self.text = ""
        self.tokens: list[int] = []
        self._prompt = prompt
        self._rows: list[tuple[int, float | None, Alternatives | None]] = []
        self._offset = 0

    def echo(self, text: str, scores: list[tuple[float, Alternatives]]) -> None:
        """Puts the prompt before the text, with its log-probabilities if they are wanted: the first token has none."""
        self.text = text
        if self._request.logprobs is not None:
            self._rows.append((self._prompt[0], None, None))
            self._rows += [(token, *row) for token, row in zip(self._prompt[1:], scores)]

    def take(self, piece: Piece) -> None:
        """Adds what has come."""
        self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        if piece.drawn:
            self.tokens.append(piece.drawn.token)
            if piece.drawn.logprob is not None:
                self._rows.append((piece.drawn.token, piece.drawn.logprob, piece.drawn.alternatives))

    def news(self) -> dict[str, Any] | None:
        """What has come since the last call, as a choice of a stream; None if nothing has."""
        text, tokens = self.text, self.tokens
        if not text and not self._rows and not tokens and not self.finish_reason:
            return None
        found = self.whole()
        self._offset += len(text)
        self.text, self.tokens, self._rows = "", [], []
        return found

    def whole(self) -> dict[str, Any]:
        """The choice as the protocol has it."""
        choice = {"index": self.index, "text": self.text, "finish_reason": self.finish_reason, "logprobs": None}
        if self._request.logprobs is not None:
            choice["logprobs"] = self._logprobs()
        return choice | {"token_ids": self.tokens}

    def _logprobs(self):
        words = [self._word(token) for token, _, _ in self._rows]
        offsets, place = [], self._offset
        for token, _, _ in self._rows:
            offsets.append(place)
            place += len(self._words[token].decode(errors="replace")) if self._words else 0
        return {
            "tokens": words,
            "token_logprobs": [logprob for _, logprob, _ in self._rows],
            "top_logprobs": [self._likeliest(*row) for row in self._rows],
            "text_offset": offsets,
            "top_token_ids": [[list(pair) for pair in alternatives or []] for _, _, alternatives in self._rows],
        }

    def _likeliest(self, token, logprob, alternatives):
        if logprob is None:
            return None
        # The token itself is among them, as it is in OpenAI's answers.
        return {self._word(token): logprob} | {self._word(id): value for id, value in alternatives}

    def _word(self, token):
        return spelled(self._words[token]) if self._words else f"token_id:{token}"
