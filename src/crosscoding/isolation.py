"""What surrounds a call in the caller's code, kept from changing what the call gives.

Autocast would run a decoder in half precision, inference mode would give tensors that cannot be
differentiated later, a default device would move what a decoder's own code makes, and
`torch.set_float32_matmul_precision` would take digits from products of matrices. A function that is
`isolated` runs without them, and they are as they were when it returns or raises. The first three
belong to the caller's thread. The precision of products belongs to all threads, so other threads
have exact products too while such a function runs. The default dtype, which does as well, is left
alone: code of this package names the dtype of every tensor that it makes.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

_ACCELERATOR = torch.accelerator.current_accelerator()
_DEVICE_TYPES = ("cpu",) if _ACCELERATOR is None else ("cpu", _ACCELERATOR.type)
_CPU = torch.device("cpu")

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)


def isolated(function: _Function) -> _Function:
    """The function, run outside of autocast, inference mode, coarse products and a default device.

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


class _ExactProducts:
    """Products of float32 in float32 throughout, for all threads, while any of them is inside.

    The first to come remembers what was set, and the last to go sets it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = lambda: None

    def needed(self) -> bool:
        """Whether products are coarse, or would be again when another thread leaves."""
        return self._inside > 0 or _matmul_precision() != "highest"

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._restore = _restoring()
                torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore()


_EXACT_PRODUCTS = _ExactProducts()


def _matmul_precision() -> str:
    """What `torch.set_float32_matmul_precision` has set; "" where backends have settings apart."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


def _restoring() -> Callable[[], None]:
    """What sets the precision of products to what it is now."""
    if precision := _matmul_precision():
        return lambda: torch.set_float32_matmul_precision(precision)
    backends: list[Any] = [torch.backends.mkldnn, torch.backends.cuda]
    settings = [backend.matmul for backend in backends]
    values = [setting.fp32_precision for setting in settings]

    def restore() -> None:
        for setting, value in zip(settings, values, strict=True):
            setting.fp32_precision = value

    return restore


def _ways_out(args: tuple[Any, ...]) -> list[AbstractContextManager[Any]]:
    """What to enter, one after the other, to get out of what surrounds the caller."""
    contexts: list[AbstractContextManager[Any]] = []
    if torch.is_inference_mode_enabled():
        contexts += [torch.inference_mode(False), torch.no_grad()]  # the first turns gradients on
    for device_type in _DEVICE_TYPES:
        if torch.is_autocast_enabled(device_type):
            contexts.append(torch.autocast(device_type, enabled=False))
    if _EXACT_PRODUCTS.needed():
        contexts.append(_EXACT_PRODUCTS)
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
