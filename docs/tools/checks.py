"""A hook of mkdocs: the built site loads nothing from elsewhere, and has every public name.

What it finds is logged as a warning, which `mkdocs build --strict` takes for an error.
"""

import ast
import logging
import re
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("mkdocs.hooks.checks")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon)[\"']?[^>]*\bhref=[\"']?"
    r"(?:https?:)?//[^\"'\s>]+"
)
_LOADED_BY_CSS = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^\"')\s]+")


def on_post_build(config: Any) -> None:
    """Called by mkdocs when all pages are written."""
    site, source = Path(config["site_dir"]), Path(config["config_file_path"]).parent / "src"
    for found in [*loaded_from_elsewhere(site), *missing_names(site / "api", source)]:
        _LOG.warning(found)


def loaded_from_elsewhere(site: Path) -> list[str]:
    """A sentence for each thing that a page or a style sheet would fetch from another host."""
    found = []
    for pattern, kind in ((_LOADED, "*.html"), (_LOADED_BY_CSS, "*.css")):
        for path in sorted(site.rglob(kind)):
            hits = pattern.findall(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(site)} loads from elsewhere: {hit}" for hit in hits]
    return found


def missing_names(pages: Path, source: Path) -> list[str]:
    """A sentence for each public name without a heading in the pages of the API reference."""
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(pages.glob("*.html")))
    headings = set(re.findall(r'<h\d\s+id="([\w.]+)"', text))
    return [
        f"{name} is public but not in the API reference; add it to a page in docs/api"
        for name in public_names(source)
        if name not in headings
    ]


def public_names(source: Path) -> list[str]:
    """Names in `__all__` of the package and of the modules that it exports, with dots."""
    top, names = _exported(source / "crosscoding" / "__init__.py"), []
    for name in top:
        module = source / "crosscoding" / name / "__init__.py"
        own = _exported(module) if module.exists() else [""]
        # what the package exports itself, such as `random_mask`, is listed there
        names += [f"crosscoding.{name}.{each}".rstrip(".") for each in own if each not in top]
    return names


def _exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"expected {path} to define __all__")
