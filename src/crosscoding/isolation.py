"""Isolation: torch settings around a call in the caller's code do not change its result.

Autocast would run a decoder in half precision, inference mode would return tensors that cannot be
differentiated later, a default device would move tensors that a decoder creates, and
`torch.set_float32_matmul_precision` would make matrix products less precise. An `isolated` function
runs without these settings, and restores them when it returns or raises. The first three belong to
the caller's thread. The precision of products belongs to the process, so other threads also get
full precision while such a function runs. The default dtype belongs to the process too but is left
alone: this package names the dtype of every tensor that it creates.
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

# Held while tangents are pushed forward: torch counts levels of dual numbers for all threads at
# once, so that two threads in forward mode fail, or lose their derivatives' digits.
FORWARD_MODE = threading.RLock()

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)


def isolated(function: _Function) -> _Function:
    """The function, run without autocast, inference mode, imprecise products or a default device.

    Whether gradients are recorded does not change; in inference mode they are not. Arguments that
    are inference tensors are copied to normal ones, so the result can be used anywhere.
    """

    @functools.wraps(function)
    def isolated_function(*args: Any, **kwargs: Any) -> Any:
        ways_out = _ways_out(args)
        if not ways_out:  # nearly always: save the time that a stack takes
            return function(*map(_normal, args), **_all_normal(kwargs))
        with ExitStack() as stack:
            for context in ways_out:
                stack.enter_context(context)
            return function(*map(_normal, args), **_all_normal(kwargs))

    return cast(_Function, isolated_function)


def isolated_class(cls: _Class) -> _Class:
    """The class with its constructor and all public methods and properties isolated."""
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
    """Full-precision float32 products in all threads while any thread is inside.

    The first thread to enter remembers the setting, and the last to leave restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = lambda: None

    def needed(self) -> bool:
        """Whether products are imprecise, or would become so when another thread leaves."""
        with self._lock:
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
    """The setting of `torch.set_float32_matmul_precision`; "" if backends differ in it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


def _restoring() -> Callable[[], None]:
    """A function that restores the current precision of products."""
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
    """The contexts to enter, in order, to get out of the caller's settings."""
    contexts: list[AbstractContextManager[Any]] = []
    if torch.is_inference_mode_enabled():
        contexts += [torch.inference_mode(False), torch.no_grad()]  # the first turns gradients on
    for device_type in _DEVICE_TYPES:
        if torch.is_autocast_enabled(device_type):
            contexts.append(torch.autocast(device_type, enabled=False))
    if _EXACT_PRODUCTS.needed():
        contexts.append(_EXACT_PRODUCTS)
    default = torch.empty(0).device  # torch.get_default_device takes four times as long
    if default != _CPU and default != (home := _home(args)):
        contexts.append(home)
    return contexts


def _home(args: tuple[Any, ...]) -> torch.device:
    """The device of the first argument that has one: a model, a network or a tensor."""
    for argument in args:
        if isinstance(argument, nn.Module):
            argument = next(argument.parameters(), None)
        device = getattr(argument, "device", None)
        if isinstance(device, torch.device):
            return device
    return _CPU


def _normal(argument: Any) -> Any:
    """An inference tensor as a normal tensor; anything else unchanged."""
    if isinstance(argument, Tensor) and argument.is_inference():
        return argument.clone()
    return argument


def _all_normal(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _normal(value) for name, value in kwargs.items()} if kwargs else kwargs
