"""The routes of the API and of the page."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query  # pyright: ignore[reportMissingImports]
from fastapi import Request as HttpRequest  # pyright: ignore[reportMissingImports]
from fastapi.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]
from fastapi.exceptions import RequestValidationError  # pyright: ignore[reportMissingImports]
from fastapi.responses import (  # pyright: ignore[reportMissingImports]
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from fastapi.staticfiles import StaticFiles  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]

from crosscoding.errors import BudgetError, unknown_name
from crosscoding.serve.anytime import stages
from crosscoding.serve.catalogue import Served
from crosscoding.serve.engine import Engine
from crosscoding.serve.guard import LOOPBACK, Guard
from crosscoding.serve.jobs import AbandonedError, BusyError, Job, UnpreparedError
from crosscoding.serve.json_arrays import packed
from crosscoding.serve.limits import Limits
from crosscoding.serve.monitoring import Counted, Monitoring
from crosscoding.serve.questions import Question, question_of
from crosscoding.serve.schemas import Answers, Problem, Request
from crosscoding.serve.scripts import script_of
from crosscoding.serve.streams import EventStream

_PAGE = Path(__file__).parent / "page"
_LOG = logging.getLogger(__name__)
_MOST_SAMPLES = 40
_RETRY = 5  # seconds before another try if the server was not ready or a question took too long
_NOT_ALIVE = (
    "the server's worker is not running; restart the server, or, if the application is mounted in "
    "another one, let that one run its lifespan"
)
_Responses = dict[int | str, dict[str, Any]]
_PROBLEMS: _Responses = {
    400: {"model": Problem, "description": "The body is not JSON."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {"model": Problem, "description": "The host or the origin is refused."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "What is wrong with the request, in one sentence."},
    429: {"model": Problem, "description": "Too many requests of this client are waiting."},
    503: {
        "model": Problem,
        "description": "Too many requests are waiting, time was up, or the model failed to start.",
    },
}
_STREAM = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'event: progress\ndata: {"share": 0.4, "step": "anneal"}\n\n'
        'event: answer\ndata: {"final": true, "answers": []}\n\n',
    }
}


def made(
    models: Sequence[Served], limits: Limits, *, token: str | None, hosts: Sequence[str] | None
) -> FastAPI:
    """The application; `crosscoding.serve.application` documents the arguments."""
    by_name = {served.name: served for served in models}
    if not models or len(by_name) < len(models):
        names = ", ".join(served.name for served in models) or "none"
        raise ValueError(f"expected models of different names, at least one, got {names}")
    if token is not None and not token.strip():
        raise ValueError("expected a token that is not empty")
    here = hosts is not None and set(hosts) <= set(LOOPBACK)
    return _Server(by_name, limits, here).application(token, hosts)


class _Server:
    """The routes, and what they share."""

    def __init__(self, models: dict[str, Served], limits: Limits, here: bool) -> None:
        self._models, self._limits, self._here = models, limits, here
        self._monitoring = Monitoring()
        self._engine = Engine(limits, self._monitoring.count)
        self._monitoring.watch(self._engine)

    def application(self, token: str | None, hosts: Sequence[str] | None) -> FastAPI:
        """The application with all routes, behind the guard."""
        app = FastAPI(
            title="crosscoding",
            description="Conditional inference in trained VAEs: p(y|x), with a verdict.",
            version="1",
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            swagger_ui_oauth2_redirect_url=None,
        )
        only: _Responses = {number: _PROBLEMS[number] for number in (401, 403)}
        unknown: _Responses = {404: {"model": Problem}, 422: _PROBLEMS[422]}
        for path, route, more in (
            ("/v1/models", self._list, {}),
            ("/v1/models/{name}", self._describe, unknown),
            ("/v1/models/{name}/samples", self._samples, unknown),
        ):
            app.get(path, tags=["models"], responses={**only, **more})(route)
        app.post(
            "/v1/condition",
            tags=["questions"],
            response_model=Answers,
            responses={**_PROBLEMS, 200: {"content": _STREAM}},
        )(self._condition)
        app.post(
            "/v1/script", tags=["questions"], response_class=PlainTextResponse, responses=_PROBLEMS
        )(self._script)
        for path, route in (("/healthz", self._health), ("/readyz", self._ready)):
            app.get(path, tags=["monitoring"], responses={503: {"model": Problem}})(route)
        app.get("/metrics", tags=["monitoring"], response_class=PlainTextResponse, responses=only)(
            self._metrics
        )
        app.get("/", include_in_schema=False)(self._page)
        app.mount("/page", StaticFiles(directory=_PAGE))
        _handle_errors(app)
        app.add_middleware(Guard, token=token, hosts=hosts, max_bytes=self._limits.max_bytes)
        app.add_middleware(Counted, monitoring=self._monitoring)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._engine.start(list(self._models.values()))
        yield
        self._engine.close()

    # ---- models ----------------------------------------------------------------------------------

    async def _list(self) -> list[dict[str, Any]]:
        """All models that the server was started with."""
        return await run_in_threadpool(
            lambda: [served.described() for served in self._models.values()]
        )

    async def _describe(self, name: str) -> dict[str, Any]:
        """A model: its data, its columns if it has a table, its latent dimensions."""
        return await run_in_threadpool(self._named(name).described)

    async def _samples(
        self,
        name: str,
        num: Annotated[int, Query(ge=1, le=_MOST_SAMPLES)] = 10,
        seed: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    ) -> dict[str, Any]:
        """Complete data, of which a part can be observed, by their origin, each as base64."""
        samples = await run_in_threadpool(self._named(name).samples, num, seed=seed)
        return {where: packed(pictures) for where, pictures in samples.items()}

    def _named(self, name: str) -> Served:
        if name not in self._models:
            raise HTTPException(404, str(unknown_name("model", name, self._models)))
        return self._models[name]

    # ---- questions -------------------------------------------------------------------------------

    async def _condition(self, asked: Request, http: HttpRequest) -> Response:
        """What is p(y|x)? Draws, means and intervals of what is missing, log p(x), and a verdict.

        With `Accept: text/event-stream`, the answer is a stream of server-sent events: `progress`,
        `answer`, whose `final` says whether it is the last, or `problem`, with the status and the
        sentence of the response that would have been sent. The work ends if the client disconnects.
        """
        question = await run_in_threadpool(self._question, asked)
        client = http.client.host if http.client else ""
        if "text/event-stream" in http.headers.get("accept", ""):
            own = stages(question) if asked.anytime else [question]
            return self._stream(own, client)
        job = Job(question, client)
        self._submit(job)
        try:
            found = await _unless_gone(asyncio.wrap_future(job.result), http)
        finally:
            self._engine.abandon(job)
        return Response(await run_in_threadpool(_json, found), media_type="application/json")

    async def _script(self, asked: Request) -> PlainTextResponse:
        """The Python script that asks the same question, with the same seed and budget."""
        question = await run_in_threadpool(self._question, asked)
        script = await run_in_threadpool(script_of, question, here=self._here)
        return PlainTextResponse(script, media_type="text/x-python")

    def _question(self, asked: Request) -> Question:
        """The question of a request; raises what `question_of` raises, or UnpreparedError."""
        name = asked.model
        if name is None and len(self._models) > 1:
            raise ValueError(f"model: expected one of {', '.join(sorted(self._models))}, got none")
        served = next(iter(self._models.values())) if name is None else self._models.get(name)
        if served is None:
            raise unknown_name("model", str(name), self._models)
        self._engine.check_prepared(served)
        return question_of(
            served,
            asked.asked(),
            asked.method(),
            asked.seed,
            asked.wanted(),
            self._limits,
            alone=asked.alone or asked.anytime,
        )

    def _submit(self, *jobs: Job) -> None:
        """Put the jobs of one client in the queue; raises what `Engine.submit` raises."""
        self._check_alive()
        self._engine.submit(*jobs)

    def _stream(self, questions: Sequence[Question], client: str) -> EventStream:
        """The answers to a question with growing budgets, as server-sent events."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]]()

        def put(name: str, content: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (name, content))

        def report(share: float, step: str) -> None:
            put("progress", {"share": share, "step": step})

        jobs = [
            Job(question, client, report, urgent=place < len(questions) - 1)
            for place, question in enumerate(questions)
        ]

        def tell(job: Job) -> None:
            final = job is jobs[-1]
            job.result.add_done_callback(lambda done: put(*_event(done, final)))

        for job in jobs:
            tell(job)
        self._submit(*jobs)

        async def sent() -> AsyncIterator[bytes]:
            is_last = False
            while not is_last:
                name, content = await events.get()
                if name == "progress" and not events.empty():
                    continue  # a newer event is there
                is_last = name == "problem" or (name == "answer" and content["final"])
                yield b"event: " + name.encode() + b"\ndata: " + _json(content) + b"\n\n"

        return EventStream(sent(), lambda: self._engine.abandon(*jobs))

    # ---- monitoring ------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        """Raise HTTPException if nobody would answer questions."""
        if not self._engine.is_alive:
            raise HTTPException(503, _NOT_ALIVE)

    async def _health(self) -> dict[str, str]:
        """Whether the server is up, and its worker too."""
        self._check_alive()
        return {"status": "up"}

    async def _ready(self) -> dict[str, str]:
        """Whether models are prepared, so that the first answer does not wait for them."""
        self._check_alive()
        if not self._engine.is_ready:
            raise HTTPException(503, "the models are being prepared", {"Retry-After": str(_RETRY)})
        if len(self._engine.failed) == len(self._models):
            raise HTTPException(503, next(iter(self._engine.failed.values())))
        return {"status": "ready"}

    async def _metrics(self) -> Response:
        """Metrics for Prometheus."""
        return Response(self._monitoring.text(), media_type=self._monitoring.content_type)

    async def _page(self) -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})


