"""Optional libraries: imported when needed, with install instructions if they are missing."""

from importlib import import_module
from typing import Any


def library(name: str, extra: str) -> Any:
    """Import the module `name`, which an extra of this package installs.

    Raises:
        ImportError: It is not installed, or clashes with an installed library, like a torchvision
            that was built for another torch.
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"expected {name} to be installed for this, but importing it failed ({error}); "
            f"install it with: pip install 'crosscoding[{extra}]'"
        ) from error
