"""Loads the user's own decoder: `--decoder FILE.py:Class` runs that file."""

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from crosscoding.cli.paths import expanded
from crosscoding.errors import first_line, unknown_name


def load_decoder(words: str) -> nn.Module:
    """Create the network that FILE.py:Class names, without arguments.

    Raises:
        ValueError: There is no such file or class, its code fails, or it needs arguments.
    """
    file, _, name = words.rpartition(":")
    path = expanded(Path(file))
    if not file or not name.isidentifier() or path.suffix != ".py":
        raise ValueError(f"expected --decoder as FILE.py:Class, got {words!r}")
    if not path.is_file():
        raise ValueError(f"expected --decoder FILE.py:Class, but there is no file {path}")
    module = _run(path)
    kind = getattr(module, name, None)
    if kind is None:
        raise unknown_name(f"class of {path}", name, _classes(module))
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"expected {name} in {path} to be a subclass of torch.nn.Module, got "
            f"{'the class ' + kind.__name__ if inspect.isclass(kind) else type(kind).__name__}"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return kind()
    except Exception as error:  # the user's class may raise anything
        raise ValueError(
            f"cannot create {name} of {path} without arguments: {first_line(error)}; name a class "
            f"that needs none, such as a subclass whose __init__ passes {name} its arguments"
        ) from error


def _run(path: Path) -> ModuleType:
    """Run the file as a module. It can import its neighbours; what it prints goes to stderr."""
    spec = importlib.util.spec_from_file_location(f"crosscoding_decoder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    sys.path.append(str(path.resolve().parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"cannot run {path}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module


def _classes(module: ModuleType) -> list[str]:
    """The networks that a module defines."""
    return [
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
        if kind.__module__ == module.__name__
    ]
