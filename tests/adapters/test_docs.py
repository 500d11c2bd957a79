"""The examples of the pages on other libraries, run section by section."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
LIBRARIES = {"diffusers": "diffusers", "pythae": "pythae", "ctgan": "ctgan", "SDV": "sdv",
             "Impute genes": "scvi"}  # fmt: skip


def sections(page: str) -> dict[str, str]:
    """The code of each section of a page that has any."""
    parts = (DOCS / page).read_text(encoding="utf-8").split("\n## ")[1:]
    found = {
        part.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL))
        for part in parts
    }
    return {title: code for title, code in found.items() if code}


EXAMPLES = sections("adapters.md") | sections("ctgan.md") | sections("scvi.md")


@pytest.mark.filterwarnings("ignore")  # from the exporters, and of models that hardly learned
@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title, request, tmp_path, monkeypatch):
    if title in LIBRARIES:
        name = LIBRARIES[title]
        pytest.importorskip(name, reason=f"needs the extra `{name}`")
    if title == "ONNX":
        pytest.importorskip("onnxscript", reason="needs onnxscript, to export decoders")
        request.getfixturevalue("onnx2pytorch")
    if title in ("ctgan", "SDV"):
        _without_network(monkeypatch, title)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    exec(EXAMPLES[title], names)
    if "draws" in names:
        assert names["draws"].isfinite().all()
        evidence = names["evidence"]
        observed = torch.where(evidence.mask, evidence.values, 0.0)
        assert torch.equal(torch.where(evidence.mask, names["draws"][0], 0.0), observed)
    if "rows" in names:
        assert len(names["rows"]) == 1000


def _without_network(monkeypatch, title: str) -> None:
    """Small tables with the columns of the libraries' demonstrations, and quick training."""
    import pandas as pd

    generator = np.random.default_rng(0)

    def classes(*names: str, num: int = 300):
        return generator.choice(names, num)

    if title == "ctgan":
        import ctgan

        census = {
            "age": generator.integers(17, 90, 300),
            "hours-per-week": generator.integers(1, 99, 300),
            "education": classes("Bachelors", "Masters", "Doctorate", "HS-grad"),
            "income": classes("<=50K", ">50K"), "sex": classes("Male", "Female"),
            **{name: classes("a", "b", "c") for name in (
                "workclass", "marital-status", "occupation", "relationship", "race",
                "native-country")},
        }  # fmt: skip
        monkeypatch.setattr(ctgan, "load_demo", lambda: pd.DataFrame(census))
        return
    from sdv.datasets import demo
    from sdv.metadata import Metadata

    checkin = pd.Timestamp("2020-01-01") + pd.to_timedelta(generator.integers(0, 365, 300), "D")
    guests = pd.DataFrame({
        "guest_email": [f"guest{i}@example.com" for i in range(300)],
        "has_rewards": generator.random(300) < 0.2,
        "room_type": classes("BASIC", "DELUXE", "SUITE"),
        "amenities_fee": np.where(generator.random(300) < 0.1, np.nan, generator.random(300) * 40),
        "checkin_date": checkin.strftime("%d %b %Y"),
        "room_rate": generator.normal(180, 60, 300).round(2),
    })  # fmt: skip
    metadata = Metadata.detect_from_dataframes({"guests": guests})
    metadata.update_column("guest_email", sdtype="email")
    metadata.set_primary_key("guest_email")
    metadata.update_column("checkin_date", sdtype="datetime", datetime_format="%d %b %Y")
    monkeypatch.setattr(demo, "download_demo", lambda **_: ({"guests": guests}, metadata))
