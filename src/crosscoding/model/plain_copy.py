"""Copies of networks in which every weight is a plain tensor, computed once.

Weight norm, spectral norm, pruning and other parametrisations compute a layer's weight from other
tensors before each run. In a trained network none of these change, so the copy keeps the computed
value. Wrappers that only affect how a module runs (`torch.compile`, `DataParallel`) are removed.
"""

import _thread
import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from crosscoding.errors import first_line
from crosscoding.model.foreign_random import watched

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_SHARED = (_thread.LockType, _thread.RLock, io.IOBase)  # cannot be copied, and hold no weights


def plain_copy(network: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode with plain weights and buffers; the module itself is not changed.

    Args:
        network: Any module.
        name: Its name in messages, such as "decoder".
    Raises:
        ValueError: It cannot be copied.
    """
    try:
        copied = _copy(network).eval()
    except Exception as error:  # a user's attributes may raise anything when copied
        raise ValueError(
            f"expected {name} to be a module that copy.deepcopy can copy, but that failed"
            f"{_where(network)}: {first_line(error)}; delete that attribute, or make it in forward"
        ) from error
    for module in copied.modules():
        _settle_hooks(module)
        if parametrize.is_parametrized(module):
            _settle_parametrisations(module)
    return copied


def check_weights(network: nn.Module, name: str) -> None:
    """Raise ValueError if a network has weights without values."""
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"expected a trained {name}, got one whose {key!r} has no shape yet, being in a "
                "lazy layer; run it once or load its weights first"
            )
        if tensor.is_meta:
            raise ValueError(
                f"expected a trained {name}, got one whose {key!r} is on the meta device, without "
                "values; load its weights with load_state_dict(..., assign=True) first"
            )


def tensors_of(network: nn.Module) -> Iterator[Tensor]:
    """A network's weights, then its other tensors: attributes and constants of scripts."""
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        yield from (leaf for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor))
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "inlined_graph"):
            graph: Any = module.inlined_graph  # keep it alive: its nodes die with it
            for node in graph.findAllNodes("prim::Constant"):
                if isinstance(value := node.output().toIValue(), Tensor):
                    yield value


@torch.no_grad()  # otherwise a scripted module's weights would be copied with a graph
def _copy(network: nn.Module) -> nn.Module:
    """A deep copy without wrappers; computed tensors that the network keeps lose their graph."""
    made: dict[int, object] = {}
    modules = list(network.modules())
    for leaf in tree_leaves([vars(module) for module in modules]):
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            made[id(leaf)] = leaf.detach().clone()
        elif isinstance(leaf, _SHARED):
            made[id(leaf)] = leaf
    for module in reversed(modules):  # inner ones first
        inner = _unwrapped(module)
        if inner is not module:
            made[id(module)] = copy.deepcopy(inner, made)
    return copy.deepcopy(network, made)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a wrapper; any other module itself."""
    if isinstance(module, _WRAPPERS):
        return module.module
    if type(module).__module__.startswith("torch._dynamo"):  # importing it takes seconds
        return getattr(module, "_orig_mod", module)
    return module


def _where(network: nn.Module) -> str:
    """The first attribute that cannot be copied, as part of a message; "" if none is found."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f" at {f'{name}.{key}'.lstrip('.')!r}, a {type(value).__name__}"
    return ""


def _settle_hooks(module: nn.Module) -> None:
    """Make weights plain that hooks compute: older weight and spectral norm, and pruning."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            _remove_loading_hooks(module)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            original = f"{hook._tensor_name}_orig"
            # prune.remove overwrites it, and another layer may share it
            setattr(module, original, nn.Parameter(module.get_parameter(original).clone()))
            prune.remove(module, hook._tensor_name)


def _remove_loading_hooks(module: nn.Module) -> None:
    """Let a module load plain weights again; torch leaves these hooks when removing the norm."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]


def _settle_parametrisations(module: nn.Module) -> None:
    """Make parametrised weights plain, unless their value changes from call to call.

    torch's own removal would also change the class, which the original module shares.
    """
    names = list(module.parametrizations)  # pyright: ignore[reportArgumentType]
    with torch.no_grad(), watched(module) as drawn:
        values, again = ({name: getattr(module, name).clone() for name in names} for _ in range(2))
        if drawn() or not all(torch.equal(values[name], again[name]) for name in names):
            return
    learned = {name for name in names if list(_originals(module, name).parameters(recurse=False))}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        if name in learned:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)


def _originals(module: nn.Module, name: str) -> nn.Module:
    """The module with the tensors from which a parametrised weight or buffer is computed."""
    return module.get_submodule(f"parametrizations.{name}")
