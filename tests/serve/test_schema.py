"""Requests that schemathesis makes of the API's own description: no answer has status 500."""

import pytest
from running_server import NEEDS, line, served, table

from crosscoding.serve import Limits

pytest.importorskip("fastapi", reason=NEEDS)
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis")
pytestmark = pytest.mark.slow

_NUM_EXAMPLES = 60  # for each route


def test_no_request_gets_500():
    limits = Limits(max_seconds=2, max_queries=20)
    with served([line(), table()], limits) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        statuses = set()
        for found in schema.get_all_operations():
            ask(found.ok(), statuses)
    assert {200, 404, 422} <= statuses
    assert not {status for status in statuses if status >= 500 and status != 503}


def ask(operation, statuses):
    """Send requests to a route that suit its description, and some that do not."""
    generation = schemathesis.GenerationMode
    for mode in (generation.POSITIVE, generation.NEGATIVE):

        @hypothesis.settings(
            max_examples=_NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case):
            response = case.call(timeout=60)
            statuses.add(response.status_code)
            assert response.status_code < 500 or response.status_code == 503, response.text
            if response.headers.get("content-type", [""])[0] == "application/json":
                response.json()

        try:
            send()
        except hypothesis.errors.Unsatisfiable:
            assert mode == generation.NEGATIVE  # a route without parameters takes all requests
