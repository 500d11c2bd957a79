"""The application around the API: tokens, mounting, clients that go, models that fail."""

import time

import pytest
from running_server import NEEDS, ask, labelled, line, refused, served, slow

import crosscoding as cc
from crosscoding.serve import Limits, application, served_model

pytest.importorskip("fastapi", reason=NEEDS)
httpx = pytest.importorskip("httpx", reason="needs httpx")


def test_the_token_is_needed_for_all_but_the_page():
    with served([line()], token="secret") as address, httpx.Client(base_url=address) as api:
        for path in ("/v1/models", "/metrics"):
            assert api.get(path).status_code == 401
            assert api.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert api.get("/").status_code == 200


@pytest.mark.parametrize("root", ["", "/cc"])
def test_a_mounted_application_needs_the_token_too(root):
    applications = pytest.importorskip("starlette.applications", reason=NEEDS)
    routing, testing = (
        pytest.importorskip(f"starlette.{name}", reason=NEEDS) for name in ("routing", "testclient")
    )
    own = application([line()], token="secret", hosts=None)
    outer = applications.Starlette(routes=[routing.Mount("/api", app=own)])
    api = testing.TestClient(outer, root_path=root)
    for path, status in (("/v1/models", 200), ("/metrics", 200), ("/openapi.json", 200)):
        assert api.get(f"{root}/api{path}").status_code == 401
        sent = {"Authorization": "Bearer secret"}
        assert api.get(f"{root}/api{path}", headers=sent).status_code == status
    for path in ("/", "/page/main.js"):
        assert api.get(f"{root}/api{path}").status_code == 200


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_work_for_a_client_that_goes_away_is_stopped(accept):
    model = slow()
    with served([model]) as address, httpx.Client(base_url=address, timeout=10) as api:
        model.vae.own_decoder.delay = 0.05
        asked, headers = {"values": [0.5] * 4 + [None] * 4}, {"Accept": accept}
        with pytest.raises(httpx.ReadTimeout):  # no event in time, or no answer
            api.post("/v1/condition", json=asked, headers=headers, timeout=0.3)
        ends = time.monotonic() + 20
        while 'outcome="abandoned"' not in api.get("/metrics").text:
            assert time.monotonic() < ends
            time.sleep(0.05)


def test_a_server_whose_worker_does_not_run_says_so():
    testing = pytest.importorskip("starlette.testclient", reason=NEEDS)
    api = testing.TestClient(application([line()], hosts=None))  # nobody runs its lifespan
    for response in (
        api.get("/healthz"),
        api.get("/readyz"),
        api.post("/v1/condition", json={}),
        api.post("/v1/condition", json={}, headers={"Accept": "text/event-stream"}),
    ):
        assert response.status_code == 503
        assert "the server's worker is not running" in response.json()["detail"]


def test_a_model_that_cannot_be_prepared_is_unavailable_and_others_are_not(monkeypatch):
    prepare = cc.serve.engine._prepare

    def fails(served):
        if served.name == "labelled":
            raise RuntimeError("no memory")
        prepare(served)

    monkeypatch.setattr("crosscoding.serve.engine._prepare", fails)
    testing = pytest.importorskip("starlette.testclient", reason=NEEDS)
    with testing.TestClient(application([labelled(), line()], hosts=None)) as api:
        while api.get("/readyz").status_code != 200:
            time.sleep(0.01)
        assert "labelled could not be prepared" in refused(api, status=503, model="labelled")
        assert ask(api)["answers"]
    with testing.TestClient(application([labelled()], hosts=None)) as api:
        while "being prepared" in api.get("/readyz").text:
            time.sleep(0.01)
        assert "labelled could not be prepared" in api.get("/readyz").json()["detail"]
        assert api.get("/healthz").status_code == 200


def test_a_model_may_be_left_out_if_it_is_the_only_one():
    with served([line()]) as address, httpx.Client(base_url=address) as api:
        assert api.post("/v1/condition", json={}).status_code == 200


@pytest.mark.parametrize(
    ("models", "more", "words"),
    [
        ([], {}, "at least one, got none"),
        (["twice"], {}, "models of different names"),
        (["line"], {"token": " "}, "a token that is not empty"),
    ],
)
def test_applications_that_make_no_sense(models, more, words):
    own = [line(), line()] if models == ["twice"] else [line()] * len(models)
    with pytest.raises(ValueError, match=words):
        application(own, **more)


def test_models_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected a folder of a model, or a model among .*'mine'"
    ):
        served_model("mine")


def test_limits_are_positive():
    with pytest.raises(ValueError, match="expected max_waiting > 0, got 0"):
        Limits(max_waiting=0)
