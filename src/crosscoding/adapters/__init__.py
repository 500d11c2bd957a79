"""A `VAE` from models that other libraries trained or saved: one function per library.

Each library is an extra, imported when its function is called. Loading a file never runs code from
it, unless a function has the argument `allow_code` and the caller sets it to True.
"""

from crosscoding.adapters.ctgan import from_ctgan
from crosscoding.adapters.diffusers import from_diffusers
from crosscoding.adapters.export import from_export
from crosscoding.adapters.onnx import from_onnx
from crosscoding.adapters.pythae import from_pythae
from crosscoding.adapters.scvi import from_scvi
from crosscoding.adapters.sdv import from_sdv

__all__ = [
    "from_ctgan",
    "from_diffusers",
    "from_export",
    "from_onnx",
    "from_pythae",
    "from_scvi",
    "from_sdv",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