def _handle_errors(app: FastAPI) -> None:
    """Answer every error with a sentence."""

    async def answered(_: HttpRequest, error: Exception) -> JSONResponse:
        return _problem(*_status(error))

    refused = (RequestValidationError, HTTPException, *_REFUSED)
    for kind in (*refused, BusyError, UnpreparedError, BudgetError, AbandonedError):
        app.add_exception_handler(kind, answered)


_REFUSED = (ValueError, TypeError, NotImplementedError)


def _status(error: Any) -> tuple[int, str, dict[str, str]]:
    """The status, the sentence and the headers that answer an error."""
    if isinstance(error, RequestValidationError):
        return 422, _sentence(error), {}
    if isinstance(error, HTTPException) and error.status_code == 400:  # fastapi's, in its own words
        return 400, "expected JSON in UTF-8, not nested too deeply", {}
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), dict(error.headers or {})
    if isinstance(error, BusyError):
        return error.status, str(error), {"Retry-After": str(error.retry_after)}
    if isinstance(error, UnpreparedError):
        return 503, str(error), {}
    if isinstance(error, (BudgetError, AbandonedError)):
        words = str(error) or "the server is stopping"
        return 503, words, {"Retry-After": str(_RETRY)}
    if isinstance(error, _REFUSED):
        return 422, str(error), {}
    _LOG.error("a question could not be answered", exc_info=error)
    return 500, "the server failed to answer; its log says why", {}


