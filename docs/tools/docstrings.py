"""Our docstrings as mkdocstrings expects them: a griffe extension.

`Example:` becomes `Examples:`, whose doctests griffe knows; parameters that share a description
(`low, high: …`) get one each; and the star of a shape, (*sample, *batch), is not read as emphasis.
"""

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
_SHARED = re.compile(r"^( {4})(\*{0,2}\w+(?:, \*{0,2}\w+)+):( .*(?:\n {5,}.*)*)", re.MULTILINE)
_STAR = re.compile(r"(?<![\\`*\w])\*(?=[A-Za-z])")


class Docstrings(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for each object that griffe finds."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring in griffe's dialect of the Google style; the same if it is already."""
    text = _SHARED.sub(_one_each, _EXAMPLE.sub(r"\1Examples:", text))
    return "\n".join(_with_stars(line) for line in text.split("\n"))


def _one_each(match: re.Match[str]) -> str:
    indent, names, description = match.groups()
    return "\n".join(f"{indent}{name}:{description}" for name in names.split(", "))


def _with_stars(line: str) -> str:
    """The line with its stars escaped, but for code and the names of parameters."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    pieces = re.split(r"(`[^`]*`)", line)
    for place in range(0, len(pieces), 2):
        pieces[place] = _STAR.sub(r"\\*", pieces[place])
    name = re.match(r" {4}\\(\*{1,2}\w+:)", "".join(pieces))
    return " " * 4 + "".join(pieces)[5:] if name else "".join(pieces)
