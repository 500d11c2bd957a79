"""`crosscoding serve`: a page to paint evidence on, and an HTTP API.

`application` makes the ASGI application that the command runs, for those who run it in a server of
their own. The modules `schemas`, `api`, `streams` and `monitoring` need the extra `serve`; all
others do not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crosscoding.serve.catalogue import Served, served_model
from crosscoding.serve.guard import LOOPBACK
from crosscoding.serve.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

__all__ = ["Limits", "Served", "application", "served_model"]


def application(
    models: Sequence[Served],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
) -> "FastAPI":
    """The ASGI application that answers for some models; run it in one process.

    Args:
        models: The models, each made by `served_model`; their names differ.
        limits: What a request may ask for; by default `Limits()`.
        token: Bearer token that every request must send, except those for the page and the
            server's health; None: no token is needed.
        hosts: Names under which the server may be addressed, without ports; None: any. Without
            them, a page of another site could reach a server on loopback under the site's own name.
            Scripts name the folders of models only if all these names are names of this machine.
    Raises:
        ImportError: The extra is not installed: pip install 'crosscoding[serve]'.
        ValueError: There are no models, two have the same name, or the token is empty.

    Example:
        >>> from crosscoding.serve import application, served_model
        >>> app = application([served_model("mnist-2d")])  # doctest: +SKIP
    """
    from crosscoding.serve.api import made

    return made(models, limits or Limits(), token=token, hosts=hosts)
