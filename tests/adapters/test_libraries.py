"""Missing libraries: every adapter says which extra installs them."""

import sys
from types import ModuleType

import pytest
from torch import nn

from crosscoding.adapters import (
    from_ctgan,
    from_diffusers,
    from_onnx,
    from_pythae,
    from_scvi,
    from_sdv,
)
from crosscoding.adapters.libraries import library
from crosscoding.likelihoods import Gaussian

CALLS = {
    "ctgan": lambda path: from_ctgan(nn.Linear(2, 3)),
    "diffusers": lambda path: from_diffusers(nn.Linear(2, 3), 8),
    "onnx": lambda path: from_onnx(path / "decoder.onnx", Gaussian(0.1)),
    "pythae": lambda path: from_pythae(nn.Linear(2, 3)),
    "scvi": lambda path: from_scvi(nn.Linear(2, 3)),
    "sdv": lambda path: from_sdv(nn.Linear(2, 3)),
}


@pytest.mark.parametrize("extra", CALLS)
def test_the_message_on_a_missing_library_names_its_extra(extra, tmp_path, monkeypatch):
    for name in [extra, *(name for name in sys.modules if name.startswith(f"{extra}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'crosscoding\[{extra}\]'"):
        CALLS[extra](tmp_path)


def test_the_message_on_a_broken_library_says_why(tmp_path, monkeypatch):
    """Like a torchvision that was built for another torch."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"broken_library .* failed \(operator does not exist\)"):
        library("broken_library", "onnx")


def test_an_installed_library_is_returned():
    assert isinstance(library("torch", "onnx"), ModuleType)
