"""The server: OpenAI's completions, what the page needs beside them, and the page itself."""

import asyncio
import base64
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_mojo import Error
from llm_mojo.serve import run_view
from llm_mojo.serve.completions import BadRequest, Choice, Request, parse, spelled, tokens_of
from llm_mojo.serve.registry import Registry
from llm_mojo.serve.scheduler import Scheduler, Text

PAGE = Path(__file__).with_name("page")
LARGEST_BODY = 8 << 20
MOST_WAITING = 512
"""Texts under way and waiting for one model; beyond, requests are told to come later."""
MOST_ATTENTION = 256
COOKIE = "llm_mojo_token"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # A model's text is never code: nothing but our own files may run, and nothing comes from elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Gate:
    """Looks at every request before the server does: Host, Origin, token. `token` None: none is asked for."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, token: str | None):
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HttpRequest(scope)
        try:
            self._check(request)
        except BadRequest as error:
            await JSONResponse(error.body(), error.status, HEADERS)(scope, receive, send)
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _check(self, request):
        host = request.headers.get("host", "")
        # Another name that leads here may be a page of someone else's that asks for what is ours.
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise BadRequest(f"Host: expected one of {', '.join(sorted(self._hosts))}, found {host!r:.100}", status=403)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise BadRequest(f"Origin: expected this server's own page, found {origin!r:.100}", status=403)
        token = self._token
        if token is not None and not any(is_token(token, given) for given in _tokens_of(request)):
            raise BadRequest(
                "a token is needed: Authorization: Bearer TOKEN, or open the address that the server has printed",
                code="invalid_api_key",
                status=401,
            )


def is_token(expected: str, given: str) -> bool:
    """Whether the token is the right one, in the same time for every wrong one."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _name_of(host):
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _tokens_of(request):
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    found = [given] if kind.lower() == "bearer" else []
    return [*found, *filter(None, (request.cookies.get(COOKIE), request.query_params.get("token")))]


