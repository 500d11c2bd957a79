"""Reports: the order of statuses, the table, JSON without NaN."""

import math

import pytest

from crosscoding.model.check_report import CheckReport, CheckResult


def report(*statuses: str) -> CheckReport:
    return CheckReport(
        "a model", tuple(CheckResult(f"check {i}", s, "words") for i, s in enumerate(statuses))
    )


@pytest.mark.parametrize(
    ("statuses", "ok", "summary"),
    [
        ((), True, "no problems found"),
        (("ok", "note"), True, "no problems found"),
        (("ok", "warning"), True, "1 warning"),
        (("error", "warning", "warning"), False, "1 error and 2 warnings"),
    ],
)
def test_only_an_error_is_not_ok(statuses, ok, summary):
    assert report(*statuses).ok == ok
    assert report(*statuses).summary == summary


def test_a_report_has_a_line_for_each_finding():
    assert str(report("ok", "error")) == (
        "a model\nok       check 0  words\nerror    check 1  words\n1 error"
    )


def test_a_notebook_shows_what_print_shows():
    shown = CheckReport("a <model>", (CheckResult("scale", "ok", "σ < 1 & more"),))
    assert repr(shown) == str(shown)
    html = shown._repr_html_()
    assert "<td>ok</td><td>scale</td><td>σ &lt; 1 &amp; more</td>" in html
    assert "a &lt;model&gt;" in html
    assert "no problems found" in html


def test_findings_by_name():
    assert report("ok", "note")["check 1"].status == "note"
    assert "check 1" in report("ok", "note")
    with pytest.raises(KeyError, match="a check among check 0, got 'scale'"):
        report("ok")["scale"]


def test_figures_that_are_not_finite_are_none_in_json():
    found = CheckResult("cost", "ok", "words", {"seconds": 1.0, "error": math.nan})
    assert CheckReport("a model", (found,)).as_dict() == {
        "model": "a model",
        "ok": True,
        "findings": [
            {
                "name": "cost",
                "status": "ok",
                "message": "words",
                "figures": {"seconds": 1.0, "error": None},
            }
        ],
    }


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="a status among ok, note, warning, error, got 'bad'"):
        CheckResult("cost", "bad", "words")