def _problem(status: int, words: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": words}, status, headers=dict(headers or {}))


def _sentence(error: RequestValidationError) -> str:
    """What is wrong with a request's form: its field, and what was expected there."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"expected JSON, got {first.get('ctx', {}).get('error', 'something else')}"
    fields = [str(part) for part in first["loc"][1:]]
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(fields[:4])}: expected no such field"
    message = str(first["msg"])
    if not fields:
        return message if first["type"] == "first_wrong" else f"body: {_lowered(message)}"
    return f"{'.'.join(fields[:4])}: {_lowered(message)}"


def _lowered(message: str) -> str:
    return f"{message[:1].lower()}{message[1:]}"


def _event(done: "Future[dict[str, Any]]", final: bool) -> tuple[str, Any]:
    """The event that tells how a job ended."""
    error = done.exception()
    if error is None:
        return "answer", {**done.result(), "final": final}
    status, words, _ = _status(error)
    return "problem", {"status": status, "detail": words}


async def _unless_gone(
    result: "asyncio.Future[dict[str, Any]]", http: HttpRequest
) -> dict[str, Any]:
    """A result, unless the client goes away first.

    Raises:
        AbandonedError: It did.
    """

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if not result.done():
        result.add_done_callback(lambda late: late.exception())  # which nobody else will look at
        raise AbandonedError
    return result.result()


def _json(content: Any) -> bytes:
    """Strict JSON: there is no NaN and no infinity."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
