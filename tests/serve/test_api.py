"""The API over HTTP, against closed forms and against the library's own answers."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import linear_gaussian_problem
from running_server import NEEDS, ask, labelled, line, refused, served, table

import crosscoding as cc
from crosscoding.serve import Limits, application, served_model

pytest.importorskip("fastapi", reason=NEEDS)
httpx = pytest.importorskip("httpx", reason="needs httpx")

PROBLEM = linear_gaussian_problem()
EVIDENCE, TRUTH = PROBLEM.evidence, PROBLEM.truth


@pytest.fixture(scope="module")
def api():
    limits = Limits(max_queries=40, max_bytes=200_000, max_numbers=400_000)
    with (
        served([line(), table(), labelled(), served_model("mnist-2d")], limits) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def values(evidence=EVIDENCE):
    return json.loads(json.dumps(np.where(evidence.mask, evidence.values.double(), None).tolist()))


# ---- answers -------------------------------------------------------------------------------------


def test_answers_are_those_of_the_closed_form(api):
    answers = ask(api, values=values(), outputs=["mean", "std", "interval"])["answers"]
    exact = PROBLEM.exact_log_evidence()
    mean, variance = PROBLEM.exact_prediction()
    for query, answer in enumerate(answers):
        assert answer["verdict"]["label"] == "trusted"
        assert answer["log_evidence"] == pytest.approx(float(exact[query]), abs=1e-3)
        spread = variance[query].sqrt()  # 0.15: five standard errors of a mean of 1,000 draws
        assert ((torch.tensor(answer["mean"]) - mean[query]).abs() <= 0.15 * spread + 1e-6).all()
        torch.testing.assert_close(torch.tensor(answer["std"]), spread, rtol=0.1, atol=1e-6)
        low, high = (torch.tensor(answer["interval"][end]) for end in ("low", "high"))
        torch.testing.assert_close(high - low, 2 * 1.645 * spread, rtol=0.2, atol=1e-6)


def test_lists_and_base64_are_the_same_question_and_the_same_answer(api):
    nan = torch.where(EVIDENCE.mask, EVIDENCE.values, torch.nan).numpy()
    sent = {"base64": base64.b64encode(nan.tobytes()).decode(), "shape": [4, 8]}
    one = ask(api, values=values(), draws=3, alone=True)
    other = ask(api, values=sent, draws=3, alone=True, encoding="base64")
    for mine, theirs in zip(one["answers"], other["answers"], strict=True):
        for name in ("mean", "std", "draws"):
            packed = theirs[name]
            found = np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"])
            np.testing.assert_array_equal(
                found.reshape(packed["shape"]), np.array(mine[name], "float32")
            )


def test_observed_values_come_back_and_draws_keep_them(api):
    (answer,) = ask(api, values=values()[0], draws=5)["answers"]
    seen = EVIDENCE.mask[0]
    assert torch.equal(torch.tensor(answer["mean"])[seen], EVIDENCE.values[0, seen])
    assert torch.tensor(answer["draws"]).shape == (5, 8)
    assert (torch.tensor(answer["draws"])[:, seen] == EVIDENCE.values[0, seen]).all()


def test_the_answer_is_that_of_condition(api):
    (answer,) = ask(api, values=values()[1], seed=7, purpose="interval", alone=True)["answers"]
    posterior = cc.condition(
        PROBLEM.vae, EVIDENCE[1:2], cc.methods.Auto(purpose="interval"), seed=7
    )
    assert answer["log_evidence"] == float(posterior.log_evidence[0])
    assert torch.equal(torch.tensor(answer["mean"]), posterior.mean()[0])
    assert answer["verdict"]["purposes"] == posterior.verdicts[0].purposes
    assert answer["verdict"]["reasons"] == list(posterior.verdicts[0].on("interval").reasons)


def test_bounds_noise_and_nothing_at_all(api):
    low = [None] * 8
    low[2] = 5.0
    (bounded,) = ask(api, low=low, draws=20)["answers"]
    assert min(draw[2] for draw in bounded["draws"]) >= 5
    (noisy,) = ask(api, values=[1.0] + [None] * 7, noise=0.5, outputs=["std"])["answers"]
    assert noisy["std"][0] > 0
    (prior,) = ask(api)["answers"]
    assert prior["log_evidence"] == pytest.approx(0, abs=1e-6)


def test_labels_are_those_of_each_query(api):
    vae, labels = labelled().vae, torch.eye(3)
    nothing = torch.full((3, 4), torch.nan)
    wanted = cc.condition(vae, cc.Evidence.from_nan(nothing, given=labels), seed=0).mean()
    found = ask(api, model="labelled", values=[[None] * 4] * 3, given=labels.tolist())["answers"]
    torch.testing.assert_close(torch.tensor([answer["mean"] for answer in found]), wanted)
    (one,) = ask(api, model="labelled", values=[None] * 4, given=labels[1].tolist())["answers"]
    torch.testing.assert_close(torch.tensor(one["mean"]), wanted[1])
    assert "covariates" in refused(api, model="labelled")


def test_modes_of_an_ambiguous_digit_have_shares_that_sum_to_one(api):
    digits, labels = cc.zoo.digits()
    pixels = torch.full((28, 28), torch.nan)
    pixels[14, 8:20] = digits[int((labels == 4).nonzero()[0]), 14, 8:20]
    given = np.where(np.isnan(pixels), None, pixels.double()).tolist()
    (answer,) = ask(api, model="mnist-2d", values=given, outputs=["modes", "completions"], draws=2)[
        "answers"
    ]
    assert sum(mode["share"] for mode in answer["modes"]) == pytest.approx(1)
    assert np.array(answer["completions"]).shape == (2, 28, 28)


# ---- tables --------------------------------------------------------------------------------------


def test_rows_are_answered_in_their_units(api):
    rows = [
        {"age": 40.5, "city": {"one_of": ["Bonn", "Ulm"]}, "children": {"low": 1, "high": 2}},
        {"grade": "mid", "since": "2020-05-05"},
    ]
    found = ask(api, model="people", rows=rows, outputs=["mean", "std", "interval"], draws=30)
    first, second = found["answers"]
    assert first["columns"]["age"] == {"known": True, "value": 40.5}
    shares = {one["value"]: one["probability"] for one in first["columns"]["city"]["probabilities"]}
    assert shares["Kiel"] == 0
    assert sum(shares.values()) == pytest.approx(1)
    assert first["columns"]["city"]["likeliest"] in ("Bonn", "Ulm")
    assert 1 <= first["columns"]["children"]["mean"] <= 2
    for row in first["draws"]:
        assert row["age"] == 40.5
        assert row["city"] in ("Bonn", "Ulm")
        assert row["children"] in (1, 2)
        assert re.match(r"\d{4}-\d\d-\d\dT", row["since"])
    assert second["columns"]["since"] == {"known": True, "value": "2020-05-05"}
    assert second["columns"]["age"]["low"] < second["columns"]["age"]["high"]


def test_rows_together_are_answered_as_each_alone(api):
    rows = [{"age": 40.0}, {"city": "Ulm"}, {"age": {"low": 50}}]
    together = ask(api, model="people", rows=rows, outputs=["mean"])["answers"]
    for row, answer in zip(rows, together, strict=True):
        (alone,) = ask(api, model="people", rows=[row], outputs=["mean"])["answers"]
        assert answer["log_evidence"] == pytest.approx(alone["log_evidence"], abs=0.05)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "lines"}, "expected a model among .*did you mean 'line'"),
        ({"values": [1, 2]}, r"values: expected shape \(8\) or \(queries, 8\) for line, got \(2\)"),
        ({"values": "abc"}, "values: expected nested lists of numbers and nulls"),
        ({"values": ["1"] * 8}, "values: expected nested lists of numbers and nulls"),
        ({"values": [[1.0] * 8, [1.0]]}, "values: expected nested lists of one shape"),
        ({"values": {"base64": "AA==", "shape": [8]}}, "values: expected 32 bytes"),
        (
            {"values": {"base64": "AA==", "shape": [-8]}},
            r"values: shape\.0: .*greater than or",
        ),
        ({"values": {"base64": "AA==", "dtype": "f", "shape": [8]}}, "dtype: .* 'float64'"),
        ({"values": {"dtype": "float32"}}, "values: base64: field required"),
        ({"values": [1e300] * 8}, "values: expected finite numbers that torch.float32 holds"),
        ({"noise": 1.0}, "noise: expected the values"),
        ({"values": [1.0] * 8, "noise": -1}, "expected noise"),
        ({"low": [2.0] * 8, "high": [1.0] * 8}, "low"),
        ({"given": [1.0]}, "covariates"),
        ({"one_of": [[True, False]] * 8}, "Gaussian"),
        ({"rows": [{"a": 1}]}, "rows: expected values, as line has no table"),
        ({"model": "people", "rows": [{"aeg": 1}]}, "expected a column among"),
        ({"model": "people", "rows": [{"age": "x"}]}, "column 'age': expected a number"),
        (
            {"model": "people", "rows": [{"age": [1]}]},
            "row 0, column 'age': expected a value, null, {",
        ),
        (
            {"model": "people", "rows": [{"age": {"min": 1}}]},
            "row 0, column 'age': expected a value",
        ),
        (
            {"model": "people", "rows": [{}, {"city": {"one_of": []}}]},
            "row 1, column 'city': .*member",
        ),
        ({"model": "people", "rows": [None]}, "rows: row 0: expected an object by column"),
        ({"model": "people", "rows": [{}], "values": [1.0] * 6}, "either rows or arrays"),
        ({"model": "mnist-2d", "values": [[2.0] * 28] * 28}, "expected observed values between 0"),
        ({"seed": -1}, "seed: input should be greater"),
        ({"purpose": "fun"}, "purpose: input should be 'density'"),
        ({"max_seconds": 0}, "max_seconds: input should be greater than 0"),
        ({"num_draws": 10, "purpose": "mean"}, "expected num_draws >= 400"),
        ({"drwas": 3}, "drwas: expected no such field"),
        ({"values": [[0.0] * 8] * 41}, "expected 1 to 40 queries"),
        ({"values": [[0.0] * 8] * 40, "num_draws": 5000}, "expected an answer of up to 400,000"),
    ],
)
def test_bad_questions_get_a_sentence(api, body, words):
    assert re.search(words, refused(api, **body)), refused(api, **body)


def test_bodies_that_are_no_json_or_too_large(api):
    headers = {"Content-Type": "application/json"}
    post = lambda content: api.post("/v1/condition", content=content, headers=headers)  # noqa: E731
    assert "expected JSON" in post("{nope").json()["detail"]
    for odd in ("[" * 50_000 + "]" * 50_000, b'{"model": "\xff"}'):
        assert "expected JSON" in post(odd).json()["detail"]
        assert post(odd).status_code == 400
    assert post("x" * 200_001).status_code == 413
    assert post(iter([b"x" * 150_000] * 2)).status_code == 413
    assert post('{"model": "line", "values": [NaN,1,1,1,1,1,1,1]}').status_code in (200, 422)


def test_unknown_routes_and_models(api):
    for path in ("/v1/models/nope", "/v1/models/nope/samples", "/nope", "/page/nope.js"):
        response = api.get(path)
        assert response.status_code == 404
        assert response.json()["detail"]
    assert api.get("/v1/condition").status_code == 405


# ---- models, monitoring, page --------------------------------------------------------------------


def test_models_are_described(api):
    found = {model["name"]: model for model in api.get("/v1/models").json()}
    assert found["line"]["kind"] == "values"
    assert found["mnist-2d"]["pixels"] == {"low": 0, "high": 1, "binary": True}
    columns = {column["name"]: column for column in found["people"]["columns"]}
    assert columns["grade"]["categories"] == ["low", "mid", "high"]
    assert api.get("/v1/models/people").json() == found["people"]
    samples = api.get("/v1/models/mnist-2d/samples?num=3").json()
    assert [packed["shape"] for packed in samples.values()] == [[3, 28, 28], [3, 28, 28]]


def test_health_metrics_and_the_page(api):
    assert api.get("/healthz").json() == {"status": "up"}
    ask(api, values=values()[0])
    text = api.get("/metrics").text
    assert re.search(r'crosscoding_queries_total\{model="line"\} [1-9]', text)
    assert 'route="/v1/condition",status="200"' in text
    assert "What you know" in api.get("/").text
    for name in ("main.js", "style.css"):
        assert api.get(f"/page/{name}").status_code == 200


def test_the_description_has_examples_for_all_errors(api):
    schema = api.get("/openapi.json").json()
    own = schema["paths"]["/v1/condition"]["post"]
    assert {"200", "401", "413", "422", "429", "503"} <= set(own["responses"])
    assert schema["components"]["schemas"]["Request"]["examples"]


# ---- progress, first answers, scripts ------------------------------------------------------------


def events(api, **body):
    headers = {"Accept": "text/event-stream"}
    with api.stream("POST", "/v1/condition", json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in response.read().decode().strip().split("\n\n"):
            name, data = (part.partition(": ")[2] for part in event.split("\n"))
            yield name, json.loads(data)


def test_a_first_answer_is_followed_by_the_full_one(api):
    given = [[None] * 28 for _ in range(28)]
    given[10][10:18] = [1] * 8
    found = list(events(api, model="mnist-2d", values=given, anytime=True))
    answers = [content for name, content in found if name == "answer"]
    assert [answer["final"] for answer in answers] == [False, True]
    assert all(0 <= content["share"] <= 1 for name, content in found if name == "progress")
    (alone,) = ask(api, model="mnist-2d", values=given, alone=True)["answers"]
    assert answers[-1]["answers"] == [alone]


def test_problems_in_a_stream_are_an_event_and_others_a_status(api):
    response = api.post(
        "/v1/condition", json={"model": "nope"}, headers={"Accept": "text/event-stream"}
    )
    assert response.status_code == 422


@pytest.mark.slow  # each script loads torch anew
@pytest.mark.parametrize(
    "body",
    [
        {"model": "mnist-2d", "values": [[1] * 28] * 9 + [[None] * 28] * 19, "seed": 3},
        {"model": "saved", "rows": [{"age": {"low": 30}, "city": {"one_of": ["Ulm"]}}]},
    ],
)
def test_the_script_runs_and_gives_the_same_answer(tmp_path, body):
    table().vae.save(tmp_path / "saved")
    models = [served_model("mnist-2d"), served_model(str(tmp_path / "saved"))]
    with served(models) as address, httpx.Client(base_url=address, timeout=60) as api:
        script = api.post("/v1/script", json=body)
        assert script.headers["content-type"].startswith("text/x-python")
        (answer,) = ask(api, **body, alone=True)["answers"]
    ends = "\nprint('log p(x):', float(posterior.log_evidence[0]))\n"
    done = subprocess.run(
        [sys.executable, "-c", script.text + ends],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert answer["verdict"]["label"] in done.stdout
    found = float(done.stdout.rpartition("log p(x): ")[2])
    assert found == pytest.approx(answer["log_evidence"], abs=1e-4)


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [(None, False), (["localhost", "example.org"], False), (["127.0.0.1", "localhost"], True)],
)
def test_scripts_tell_no_other_machine_where_models_are(tmp_path, hosts, shown):
    testing = pytest.importorskip("starlette.testclient", reason=NEEDS)
    line().vae.save(tmp_path / "own")
    app = application([served_model(str(tmp_path / "own"))], hosts=hosts)
    script = testing.TestClient(app, base_url="http://localhost").post("/v1/script", json={}).text
    assert (str(tmp_path) in script) == shown
    (loads,) = re.findall(r"^vae = (.*)$", script, re.MULTILINE)
    assert shown or loads == "cc.load_vae('own')  # your copy of the model's folder"
    compile(script, "script", "exec")
