from pathlib import Path

import pytest

from crosscoding.methods import METHODS, method

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_section_in_the_docs(name):
    assert f"\n## {name}\n" in DOCS.read_text()
    assert method(name) is METHODS[name].method


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'rejection'"):
        method("rejektion")
