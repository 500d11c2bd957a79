"""The last linear layer of a decoder, split off so that only some of its rows need to be run.

    decoder(z) = f(W h(z) + b)      h: the trunk, f: elementwise, such as a sigmoid

Row e of W and b then gives element e of the datum, so a query that observes few elements needs few
rows. The layer is found by tracing the decoder symbolically; one that cannot be traced has no head.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosscoding.covariates import Covariates

_TRACING = threading.RLock()
_ELEMENTWISE_MODULES = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.Softplus, nn.Identity)
_ELEMENTWISE_FUNCTIONS = (torch.sigmoid, torch.tanh, torch.relu, F.sigmoid, F.tanh, F.relu)
_ELEMENTWISE_METHODS = ("sigmoid", "tanh", "relu", "contiguous")
_RESHAPING_MODULES = (nn.Flatten, nn.Unflatten)
_RESHAPING_METHODS = ("view", "reshape", "flatten", "unflatten")
_RESHAPING_FUNCTIONS = (torch.flatten, torch.reshape, torch.unflatten)


@dataclass(frozen=True, eq=False)
class Head:
    """A decoder in two parts: h = trunk(z), (N, H), then activation(h Wᵀ + bias), (N, E).

    Args:
        trunk: Everything before the last linear layer; it takes what the decoder takes.
        weight: W, shape (E, H).
        bias: b, shape (E,).
        activations: f, applied in turn.
    """

    trunk: nn.Module
    weight: Tensor
    bias: Tensor
    activations: tuple[nn.Module, ...]

    def activation(self, output: Tensor) -> Tensor:
        """f of the linear layer's output, elementwise."""
        for module in self.activations:
            output = module(output)
        return output


def find_head(
    decoder: nn.Module, probes: Tensor, output: Tensor, *given: Covariates
) -> Head | None:
    """The trunk and last layer of a decoder, or None if they cannot be told apart.

    Args:
        decoder: In eval mode.
        probes: Some z, shape (N, latent).
        output: The decoder's output for them, (N, *data), which the two parts must reproduce.
        given: Their covariates, if the decoder takes any.
    """
    try:
        head = _traced(decoder)
    except Exception:  # tracing a user's code, or building the trunk, may raise anything
        return None
    if head is None or head.weight.shape[0] != output[0].numel():
        return None
    try:
        with torch.no_grad():
            again = head.activation(F.linear(head.trunk(probes, *given), head.weight, head.bias))
    except (RuntimeError, TypeError, ValueError):
        return None
    same = again.shape == (len(output), len(head.weight))
    return head if same and torch.allclose(again, output.flatten(1), 1e-4, 1e-5, True) else None


def _traced(decoder: nn.Module) -> Head | None:
    from torch import fx  # only models need it, so importing the package does not load it

    graph = _graph(decoder)
    (end,) = [node for node in graph.nodes if node.op == "output"]
    node, activations = end.args[0], []
    while isinstance(node, fx.Node) and len(node.users) == 1:
        target = (
            decoder.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        )
        if isinstance(target, nn.Linear):
            trunk = _before(decoder, graph, node)
            bias = target.bias if target.bias is not None else target.weight.new_zeros(())
            return Head(
                trunk, target.weight, bias.expand(len(target.weight)), tuple(reversed(activations))
            )
        if not _keeps_order(node.op, target):
            return None
        if (applied := _as_module(node.op, target)) is not None:
            activations.append(applied)
        node = node.args[0] if node.args else None
    return None


def _graph(decoder: nn.Module) -> Any:
    """The decoder's code as a graph.

    While tracing, torch patches `nn.Module` for all threads. So only one thread traces at a time,
    and modules that other threads call meanwhile run as usual.
    """
    from torch import fx

    own_thread = threading.get_ident()

    class Tracer(fx.Tracer):
        def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
            if threading.get_ident() != own_thread:
                return forward(*args, **kwargs)
            return super().call_module(m, forward, args, kwargs)

    with _TRACING:
        return Tracer().trace(decoder)


def _keeps_order(op: str, target: object) -> bool:
    """Whether a step is elementwise or only reshapes."""
    if op == "call_module":
        return isinstance(target, _ELEMENTWISE_MODULES + _RESHAPING_MODULES)
    if op == "call_function":
        return target in _ELEMENTWISE_FUNCTIONS + _RESHAPING_FUNCTIONS
    return op == "call_method" and target in _ELEMENTWISE_METHODS + _RESHAPING_METHODS


def _as_module(op: str, target: object) -> nn.Module | None:
    """An element-wise step as a module; None for one that only reshapes."""
    if isinstance(target, nn.Module):
        return None if isinstance(target, _RESHAPING_MODULES) else target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    named = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "relu": nn.ReLU()}
    return named.get(str(name))


def _before(decoder: nn.Module, graph: Any, node: Any) -> nn.Module:
    """The decoder up to the input of one node."""
    from torch import fx

    shortened = fx.Graph()
    copies: dict[Any, Any] = {}
    for other in graph.nodes:
        if other is node:
            break
        copies[other] = shortened.node_copy(other, lambda n: copies[n])
        if other.op == "placeholder" and len(copies) == 1:  # a trunk may overwrite z
            copies[other] = shortened.call_method("clone", (copies[other],))
    shortened.output(copies[node.args[0]])
    return fx.GraphModule(decoder, shortened).eval()
