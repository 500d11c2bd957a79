"""Descriptions: one text for terminals and notebooks, none of which is ever markup."""

import math
from io import StringIO

import pytest
from rich.console import Console

from crosscoding.display import (
    Description,
    Displayed,
    Grid,
    Mark,
    Strip,
    shown_number,
    shown_range,
    with_error,
)
from crosscoding.display.notebook import as_html
from crosscoding.display.terminal import as_rich

EVIL = "<script>alert(\"x\")</script> & [red]y[/red] 'z'"
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; [red]y[/red] &#x27;z&#x27;"


def everywhere(text: str) -> Description:
    """A description with the text in every place."""
    grid = Grid(((text, Mark(text, "bad")),), (text, text), text, frozenset({0}), text)
    strip = Strip(b"png", text, 10)
    return Description(text, ((text, text), (text, Mark(text, "good"))), (grid,), (strip,), (text,))


def printed(shown) -> str:
    console = Console(file=StringIO(), width=400, color_system=None)
    console.print(shown)
    return console.file.getvalue()


def test_html_escapes_every_text():
    html = as_html(everywhere(EVIL))
    assert "<script" not in html
    assert html.count(ESCAPED) == 14
    assert 'src="data:image/png;base64,cG5n"' in html


def test_terminals_print_every_text_as_it_is():
    assert printed(as_rich(everywhere(EVIL))).count(EVIL) == 12  # all but the picture's


def test_both_forms_say_the_same():
    grid = Grid((("a1", Mark("b2", "note")), ("c3", "d4")), ("e5", "f6"), "g7", more="h8")
    shown = Description("i9", (("j10", "k11"),), (grid,), notes=("l12",))
    html, text = as_html(shown), printed(as_rich(shown))
    for word in ("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8", "i9", "j10", "k11", "l12"):
        assert word in html
        assert word in text


def test_a_mark_in_the_first_cell_marks_the_row():
    html = as_html(Description(grids=(Grid(((Mark("ok", "good"), "x"), ("y", Mark("z", "bad")))),)))
    assert '<tr class="good"><td>ok</td><td>x</td></tr>' in html
    assert '<tr><td>y</td><td class="bad"><b>z</b></td></tr>' in html


def test_an_empty_description_is_shown():
    assert printed(as_rich(Description())) in ("", "\n")
    assert as_html(Description()).endswith("</style></div>")


def test_pictures_are_only_made_for_notebooks():
    class Thing(Displayed):
        def _described(self, *, pictures):
            return Description(str(pictures))

    assert "False" in printed(Thing())
    assert "True" in Thing()._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3, "3"),
        (-2.5, "−2.50"),
        (1985, "1985"),
        (12345.6, "12,346"),
        (99.96, "100"),
        (0.0123, "0.0123"),
        (1.5e-9, "1.50e−09"),
        (2e12, "2.00e+12"),
        (math.nan, "—"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_have_the_digits_that_matter(value, text):
    assert shown_number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-152.3123, 0.0123, "−152.312 ± 0.012"),
        (-152.3, 1.24, "−152.3 ± 1.2"),
        (-15212.3, 123.0, "−15,212 ± 123"),
        (1.0, 0.0, "1.00"),
        (1.0, math.inf, "1.00"),
        (1.0, math.nan, "1.00"),
        (math.nan, 0.1, "—"),
        (-math.inf, math.inf, "−∞"),
    ],
)
def test_errors_have_two_digits(value, error, text):
    assert with_error(value, error) == text


def test_a_range_of_equal_ends_is_one_number():
    assert shown_range(1.0, 1.0) == "1"
    assert shown_range(1.0, 2.5) == "1 to 2.50"
