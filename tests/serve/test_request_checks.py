"""Requests of many wrong entries get one error, in any field; right requests get none."""

import re

import pytest
from running_server import NEEDS

pytest.importorskip("fastapi", reason=NEEDS)
pydantic = pytest.importorskip("pydantic", reason=NEEDS)

from crosscoding.serve.json_arrays import Packed  # noqa: E402 - needs the extra, as the next one
from crosscoding.serve.schemas import Request  # noqa: E402

MANY = 2000
WRONG = [""] * MANY
PACKED = {"base64": "AAAA", "dtype": "uint8", "shape": [3]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        *(
            ({name: WRONG}, "nested lists of numbers")
            for name in ("values", "noise", "low", "high")
        ),
        ({"values": [[0.0, *WRONG]] * 3}, "nested lists of numbers"),
        ({"values": [True] * MANY}, "nested lists of numbers"),
        ({"values": {"a": 1}}, "nested lists of numbers"),
        ({"values": {**PACKED, "shape": WRONG}}, r"^shape\.0: "),
        ({"values": {**PACKED, **{str(n): 0 for n in range(MANY)}}}, "0: expected no such field"),
        ({"one_of": [0] * MANY}, "nested lists of numbers"),
        ({"one_of": [None]}, "nested lists of numbers"),
        ({"given": WRONG}, "nested lists of numbers"),
        ({"given": {str(n): "" for n in range(MANY)}}, "nested lists of numbers"),
        ({"rows": [1] * MANY}, "row 0: expected an object by column, got 1"),
        ({"rows": []}, "expected a list of at least one object"),
        ({"rows": {"a": 1}}, "expected a list of at least one object"),
        ({"rows": [{}, {str(n): [] for n in range(MANY)}]}, r"row 1, column '0': .* got \[\]"),
        ({"rows": [{"a": {"one_of": [None] * MANY}}]}, "row 0, column 'a': expected a value"),
        ({"rows": [{"a": {"one_of": []}}]}, "row 0, column 'a': expected a value"),
        ({"rows": [{"a": {"low": True}}]}, "row 0, column 'a': expected a value"),
        ({"rows": [{"a": {"lo": 1}}]}, "row 0, column 'a': expected a value"),
        ({"outputs": WRONG}, "'mean', 'std'"),
        ({str(n): 0 for n in range(MANY)}, "^0: expected no such field"),
    ],
)
def test_the_first_wrong_entry_is_the_only_error(body, words):
    with pytest.raises(pydantic.ValidationError) as refused:
        Request.model_validate(body)
    (error,) = refused.value.errors()
    assert re.search(words, error["msg"])


def test_lists_that_are_nested_too_deeply_are_refused_without_recursion():
    given = []
    for _ in range(100_000):
        given = [given]
    with pytest.raises(pydantic.ValidationError, match="nested lists of numbers"):
        Request.model_validate({"values": given})
    while given:  # else freeing it would recurse
        given = given[0]


def test_right_requests_are_taken_as_they_are():
    rows = [
        {"a": 1, "b": None, "c": "x", "d": True, "e": 1.5},
        {"a": {"low": 1, "high": None}, "b": {"high": "2020-01-01"}, "c": {"one_of": ["x", 1]}},
        {},
    ]
    body = {"values": [[1, None], [2.5, None]], "one_of": [[True, False]], "rows": rows}
    assert Request.model_validate({**body, "noise": 0.5}).asked() == {
        **body,
        **dict.fromkeys(("low", "high", "given")),
        "noise": 0.5,
    }
    assert Request(values=PACKED).asked()["values"] == Packed("AAAA", "uint8", [3])
    assert Request(given=PACKED).asked()["given"] == Packed("AAAA", "uint8", [3])
    named = {"label": [1.0, 0.0], "base64": PACKED}
    assert Request(given=named).asked()["given"] == {
        **named,
        "base64": Packed("AAAA", "uint8", [3]),
    }


def test_the_description_says_what_arrays_and_rows_are():
    schema = Request.model_json_schema()
    described = schema["properties"]["values"]["anyOf"]
    assert {"$ref": "#/$defs/Base64Array"} in described
    assert {"$ref": "#/$defs/Numbers"} in described
    assert {"Interval", "OneOf", "Flags"} <= set(schema["$defs"])
