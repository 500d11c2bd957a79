"""Responses that are streams of events, and call a function when they are over."""

from collections.abc import AsyncIterator, Callable

from fastapi.responses import StreamingResponse  # pyright: ignore[reportMissingImports]

from crosscoding.serve.guard import Receive, Scope, Send


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        content: The events.
        ended: Called once the response is over, however it ends. `content` cannot do that itself,
            as it is never run for a client that leaves before its first event.
    """

    def __init__(self, content: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
