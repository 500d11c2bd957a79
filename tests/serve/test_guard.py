"""What is refused before it is read: other hosts and origins, a wrong token, large bodies."""

import asyncio

import pytest

from crosscoding.serve.guard import Guard


async def _echo(scope, receive, send):
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(
    path="/v1/models",
    root="",
    body=(b"",),
    hosts=("localhost",),
    token=None,
    max_bytes=10,
    **headers,
):
    pairs = {"host": "localhost:8000", **headers}
    scope = {
        "type": "http",
        "path": path,
        "root_path": root,
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in pairs.items()],
    }
    pieces, sent = list(body), []

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    guard = Guard(_echo, token=token, hosts=hosts, max_bytes=max_bytes)
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST:1"])
def test_own_names_are_answered(host):
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "", "[::1]:80"])
def test_other_names_are_refused(host):
    status, _, body = ask(host=host)
    assert status == 403
    assert "expected a request to one of localhost" in body


def test_any_name_is_answered_without_a_list():
    assert ask(host="example.org", hosts=None)[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://localhost:9000", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_sites_are_refused(origin, status):
    assert ask(origin=origin)[0] == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer other", 401),
        ("secret", 401),
        ("", 401),
    ],
)
def test_the_api_needs_the_token(given, status):
    assert ask(token="secret", authorization=given)[0] == status
    assert ask(token="secret", path="/metrics", authorization=given)[0] == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/page/main.js", 200),
        ("/v1/models", 401),
        ("/v1", 401),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/unknown", 401),
        ("/healthz/more", 401),
        ("/pages", 401),
        ("//", 401),
    ],
)
def test_only_the_page_and_health_need_no_token(path, status):
    assert ask(path=path, token="secret")[0] == status
    assert ask(path=f"/cc{path}", root="/cc", token="secret")[0] == status  # mounted
    assert ask(path=path, root="/cc", token="secret")[0] == status  # a proxy removed the prefix


def test_a_path_that_merely_begins_like_the_root_is_not_shortened():
    assert ask(path="/cc-page/main.js", root="/cc-", token="secret")[0] == 401
    assert ask(path="/cc/healthz", token="secret")[0] == 401


def test_large_bodies_are_refused_declared_or_not():
    assert ask(content_length="11")[0] == 413
    assert ask(content_length="x")[0] == 400
    assert ask(body=(b"x" * 10,))[0] == 200
    status, _, body = ask(body=(b"x" * 6, b"x" * 6))
    assert status == 413
    assert "expected a body of up to 10 bytes" in body


def test_every_response_forbids_foreign_content():
    for more in ({}, {"host": "evil.example"}):
        policy = ask(**more)[1][b"content-security-policy"].decode()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
