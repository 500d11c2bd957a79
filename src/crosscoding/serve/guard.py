"""Checks of every request before it is read: host name, origin, token and size.

A server on loopback can be reached by every page in the user's browser. The check of the host name
stops pages whose name an attacker points to loopback (DNS rebinding), and the check of the origin
stops requests that pages of other sites send. It is plain ASGI, so that streams pass unchanged.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine in requests that come from itself."""

_OPEN = ("/", "/healthz", "/readyz")  # they only tell whether the server is up
_OPEN_FOLDER = "/page/"  # the page's own files
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; "
        b"img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Guard:
    """An ASGI application in front of another one, which refuses requests.

    Args:
        app: The application behind it.
        token: Bearer token that every request must send, except those for the page and the
            server's health; None: no token is needed.
        hosts: Names under which the server may be addressed, without ports; None: any.
        max_bytes: Most bytes of a request's body.
    """

    def __init__(
        self, app: App, *, token: str | None, hosts: Sequence[str] | None, max_bytes: int
    ) -> None:
        self._app, self._max_bytes = app, max_bytes
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else {host.lower().encode() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", ())}
                more = [pair for pair in _HEADERS if pair[0] not in given]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await _refuse(send_with_headers, *refused)
            return
        body = _Body(receive, self._max_bytes)
        if await _answered(self._app, scope, body, send_with_headers):
            return
        await _refuse(send_with_headers, 413, _too_large(self._max_bytes))

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the sentence with which a request is refused; None if it is not."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").lower()
        if self._hosts is not None and _name(host) not in self._hosts:
            names = ", ".join(sorted(name.decode() for name in self._hosts))
            return 403, f"expected a request to one of {names}, got {_shown(host)}"
        origin = headers.get(b"origin")
        if origin is not None and origin.lower().partition(b"://")[2] != host:
            return 403, f"expected requests from the server's own page, got {_shown(origin)}"
        if self._token is not None and not _is_open(scope):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                return 401, "expected the server's token, sent as Authorization: Bearer TOKEN"
        size = headers.get(b"content-length", b"0")
        if not size.isdigit():
            return 400, f"expected a number of bytes as Content-Length, got {_shown(size)}"
        if int(size[:20]) > self._max_bytes:
            return 413, _too_large(self._max_bytes)
        return None


def _is_open(scope: Scope) -> bool:
    """Whether a path needs no token, wherever the application is mounted."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(root + "/"):
        path = path[len(root) :]  # as the routes see it
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def _too_large(max_bytes: int) -> str:
    """The sentence for a body that is too large."""
    return f"expected a body of up to {max_bytes:,} bytes; ask for fewer queries at once"


class _BodyTooLargeError(Exception):
    """A body without a declared size is larger than allowed."""


class _Body:
    """A stream of messages that ends with an error once the body is too large."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._left = receive, max_bytes

    @property
    def is_too_large(self) -> bool:
        """Whether more was received than is allowed."""
        return self._left < 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self.is_too_large:
            raise _BodyTooLargeError
        return message


async def _answered(app: App, scope: Scope, body: _Body, send: Send) -> bool:
    """Let an application answer; False if its answer is that the body could not be read."""

    async def send_unless_too_large(message: Message) -> None:
        if not body.is_too_large:
            await send(message)

    try:
        await app(scope, body, send_unless_too_large)
    except _BodyTooLargeError:
        return False
    return not body.is_too_large


async def _refuse(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    body = json.dumps({"detail": words}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: bytes) -> bytes:
    """A host without its port."""
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0]


def _shown(given: bytes) -> str:
    """A header in a message."""
    return repr(given[:80].decode("latin-1"))
