"""The scripts of examples/adapters, each with its library."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "ctgan_table": "ctgan", "diffusers_picture": "diffusers", "exported_program": "torch",
    "onnx_file": "onnx2pytorch", "pythae_picture": "pythae", "scvi_counts": "scvi",
    "sdv_table": "sdv",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_an_example_runs_and_draws_its_picture(name, tmp_path):
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"needs {LIBRARIES[name]}")
    path = ROOT / "docs" / "tools" / "examples.py"
    spec = importlib.util.spec_from_file_location("docs_examples", path)
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    assert examples.run(ROOT / "examples" / "adapters" / f"{name}.py", tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_every_example_is_tried():
    scripts = (ROOT / "examples" / "adapters").glob("*.py")
    assert {script.stem for script in scripts} == set(LIBRARIES)
