"""A neural spline flow: coupling layers of rational-quadratic splines, then an affine map."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.bijections import affine, affine_inverse, spline, spline_inverse
from crosscoding.crosscoders.base import Map, Params, affine_start, small_normals


@dataclass(frozen=True)
class Spline(Map):
    """z = L f_k(… f_1(ε)) + b, each f_i an element-wise spline of one part of its input.

    The other part passes unchanged and sets the splines through a network of one tanh layer. The
    parts swap from layer to layer. In one dimension the splines depend on nothing.

    Args:
        layers: Number k of coupling layers, ≥ 1; 2 or more move all of z.
        bins: Bins of each spline, ≥ 2.
        hidden: Width of each network, ≥ 1.

    Source: Durkan et al. (2019), coupling flow. Differs in: an affine map only at the end; small
    networks, because each query has its own; alternating parts instead of random permutations.
    """

    layers: int = 4
    bins: int = 8
    hidden: int = 16

    def __post_init__(self) -> None:
        if self.layers < 1 or self.bins < 2 or self.hidden < 1:
            raise ValueError(
                "expected layers >= 1, bins >= 2 and hidden >= 1, got "
                f"{self.layers}, {self.bins} and {self.hidden}"
            )

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        num_fixed = mean.shape[-1] // 2
        num_outputs = (mean.shape[-1] - num_fixed) * (3 * self.bins - 1)
        shapes = {
            "weight_in": ((self.layers, self.hidden, num_fixed), max(num_fixed, 1) ** -0.5),
            "bias_in": ((self.layers, self.hidden), 1.0),
            "weight_out": ((self.layers, num_outputs, self.hidden), 0.1 * self.hidden**-0.5),
            "bias_out": ((self.layers, num_outputs), 0.1),
        }
        random = small_normals(shapes, generator=generator, like=mean)
        return random | affine_start(mean, scale)

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = eps, eps.new_zeros(eps.shape[:-1])
        for layer in range(self.layers):
            h, step = self._couple(params, layer, h, inverse=False)
            ladj = ladj + step
        z, step = affine(h, params["shift"], params["log_diagonal"], params["lower"])
        return z, ladj + step

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = affine_inverse(z, params["shift"], params["log_diagonal"], params["lower"])
        for layer in reversed(range(self.layers)):
            h, step = self._couple(params, layer, h, inverse=True)
            ladj = ladj + step
        return h, ladj

    def _couple(
        self, params: Params, layer: int, h: Tensor, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """One layer, or its inverse, and the layer's ladj."""
        num_fixed = h.shape[-1] // 2
        last_moves = layer % 2 == 0
        cut = num_fixed if last_moves else h.shape[-1] - num_fixed
        first, last = h[..., :cut], h[..., cut:]
        fixed, moved = (first, last) if last_moves else (last, first)
        widths, heights, slopes = self._splines(params, layer, fixed)
        function = spline_inverse if inverse else spline
        moved, ladj = function(moved, widths, heights, slopes)
        parts = (fixed, moved) if last_moves else (moved, fixed)
        return torch.cat(parts, dim=-1), ladj.sum(-1)

    def _splines(self, params: Params, layer: int, fixed: Tensor) -> tuple[Tensor, ...]:
        """Free parameters of the splines, each (*sample, B, moved, …), from the layer's network."""
        weight, bias = params["weight_in"][:, layer], params["bias_in"][:, layer]
        h = (torch.einsum("...bi,boi->...bo", fixed, weight) + bias).tanh()
        weight, bias = params["weight_out"][:, layer], params["bias_out"][:, layer]
        outputs = torch.einsum("...bi,boi->...bo", h, weight) + bias
        outputs = outputs.unflatten(-1, (-1, 3 * self.bins - 1))
        return outputs.split([self.bins, self.bins, self.bins - 1], dim=-1)
