"""Exported names, and what an import does not do. `lint-imports` holds the layers."""

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

OPTIONAL = (
    *("matplotlib", "PIL", "typer", "rich", "scipy", "arviz", "xarray", "pandas", "sklearn"),
    *("diffusers", "onnx", "onnx2pytorch", "onnxruntime", "pythae", "torchvision"),
    *("fastapi", "pydantic", "prometheus_client", "uvicorn"),
    *("pyarrow", "ray", "zarr"),
)


def modules() -> dict[str, Path]:
    """Every module by its dotted name within the package; the package itself is ''."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_all_names_in_all_exist(module):
    if module.startswith("serve."):  # the only modules that import an extra at their top
        pytest.importorskip("fastapi", reason="needs the extra: pip install 'crosscoding[serve]'")
    loaded = importlib.import_module(f"crosscoding.{module}".rstrip("."))
    names = getattr(loaded, "__all__", [])
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(set(names)) == len(names)


PUBLIC = (
    *("", "adapters", "batch", "crosscoders", "diagnostics", "likelihoods", "methods", "plots"),
    *("priors", "tables", "zoo"),
)


@pytest.mark.parametrize("package", PUBLIC)
def test_dir_shows_only_the_public_names(package):
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
