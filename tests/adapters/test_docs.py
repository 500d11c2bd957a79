"""The examples of docs/adapters.md, run section by section."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
SECTIONS = {
    section.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
}
EXAMPLES = {title: code for title, code in SECTIONS.items() if code}


@pytest.mark.filterwarnings("ignore")  # from the exporters
@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title, request, tmp_path, monkeypatch):
    if title in ("diffusers", "pythae"):
        pytest.importorskip(title, reason=f"needs the extra `{title}`")
    if title == "ONNX":
        pytest.importorskip("onnxscript", reason="needs onnxscript, to export decoders")
        request.getfixturevalue("onnx2pytorch")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    exec(EXAMPLES[title], names)
    if "draws" in names:
        assert names["draws"].isfinite().all()
        evidence = names["evidence"]
        observed = torch.where(evidence.mask, evidence.values, 0.0)
        assert torch.equal(torch.where(evidence.mask, names["draws"][0], 0.0), observed)
