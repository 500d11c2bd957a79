"""Libraries that are extras: imported where they are needed, with the way to install them."""

from importlib import import_module
from typing import Any


def library(name: str, extra: str) -> Any:
    """The module `name`, which comes with an extra of this package.

    Raises:
        ImportError: It is not installed, or does not fit what is, as a torchvision that was built
            for another torch.
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"expected {name} to be installed for this, and importing it failed ({error}); "
            f"install it with: pip install 'crosscoding[{extra}]'"
        ) from error
