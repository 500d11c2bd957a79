"""The layers of design.md, read off the imports; exported names; what an import does not do."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import crosscoding

ROOT = Path(crosscoding.__file__).parent

# Lowest first: a module imports only from rows above its own, a package's files from each other.
LAYERS = (
    "errors",
    "report",
    "random",
    "surroundings",
    "clock",
    "progress",
    "pickles",
    "storage",
    "streams",
    "copies",
    "evidence",
    "cost",
    "architecture",
    "classes",
    "likelihoods",
    "model",
    "savable",
    "frozen",
    "encoder",
    "heads",
    "undefined",
    "vae",
    "bank",
    "jacobian",
    "backward",
    "observed",
    "clamps",
    "target",
    "density",
    "bijections",
    "crosscoders",
    "diagnostics",
    "verdict",
    "findings",
    "exchange",
    "saving",
    "posterior",
    "methods",
    "doubts",
    "condition",
    "calibration",
    "checks",
    "zoo",
    "adapters",
    "registry",
    "plots",
    "experiments",
    "",  # the package itself, which exports
    "cli",
    "__main__",
)
# Rows that know nothing of VAEs: on plain tensors, with no more of the package than this.
PLAIN = {
    "errors": set(),
    "report": set(),
    "random": set(),
    "surroundings": set(),
    "clock": set(),
    "progress": set(),
    "pickles": {"errors"},
    "storage": {"errors", "pickles"},
    "streams": set(),
    "copies": {"errors", "streams"},
    "jacobian": set(),
    "backward": set(),
    "cost": {"errors"},
    "bijections": set(),
    "diagnostics": {"errors", "random"},
    "plots": set(),
}
# Methods that are thin doors to a row below: imported when they are called. See decision 0006.
DOORS = {"vae": {"checks"}}
OPTIONAL = (
    *("matplotlib", "PIL", "typer", "rich", "scipy", "arviz", "xarray", "pandas"),
    *("diffusers", "onnx", "onnx2pytorch", "onnxruntime", "pythae", "torchvision"),
)


def modules() -> dict[str, Path]:
    """Every module by its dotted name within the package; the package itself is ''."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def row(module: str) -> str:
    return module.split(".")[0]


def imported_rows(path: Path, package: str) -> set[str]:
    """Rows that a file imports from, inside functions and type-checking blocks too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = ["crosscoding", *package.split(".")][: -node.level + 1 or None]
                base = ".".join([part for part in [*start, base] if part])
            if base == "crosscoding":  # `from crosscoding import zoo` is an import of the row zoo
                found |= {f"crosscoding.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    inside = {name.removeprefix("crosscoding").lstrip(".") for name in found if is_ours(name)}
    return {row(name) if row(name) in LAYERS else "" for name in inside}


def is_ours(name: str) -> bool:
    return name == "crosscoding" or name.startswith("crosscoding.")


def test_every_module_has_a_row():
    assert {row(name) for name in MODULES} <= set(LAYERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_rows_above_its_own(module):
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    above = set(LAYERS[: LAYERS.index(row(module))])
    if module:
        above.add(row(module))
    assert imported_rows(path, package) <= above | DOORS.get(module, set())


@pytest.mark.parametrize("plain", PLAIN)
def test_rows_on_plain_tensors_know_nothing_of_vaes(plain):
    for module, path in MODULES.items():
        if row(module) == plain:
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            assert imported_rows(path, package) <= PLAIN[plain] | {plain}, module


def test_the_reader_of_imports_sees_every_kind_of_import(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import torch, crosscoding.model.vae\n"
        "from crosscoding import zoo, __version__\n"
        "from crosscoding.methods.base import Method\n"
        "from . import mixture\n"
        "def later():\n    from .comparison import compare\n    from ..plots import sheet\n"
    )
    wanted = {"vae", "zoo", "", "methods", "experiments", "plots"}
    assert imported_rows(source, "experiments") == wanted


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_name_in_all_exists(module):
    loaded = importlib.import_module(f"crosscoding.{module}".rstrip("."))
    names = getattr(loaded, "__all__", [])
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(set(names)) == len(names)
    if MODULES[module].name == "__init__.py" and module not in ("experiments", "cli"):
        assert names  # a package says what it exports


PUBLIC = ("", "adapters", "crosscoders", "diagnostics", "likelihoods", "methods", "zoo")


@pytest.mark.parametrize("package", PUBLIC)
def test_dir_shows_the_public_names_alone(package):
    loaded = importlib.import_module(f"crosscoding.{package}".rstrip("."))
    shown = dir(loaded)
    assert [name for name in shown if not name.startswith("__")] == sorted(loaded.__all__)
    assert {"__all__", "__doc__", "__name__"} <= set(shown)


def test_every_module_says_what_it_is_for():
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), module


def test_the_package_finds_all_its_modules():
    found = {info.name for info in pkgutil.walk_packages(crosscoding.__path__, "crosscoding.")}
    assert found == {f"crosscoding.{name}" for name in MODULES if name}


IMPORT = f"""
import json, sys
import torch
def state():
    return [
        str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.get_num_interop_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(), str(torch.get_default_device()),
        torch.get_float32_matmul_precision(), torch.distributions.Distribution._validate_args,
    ]
before, loaded = state(), set(sys.modules)
import random, warnings
filters, numbers = list(warnings.filters), random.getstate()
import crosscoding
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
print(json.dumps({{
    "same": before == state(),
    "same elsewhere": filters == list(warnings.filters) and numbers == random.getstate(),
    "optional": sorted(new & set({OPTIONAL!r})),
    "all": sorted(name for name in crosscoding.__all__ if not hasattr(crosscoding, name)),
}}))
"""


def test_importing_changes_no_torch_global_and_loads_nothing_that_is_not_needed():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == {
        "same": True,
        "same elsewhere": True,
        "optional": [],
        "all": [],
    }
