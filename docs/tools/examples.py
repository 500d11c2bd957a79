"""Runs scripts of examples/ and writes a page on each: its picture, its output and its code.

    python docs/tools/examples.py                      all scripts directly in examples/
    python docs/tools/examples.py calibration …        these; also those in examples/adapters

`make examples` runs each with the libraries that it needs. Pages and pictures are kept in docs, so
that the site builds in seconds; a test compares their code with the scripts.
"""

import ast
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
_LONGEST = 60  # lines of output that are shown


def main(names: list[str]) -> None:
    """Run the named scripts and write their pages."""
    scripts = sorted(EXAMPLES.glob("*.py"))
    if names:
        scripts = [found for found in EXAMPLES.rglob("*.py") if found.stem in names]
        unknown = set(names) - {script.stem for script in scripts}
        if unknown:
            raise SystemExit(f"no example is called {', '.join(sorted(unknown))}")
    for script in scripts:
        print(script.relative_to(ROOT), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            output = run(script, Path(folder))
            for picture in pictures_of(script, Path(folder)):
                (DOCS / "images" / picture.name).write_bytes(picture.read_bytes())
        (DOCS / "examples" / f"{script.stem}.md").write_text(page(script, output))


def run(script: Path, folder: Path) -> str:
    """What a script prints; it runs in `folder`.

    Raises:
        SystemExit: It fails.
    """
    missing = importlib.util.find_spec("torchvision") is None
    if missing and "from_onnx" in script.read_text(encoding="utf-8"):
        _stand_in_for_torchvision(folder)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr}")
    return done.stdout


def _stand_in_for_torchvision(folder: Path) -> None:
    """The names that onnx2pytorch imports and no decoder uses, as in tests/adapters/conftest.py."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "io.py").write_text("decode_image = ImageReadMode = None\n")
    (package / "ops.py").write_text("deform_conv2d = roi_align = roi_pool = None\n")


def page(script: Path, output: str) -> str:
    """The page on a script, as Markdown."""
    code = script.read_text(encoding="utf-8")
    title, *rest = (ast.get_docstring(ast.parse(code)) or "").split("\n\n")
    command, *about = rest
    parts = [f"# {title.removesuffix('.')}", f"```\n{_unindented(command)}\n```", *about]
    drawn = pictures_of(script, DOCS / "images")
    parts += [f"![{_shown(picture)}](../images/{picture.name})" for picture in drawn]
    lines = output.rstrip().splitlines()
    if len(lines) > _LONGEST:
        lines = [*lines[:_LONGEST], "..."]
    if lines:
        parts += ["## Output", "```text\n" + "\n".join(map(str.rstrip, lines)) + "\n```"]
    parts += ["## Code", f"```python\n{code.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def pictures_of(script: Path, folder: Path) -> list[Path]:
    """The pictures in a folder that are named after a script: NAME.png and NAME_….png."""
    return [*folder.glob(f"{script.stem}.png"), *sorted(folder.glob(f"{script.stem}_*.png"))]


def _shown(picture: Path) -> str:
    return f"{picture.stem.replace('_', ' ')}, as the script draws it"


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


if __name__ == "__main__":
    main(sys.argv[1:])
