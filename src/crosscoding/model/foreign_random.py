"""Global random streams: watched while a user's network runs, and restored afterwards."""

# ruff: noqa: NPY002 - NumPy's legacy stream is only watched, never drawn from

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only


@contextmanager
def watched(network: nn.Module) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether random numbers were drawn since its last call.

    It watches the global streams of torch, NumPy and Python, which are restored at the end, and
    generators that are attributes of the network's modules.
    """
    cuda = torch.cuda.is_initialized()
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    of_gpus = torch.cuda.get_rng_state_all() if cuda else []
    last = _states(network)

    def drawn() -> bool:
        nonlocal last
        before, last = last, _states(network)
        return before != last

    try:
        yield drawn
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if cuda:
            torch.cuda.set_rng_state_all(of_gpus)


def _states(network: nn.Module) -> Any:
    """The states of all streams, in a form that can be compared."""
    states: list[Any] = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    for module in network.modules():
        states += map(_state, vars(module).values())
    return tree_map_only((torch.Tensor, np.ndarray), lambda array: array.tolist(), states)


def _state(value: object) -> Any:
    """The state of a generator; None for anything else."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, (torch.Generator, np.random.RandomState)):
        return value.get_state()
    return value.getstate() if isinstance(value, random.Random) else None
