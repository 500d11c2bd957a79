"""A stream whose client leaves before it begins ends the work all the same."""

import asyncio
import json
from contextlib import suppress

import pytest
from running_server import NEEDS, line

from crosscoding.serve import application
from crosscoding.serve.engine import Engine

pytest.importorskip("fastapi", reason=NEEDS)
requests = pytest.importorskip("starlette.requests", reason=NEEDS)


@pytest.mark.parametrize("spec", ["2.3", "2.4"])  # a client's leaving is received, or raised
def test_a_client_that_leaves_before_the_first_event_is_abandoned(monkeypatch, spec):
    jobs = []
    monkeypatch.setattr(Engine, "is_alive", True)
    monkeypatch.setattr(Engine, "submit", lambda engine, *own: jobs.extend(own))
    app = application([line()], hosts=None)
    body = json.dumps({"values": [0.1] * 8, "anytime": True}).encode()
    received = [
        {"type": "http.request", "body": body, "more_body": False},
        *[{"type": "http.disconnect"}] * 3,
    ]

    async def receive():
        return received.pop(0)

    async def send(message):
        if spec == "2.4":
            raise OSError("the client went away")
        await asyncio.sleep(60)  # until the response is cancelled

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/condition",
        "raw_path": b"/v1/condition",
        "query_string": b"",
        "root_path": "",
        "server": ("localhost", 80),
        "client": ("192.0.2.1", 1),
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream"),
        ],
    }
    with suppress(requests.ClientDisconnect):
        asyncio.run(app(scope, receive, send))
    assert len(jobs) == 2
    assert all(job.is_abandoned for job in jobs)