class Server:
    """What the routes do."""

    def __init__(self, registry: Registry, runs: Path, timeout_s: float):
        self._registry, self._runs, self._timeout_s = registry, runs, timeout_s

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/page/{name}", self.page),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/api/tokens", self.tokens, methods=["POST"]),
            Route("/api/attention", self.attention, methods=["POST"]),
            Route("/api/runs", self.list_of_runs),
            Route("/api/runs/{name}", self.run),
        ]

    async def page(self, request: HttpRequest) -> Response:
        name = request.path_params.get("name", "index.html")
        if token := request.query_params.get("token"):
            # It stays in the browser, and leaves the address.
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        known = {path.name: path for path in PAGE.iterdir()}
        if name not in known:
            raise HTTPException(404, f"there is no {name}")
        return FileResponse(known[name], media_type=TYPES[known[name].suffix])

    async def models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": await _in_thread(self._registry.models)})

    async def model(self, request: HttpRequest) -> Response:
        for model in await _in_thread(self._registry.models):
            if model["id"] == request.path_params["name"]:
                return JSONResponse(model)
        raise BadRequest("The model does not exist", "model", "model_not_found", 404)

    async def completions(self, request: HttpRequest) -> Response:
        body = await _json(request)
        scheduler = await self._scheduler(body)
        wanted = await _in_thread(parse, body, scheduler.model)
        if scheduler.active and scheduler.active + len(wanted.texts()) > MOST_WAITING:
            raise BadRequest(
                f"{scheduler.active} texts are under way or wait; try again in a while", code="queue_full", status=429
            )
        job = _Job(wanted, scheduler, self._timeout_s)
        if wanted.stream:
            return StreamingResponse(_events(job), media_type="text/event-stream")
        leaving = asyncio.ensure_future(_gone(request))
        answering = asyncio.ensure_future(job.answer())
        try:
            await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return Response(status_code=499)
            return JSONResponse(answering.result())
        finally:
            leaving.cancel()
            answering.cancel()
            job.cancel()

    async def tokens(self, request: HttpRequest) -> Response:
        body = await _json(request)
        model = (await self._scheduler(body)).model
        ids = await _in_thread(tokens_of, _text(body), model, "text")
        words = model.tokenizer.words() if model.tokenizer else []
        return JSONResponse({"ids": ids, "tokens": [spelled(words[id]) for id in ids]})

    async def attention(self, request: HttpRequest) -> Response:
        """Probabilities of a layer in 255ths, heads by positions by positions looked at, base64."""
        body = await _json(request)
        scheduler = await self._scheduler(body)
        model, layer = scheduler.model, body.get("layer", 0)
        ids = await _in_thread(tokens_of, _text(body), model, "text")
        most = min(MOST_ATTENTION, model.config.max_seq_len)
        if len(ids) > most:
            raise BadRequest(
                f"text: expected at most {most} tokens to look at, found {len(ids)}; give less text", "text"
            )
        if type(layer) is not int or not 0 <= layer < model.config.num_layers:
            raise BadRequest(f"layer: expected 0 to {model.config.num_layers - 1}, found {layer!r:.60}", "layer")
        maps = await asyncio.wrap_future(scheduler.call(lambda model: model.attention(ids, layer)))
        words = model.tokenizer.words() if model.tokenizer else []
        return JSONResponse(
            {
                "tokens": [spelled(words[id]) for id in ids],
                "layers": model.config.num_layers,
                "heads": model.config.num_heads,
                "maps": base64.b64encode(np.rint(255 * maps).astype(np.uint8).tobytes()).decode(),
            }
        )

    async def list_of_runs(self, request: HttpRequest) -> Response:
        return JSONResponse({"runs": await _in_thread(run_view.list_of, self._runs), "folder": f"{self._runs}"})

    async def run(self, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        offset = request.query_params.get("from", "0")
        found = await _in_thread(run_view.read, self._runs, name, int(offset) if offset.isdecimal() else 0)
        if found is None:
            raise BadRequest(f"there is no run {name!r:.100} in {self._runs}", "name", "run_not_found", 404)
        return JSONResponse(found)

    async def _scheduler(self, body) -> Scheduler:
        name = body.get("model") or ""
        if not isinstance(name, str):
            raise BadRequest(f"model: expected a name, found {name!r:.60}", "model")
        return await _in_thread(self._registry.get, name)


class _Job:
    """A request under way: its texts in the scheduler, their pieces in a queue of this event loop."""

    def __init__(self, request: Request, scheduler: Scheduler, timeout_s: float):
        self.request = request
        self._scheduler, self._deadline = scheduler, time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        tokenizer = scheduler.model.tokenizer
        words = tokenizer.words() if tokenizer else None

        def deliver(piece):
            # The server may have ended in the meantime.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._queue.put_nowait, piece)

        self.choices, self._texts = [], []
        for index, (prompt, seed) in enumerate(request.texts()):
            settings = request.settings | {"seed": seed}
            self.choices.append(Choice(request, index, prompt, words))
            self._texts.append(Text(prompt, request.max_tokens, settings, request.stops, deliver, index))
        # All at once, before another request is looked at: the queue's end is where it is said to be.
        self._scores = [self._score(text.prompt) for text in self._texts] if request.echo else []
        for text in self._texts:
            scheduler.submit(text)

    def _score(self, prompt):
        count = self.request.logprobs
        if count is None or len(prompt) < 2:
            return None
        return self._scheduler.call(lambda model: model.log_probabilities(prompt, count))

    async def pieces(self) -> AsyncIterator[Choice]:
        """The choice of each piece, as it comes."""
        left = len(self._texts)
        try:
            await self._echo()
            while left:
                try:
                    piece = await asyncio.wait_for(self._queue.get(), max(self._deadline - time.monotonic(), 0))
                except asyncio.TimeoutError:  # until Python 3.11 another one than TimeoutError
                    raise BadRequest(
                        f"the request took longer than {self._timeout_s:g} s; ask for fewer tokens",
                        code="timeout",
                        status=504,
                    ) from None
                if isinstance(piece, Exception):
                    raise piece
                choice = self.choices[piece.index]
                choice.take(piece)
                left -= choice.finish_reason is not None
                yield choice
        finally:
            self.cancel()

    async def _echo(self):
        tokenizer = self._scheduler.model.tokenizer
        for choice, text, score in zip(self.choices, self._texts, self._scores):
            scores = await asyncio.wrap_future(score) if score else []
            choice.echo(tokenizer.decode(text.prompt) if tokenizer else "", scores)

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        async for _ in self.pieces():
            pass
        written = sum(len(choice.tokens) for choice in self.choices)
        return self.request.envelope([choice.whole() for choice in self.choices], usage=self.request.usage(written))

    def cancel(self) -> None:
        """Ends what is still under way."""
        for text in self._texts:
            text.cancelled.set()


async def _events(job: _Job) -> AsyncIterator[str]:
    """A stream of server-sent events, as the protocol has it."""
    written = 0
    usage = {"usage": None} if job.request.usage_at_end else {}
    try:
        async for choice in job.pieces():
            written += len(choice.tokens)
            if news := choice.news():
                yield _event(job.request.envelope([news], **usage))
        if job.request.usage_at_end:
            yield _event(job.request.envelope([], usage=job.request.usage(written)))
    except BadRequest as error:
        yield _event(error.body())
    except Error as error:
        yield _event(BadRequest(f"{error}", status=500).body())
    yield "data: [DONE]\n\n"


def _event(value):
    return f"data: {json.dumps(value)}\n\n"


async def _gone(request):
    """Waits until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json(request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise BadRequest(f"expected Content-Type: application/json, found {kind!r:.60}", status=415)
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > LARGEST_BODY:
            raise BadRequest(f"expected at most {LARGEST_BODY:,} bytes", status=413)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"expected JSON, found something else ({error})") from None
    if not isinstance(body, dict):
        raise BadRequest(f"expected a JSON object, found {type(body).__name__}")
    return body


def _text(body):
    text = body.get("text", "")
    if not isinstance(text, str):
        raise BadRequest(f"text: expected a text, found {text!r:.60}", "text")
    return text


def _in_thread(function, *arguments):
    return asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def _explain(request: HttpRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = BadRequest(error.detail, status=error.status_code)
    if not isinstance(error, BadRequest):
        error = BadRequest(f"{error}", status=400 if isinstance(error, Error) else 500)
    headers = {"Retry-After": "5"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


def make_app(
    registry: Registry, runs: Path, *, hosts: set[str] | None, token: str | None = None, timeout_s: float = 600
) -> ASGIApp:
    """The application. `hosts`: names that requests may use for this server; None: any."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await _in_thread(registry.close)

    handlers: dict[Any, Any] = {HTTPException: _explain, BadRequest: _explain, Error: _explain}
    app = Starlette(routes=Server(registry, runs, timeout_s).routes(), exception_handlers=handlers, lifespan=lifespan)
    return Gate(app, hosts, token)
