"""What surrounds a call in the caller's code, kept from changing what the call gives.

Autocast would run a decoder in half precision, inference mode would give tensors that cannot be
differentiated later, and a default device would move what a decoder's own code makes. A function
that is `isolated` runs without them, and they are as they were when it returns or raises. All three
belong to the caller's thread. What belongs to all threads is left alone: code of this package names
the dtype of every tensor that it makes, and does not depend on the default dtype; where products of
matrices are less precise than their dtype, there is a warning.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

_ACCELERATOR = torch.accelerator.current_accelerator()
_DEVICE_TYPES = ("cpu",) if _ACCELERATOR is None else ("cpu", _ACCELERATOR.type)
_CPU = torch.device("cpu")
_WIDTH = 128  # of matrices that are large enough for a processor's coarse products

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)


def isolated(function: _Function) -> _Function:
    """The function, run outside of autocast, inference mode and a default device of the caller's.

    Whether gradients are recorded stays as it is; in inference mode they are not. Arguments that
    are inference tensors are copied to normal ones, so what is returned can be used anywhere.
    """

    @functools.wraps(function)
    def isolated_function(*args: Any, **kwargs: Any) -> Any:
        ways_out = _ways_out(args)
        if not ways_out:  # as nearly always: without the time that a stack takes
            return function(*map(_normal, args), **_all_normal(kwargs))
        with ExitStack() as stack:
            for context in ways_out:
                stack.enter_context(context)
            return function(*map(_normal, args), **_all_normal(kwargs))

    return cast(_Function, isolated_function)


def isolated_class(cls: _Class) -> _Class:
    """The class with all its public methods and properties, and its constructor, isolated."""
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name not in ("__init__", "__getitem__", "__repr__"):
            continue
        if isinstance(member, property):
            own = isolated(cast(Any, member.fget))
            setattr(cls, name, property(own, member.fset, member.fdel, member.__doc__))
        elif isinstance(member, (staticmethod, classmethod)):
            setattr(cls, name, type(member)(isolated(member.__func__)))
        elif callable(member):
            setattr(cls, name, isolated(member))
    return cls


def warn_of_coarse_products(like: Tensor, stacklevel: int) -> None:
    """Warn where `torch.set_float32_matmul_precision` takes digits from products of float32.

    What that does depends on the processor, so one is tried: 1 + 2⁻¹² is 1 in bfloat16 and TF32.

    Args:
        like: Of the dtype and on the device that products are of.
        stacklevel: As `warnings.warn` has it, from the function that calls this one.
    """
    precision = torch.get_float32_matmul_precision()
    if precision == "highest" or like.dtype != torch.float32:
        return
    factor = like.new_full((_WIDTH, _WIDTH), 1 + 2**-12)
    if (factor @ factor - _WIDTH * (1 + 2**-11)).abs().max() > 1e-2:
        warnings.warn(
            f"matrix products lose precision because float32_matmul_precision is {precision!r}, "
            "and so do answers; call torch.set_float32_matmul_precision('highest')",
            stacklevel=stacklevel + 1,
        )


def _ways_out(args: tuple[Any, ...]) -> list[AbstractContextManager[Any]]:
    """What to enter, one after the other, to get out of what surrounds the caller."""
    contexts: list[AbstractContextManager[Any]] = []
    if torch.is_inference_mode_enabled():
        contexts += [torch.inference_mode(False), torch.no_grad()]  # the first turns gradients on
    for device_type in _DEVICE_TYPES:
        if torch.is_autocast_enabled(device_type):
            contexts.append(torch.autocast(device_type, enabled=False))
    default = torch.empty(0).device  # what torch.get_default_device gives, in a quarter of the time
    if default != _CPU and default != (home := _home(args)):
        contexts.append(home)
    return contexts


def _home(args: tuple[Any, ...]) -> torch.device:
    """Where the first argument that lies somewhere lies: a model, a network or a tensor."""
    for argument in args:
        if isinstance(argument, nn.Module):
            argument = next(argument.parameters(), None)
        device = getattr(argument, "device", None)
        if isinstance(device, torch.device):
            return device
    return _CPU


def _normal(argument: Any) -> Any:
    """A tensor made in inference mode as one that gradients may pass; anything else as it is."""
    if isinstance(argument, Tensor) and argument.is_inference():
        return argument.clone()
    return argument


def _all_normal(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _normal(value) for name, value in kwargs.items()} if kwargs else kwargs
