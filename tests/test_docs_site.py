"""The docs site: its API reference is complete, and its tools find what they should."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

import crosscoding as cc

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def tool(name: str):
    """A module of docs/tools, none of which is part of the package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "tools")  # as mkdocs does
        spec.loader.exec_module(module)
    return module


def public_names() -> set[str]:
    names = set()
    for name in cc.__all__:
        value = getattr(cc, name)
        if isinstance(value, types.ModuleType):
            own = [each for each in value.__all__ if each not in cc.__all__]
            names |= {f"crosscoding.{name}.{each}" for each in own}
        else:
            names.add(f"crosscoding.{name}")
    return names


def test_every_public_name_is_in_the_api_reference():
    expanded = tool("api").expanded
    pages = "".join(
        expanded(page.read_text(), DOCS) for page in sorted((DOCS / "api").glob("*.md"))
    )
    listed = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    by_module = {name for name in public_names() if name.rpartition(".")[0] in listed}
    missing = public_names() - by_module - set(listed)
    assert missing == set(), "add them, or their module, to a page in docs/api"
    assert len(listed) == len(set(listed))


def test_one_line_lists_the_names_of_a_module_that_no_other_line_does():
    page = "## All\n\n::: crosscoding.likelihoods.*\n    options:\n      members: false\n\n## End"
    names = re.findall(r"^::: (\S+)\n    options:", tool("api").expanded(page, DOCS), re.MULTILINE)
    assert "crosscoding.likelihoods.Poisson" in names
    assert "crosscoding.likelihoods.Likelihood" not in names  # has an entry of its own
    assert tool("api").expanded("# No such line", DOCS) == "# No such line\n"


def test_names_are_read_from_the_source_as_they_are_imported():
    assert set(tool("checks").public_names(ROOT / "src")) == public_names()


def test_a_public_name_without_a_heading_is_reported(tmp_path):
    checks = tool("checks")
    headings = [f'<h2 id="{name}">' for name in sorted(public_names()) if name != "crosscoding.VAE"]
    (tmp_path / "page.html").write_text("\n".join(headings))
    (found,) = checks.missing_names(tmp_path, ROOT / "src")
    assert found.startswith("crosscoding.VAE is public but not in the API reference")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("page.html", '<script src="https://example.com/a.js"></script>'),
        ("page.html", '<link rel="stylesheet" href="//example.com/a.css">'),
        ("page.html", "<img alt=x src=http://example.com/a.png>"),
        ("site.css", '@import "https://example.com/fonts.css";'),
        ("site.css", "@font-face { src: url(https://example.com/a.woff2) }"),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_reported(tmp_path, file, text):
    (tmp_path / "fine.html").write_text('<a href="https://example.com">x</a><img src="a.png">')
    checks = tool("checks")
    assert checks.loaded_from_elsewhere(tmp_path) == []
    (tmp_path / file).write_text(text)
    (found,) = checks.loaded_from_elsewhere(tmp_path)
    assert found.startswith(f"{file} loads from elsewhere: ")


def test_docstrings_are_rewritten_for_griffe(monkeypatch):
    griffe = types.SimpleNamespace(Extension=object, Object=object)
    monkeypatch.setitem(sys.modules, "griffe", griffe)
    rewritten = tool("docstrings").rewritten
    ours = """Draws (*sample, *batch), as `(*sample)`.

Args:
    low, high: Ends of both,
        shape (*data,).
    *names: Any.

Example:
    >>> print(*names)
"""
    theirs = r"""Draws (\*sample, \*batch), as `(*sample)`.

Args:
    low: Ends of both,
        shape (\*data,).
    high: Ends of both,
        shape (\*data,).
    *names: Any.

Examples:
    >>> print(*names)
"""
    assert rewritten(ours) == theirs
    assert rewritten(theirs) == theirs


EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").rglob("*.py"))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_of_an_example_has_its_code(name):
    page = (DOCS / "examples" / f"{name}.md").read_text()
    code = EXAMPLES[name].read_text().rstrip()
    assert f"```python\n{code}\n```" in page, f"run python docs/tools/examples.py {name}"
    assert f"]({name}.md)" in (DOCS / "examples" / "index.md").read_text()


def test_a_script_is_run_and_described(tmp_path):
    script = tmp_path / "small.py"
    code = '"""Says hello.\n\n    python examples/small.py\n\nTo everybody.\n"""\n\nprint("hello ")'
    script.write_text(code)
    examples = tool("examples")
    assert examples.page(script, examples.run(script, tmp_path)) == (
        "# Says hello\n\n```\npython examples/small.py\n```\n\nTo everybody.\n\n"
        f"## Output\n\n```text\nhello\n```\n\n## Code\n\n```python\n{code}\n```\n"
    )
    script.write_text("raise ValueError('no')")
    with pytest.raises(SystemExit, match="no"):
        examples.run(script, tmp_path)


PAGES_OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "crosscoding-faces/README.md")


@pytest.mark.parametrize("page", PAGES_OUTSIDE)
def test_links_from_outside_the_site_lead_somewhere(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{target}#{anchor}"
