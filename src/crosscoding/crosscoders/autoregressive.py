"""An inverse autoregressive flow: each layer gets all of z from ε by one masked network."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.bijections import affine, affine_inverse
from crosscoding.crosscoders.base import Map, Params, affine_start, small_normals

# Per layer; without a bound, one large step makes z infinite. Half leaves 4 % less ESS on four
# queries of mnist-2d, twice 1 % more.
_MAX_LOG_SCALE = 2.0


@dataclass(frozen=True)
class InverseAutoregressive(Map):
    """z = L f_k(… f_1(ε)) + b, each f(ε)_i = σ_i(ε_<i) ε_i + μ_i(ε_<i).

    Layers alternate between the order of the elements and its reverse. A draw costs one evaluation
    of a network per layer; log_prob costs as many per layer as z has elements.

    Args:
        hidden: Width of each layer's network, which has one tanh layer, ≥ 1.
        layers: Number k of autoregressive layers, ≥ 1.

    Source: Kingma et al. (2016), eq. 9–11, with the masks of Germain et al. (2015). Differs in:
    log σ is bounded by ±2 per layer, where the paper has a sigmoid gate; the affine map at the end.
    """

    hidden: int = 32
    layers: int = 2

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(
                f"expected hidden >= 1 and layers >= 1, got {self.hidden} and {self.layers}"
            )

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        dim, layers, hidden = mean.shape[-1], self.layers, self.hidden
        shapes = {
            "weight_in": ((layers, hidden, dim), dim**-0.5),
            "bias_in": ((layers, hidden), 1.0),
            "weight_out": ((layers, 2, dim, hidden), 0.1 * hidden**-0.5),
            "bias_out": ((layers, 2, dim), 0.01),
        }
        random = small_normals(shapes, generator=generator, like=mean)
        return random | affine_start(mean, scale)

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = eps, eps.new_zeros(eps.shape[:-1])
        for layer in range(self.layers):
            shift, log_scale = self._network(params, layer, h)
            h, ladj = log_scale.exp() * h + shift, ladj + log_scale.sum(-1)
        z, step = affine(h, params["shift"], params["log_diagonal"], params["lower"])
        return z, ladj + step

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = affine_inverse(z, params["shift"], params["log_diagonal"], params["lower"])
        for layer in reversed(range(self.layers)):
            h, step = self._inverse_layer(params, layer, h)
            ladj = ladj + step
        return h, ladj

    def _inverse_layer(self, params: Params, layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """ε of one layer, element by element: each depends only on those before it."""
        eps, log_scale = torch.zeros_like(z), z
        for position in range(1, z.shape[-1] + 1):
            shift, log_scale = self._network(params, layer, eps)
            is_current = _positions(z, layer) == position
            eps = torch.where(is_current, (z - shift) * (-log_scale).exp(), eps)
        return eps, log_scale.sum(-1)  # right for all elements: the last one sets no scale

    def _network(self, params: Params, layer: int, eps: Tensor) -> tuple[Tensor, Tensor]:
        """μ(ε) and log σ(ε); element i of each is a function only of the ε before i."""
        positions = _positions(eps, layer)
        num_before = torch.arange(self.hidden, device=eps.device) % max(eps.shape[-1] - 1, 1) + 1
        weight = params["weight_in"][:, layer] * (num_before[:, None] >= positions)
        h = (torch.einsum("...bi,boi->...bo", eps, weight) + params["bias_in"][:, layer]).tanh()
        weight = params["weight_out"][:, layer] * (positions[:, None] > num_before)
        outputs = torch.einsum("...bi,btoi->...bto", h, weight) + params["bias_out"][:, layer]
        shift, free = outputs.unbind(-2)
        return shift, _MAX_LOG_SCALE * (free / _MAX_LOG_SCALE).tanh()


def _positions(like: Tensor, layer: int) -> Tensor:
    """The position of each element in the layer's order, starting at 1, shape (dim,)."""
    positions = torch.arange(1, like.shape[-1] + 1, device=like.device)
    return positions if layer % 2 == 0 else positions.flip(0)
