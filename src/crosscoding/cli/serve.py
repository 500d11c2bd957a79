"""`crosscoding serve`: the page to paint evidence on, and the HTTP API."""

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from crosscoding.cli.console import clear_errors, note, out, use_one_thread
from crosscoding.cli.paths import expanded

if TYPE_CHECKING:
    from crosscoding.serve import Served

_SMALL = ("mnist-2d", "mnist-20d")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAMES = ("localhost", "127.0.0.1", "[::1]")
_GRACE = 5  # seconds until open connections are closed when the server stops


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to serve: names as listed by `crosscoding models`, or folders written by "
            f"vae.save. Default: {' '.join(_SMALL)}.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. By default, only this machine can reach the server; "
            "0.0.0.0 opens it to the network.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="CROSSCODING_TOKEN",
            help="Bearer token that clients must send.",
        ),
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(
            "--max-seconds",
            min=0.1,
            help="Most seconds of work on a request; then the best answer so far is sent.",
        ),
    ] = 60.0,
    max_queries: Annotated[
        int, typer.Option("--max-queries", min=1, help="Most queries in a request.")
    ] = 1000,
) -> None:
    """Serve a page to paint evidence on, and an HTTP API.

    Completions appear while you paint, with a verdict; for a model of a table, a form takes values,
    intervals and sets. docs/serve.md describes the API. It needs pip install 'crosscoding[serve]'.

    Examples: crosscoding serve; crosscoding serve mnist-20d my-model --port 8080
    """
    with clear_errors():
        _run(models or list(_SMALL), host, port, token, max_seconds, max_queries)


def _run(
    names: list[str],
    host: str,
    port: int,
    token: str | None,
    max_seconds: float,
    max_queries: int,
) -> None:
    """Load the models and serve until Ctrl-C.

    Raises:
        ValueError: The extra is not installed, a model does not exist, or the port is taken.
    """
    from crosscoding.serve import Limits, application, served_model

    served = [served_model(expanded(name)) for name in names]
    limits = Limits(max_seconds=max_seconds, max_queries=max_queries)
    own = host in _LOOPBACK
    try:
        import uvicorn  # pyright: ignore[reportMissingImports]

        app = application(served, limits, token=token, hosts=_NAMES if own else None)
    except ImportError as error:
        raise ValueError(
            f"expected {error.name}, which is not installed; pip install 'crosscoding[serve]'"
        ) from None
    if not own and token is None:
        note(
            f"anybody who can reach {host} can ask questions, as there is no --token",
            "the connection is not encrypted; put a proxy with TLS in front",
        )
    _choose_threads(served)
    with _listening(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        out.print(f"serving {', '.join(s.name for s in served)} at {address} (Ctrl-C stops)")
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_GRACE, server_header=False
        )
        with suppress(KeyboardInterrupt):  # the usual end
            uvicorn.Server(config).run(sockets=[listening])


def _choose_threads(served: list["Served"]) -> None:
    """Use one thread if all decoders are small, as more would wait for each other."""
    if not any(each.is_expensive for each in served):
        use_one_thread()


def _listening(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        ValueError: The address does not exist or is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ValueError(
            f"expected an address to listen on, got {host} port {port}: {error.strerror}; choose "
            "another with --host or --port"
        ) from None
    return listening
