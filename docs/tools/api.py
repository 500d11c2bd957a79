"""A hook of mkdocs: one line of a page in docs/api stands for a module's names.

    ::: crosscoding.likelihoods.*
        options:
          members: false

becomes such an entry for every name in `__all__` of the module that no page lists by itself. So a
new likelihood is in the API reference as soon as it is exported.
"""

import re
from pathlib import Path
from typing import Any

from checks import public_names

_LISTED = re.compile(r"^::: (\S+)$", re.MULTILINE)
_ALL_OF = re.compile(r"^::: (\S+)\.\*\n((?: {4,}.*\n)*)", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered."""
    return expanded(markdown, Path(config["docs_dir"])) if _ALL_OF.search(markdown) else markdown


def expanded(page: str, docs: Path) -> str:
    """The page with one entry for each name that a line `::: module.*` stands for."""
    texts = [path.read_text(encoding="utf-8") for path in (docs / "api").glob("*.md")]
    listed = {name for text in texts for name in _LISTED.findall(text)}
    names = [name for name in public_names(docs.parent / "src") if name not in listed]

    def entries(match: re.Match[str]) -> str:
        module, options = match.groups()
        own = [name for name in names if name.rpartition(".")[0] == module]
        if not own:
            raise ValueError(f"expected names of {module} that no page lists by itself")
        return "\n".join(f"::: {name}\n{options}" for name in own)

    return _ALL_OF.sub(entries, page + "\n").rstrip() + "\n"
