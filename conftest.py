"""Leaves out the doctests of modules whose extra is not installed, as they cannot be imported."""

from importlib.util import find_spec

if find_spec("fastapi") is None:
    collect_ignore = [
        f"src/crosscoding/serve/{name}.py" for name in ("api", "monitoring", "schemas")
    ]
