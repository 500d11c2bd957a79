"""Decoders that other libraries trained or saved, as a `VAE`: one function a library.

Each library is an extra, imported when its function is called. Nothing that is loaded from a file
can run code, unless the caller says `allow_code=True` where there is such an argument.
"""

from crosscoding.adapters.diffusers import from_diffusers
from crosscoding.adapters.export import from_export
from crosscoding.adapters.onnx import from_onnx
from crosscoding.adapters.pythae import from_pythae

__all__ = ["from_diffusers", "from_export", "from_onnx", "from_pythae"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
