"""Metrics of the server for Prometheus."""

from prometheus_client import (  # pyright: ignore[reportMissingImports]
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import (  # pyright: ignore[reportMissingImports]
    CONTENT_TYPE_LATEST,
)

from crosscoding.serve.engine import Engine
from crosscoding.serve.guard import App, Message, Receive, Scope, Send
from crosscoding.serve.jobs import Done

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Monitoring:
    """Counters of one application, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "crosscoding_requests",
            "Responses by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._batches = Counter(
            "crosscoding_batches",
            "Batches by model and outcome.",
            ["model", "outcome"],
            registry=registry,
        )
        self._queries = Counter(
            "crosscoding_queries", "Queries answered, by model.", ["model"], registry=registry
        )
        self._seconds = Histogram(
            "crosscoding_batch_seconds",
            "Seconds of work on a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._sizes = Histogram(
            "crosscoding_batch_queries", "Queries in a batch.", buckets=_SIZES, registry=registry
        )
        self._waiting = Gauge(
            "crosscoding_waiting", "Requests that wait for an answer.", registry=registry
        )

    def watch(self, engine: Engine) -> None:
        """Report the length of an engine's queue."""
        self._waiting.set_function(lambda: engine.num_waiting)

    def count(self, done: Done) -> None:
        """Count a batch."""
        model = done.jobs[0].question.served.name
        num = sum(job.question.num_queries for job in done.jobs)
        self._batches.labels(model, done.outcome).inc()
        self._seconds.observe(done.seconds)
        self._sizes.observe(num)
        if done.outcome == "answered":
            self._queries.labels(model).inc(num)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class Counted:
    """An ASGI application whose responses are counted, by the route that answered.

    Args:
        app: The application.
        monitoring: Where they are counted.
    """

    def __init__(self, app: App, *, monitoring: Monitoring) -> None:
        self._app, self._monitoring = app, monitoring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._monitoring.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
