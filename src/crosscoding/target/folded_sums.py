"""Known sums of a decoder whose last layer is linear: the layer and the sums in one product.

    L⁻¹ A μ(z) = (L⁻¹ A W) h(z) + L⁻¹ A b

W and b are the last layer's weight and bias, and L Lᵀ is the covariance of the sums given z. So m
sums of D elements take m rows of H numbers, instead of the layer's D rows and then m products with
D numbers. Elements known exactly are rows of their own, divided by their standard deviations.
Everything together is one observation with unit noise.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from crosscoding.likelihoods import Gaussian
from crosscoding.model.last_layer import Head
from crosscoding.model.vae import VAE
from crosscoding.target.known_sums import KnownSums
from crosscoding.target.observed_likelihood import ObservedRows
from crosscoding.target.partial_evidence import PartialEvidence

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class FoldedSums(ObservedRows):
    """log p(x|z) of B queries with the same sums and the same elements known exactly.

    Args:
        vae: The model, with a linear last layer.
        values: x, shape (B, D).
        places: Which elements are known exactly, (E,).
        scale: σ of all elements, in double, shape (D,).
        sums: The sums, with one operator for all queries.
    """

    def __init__(
        self, vae: VAE, values: Tensor, places: Tensor, scale: Tensor, sums: KnownSums
    ) -> None:
        assert vae.head is not None
        assert sums.root is not None
        assert sums.half_log_det is not None
        assert sums.target is not None
        weight, bias = vae.head.weight.double(), vae.head.bias.double()
        own, summed = scale[places], sums.outputs[0]
        white = torch.linalg.solve_triangular(sums.root[0], sums.sums.operator[0], upper=False)
        white = torch.where(sums.sums.summed[0], white, 0.0)
        rows = torch.cat([weight[places] / own[:, None], white @ weight[summed]])
        shift = torch.cat([bias[places] / own, white @ bias[summed]])
        head = Head(vae.head.trunk, rows.to(values), shift.to(values), ())
        wanted = torch.cat([values[:, places] / own.to(values), sums.target], 1)
        super().__init__(_with_unit_noise(vae, head), head, wanted, torch.ones_like(wanted) > 0)
        first = sums.sums.elements[sums.sums.summed[0]][:1]
        self._named = torch.cat([places, first.expand(len(white))])
        num_more = len(white) - sums.sums.num_rows[0]
        offset = num_more * _HALF_LOG_2PI - sums.half_log_det[0] - own.log().sum()
        self._offset = offset.to(values)

    @classmethod
    def where_possible(
        cls, vae: VAE, values: Tensor, mask: Tensor, partial: PartialEvidence | None
    ) -> "FoldedSums | None":
        """Made if queries share their operator and mask, and elements are normal with fixed σ."""
        likelihood, sums = vae.flat_likelihood, partial and partial.sums
        if sums is None or sums.whitened is None or sums.bounded is not None or not len(values):
            return None
        linear = vae.head is not None and not vae.head.activations
        if partial is None or partial.elements or not linear:
            return None
        if not isinstance(likelihood, Gaussian) or likelihood.scale is None:
            return None
        shared = len(sums.whitened) == 1 and bool((mask == mask[:1]).all())
        places = mask[0].nonzero()[:, 0]
        if not shared or len(places) + sums.whitened.shape[1] > vae.data_size:
            return None
        scale = torch.as_tensor(likelihood.scale, dtype=torch.double, device=values.device)
        return cls(vae, values, places, scale.expand(vae.data_size), sums)

    def element(self, place: Tensor) -> Tensor:
        return self._named[place]

    def log_prob(self, params: Tensor) -> Tensor:
        return super().log_prob(params) + self._offset


def _with_unit_noise(vae: VAE, head: Head) -> VAE:
    """A model whose data are the rows of this last layer, each with standard normal noise."""
    size = torch.Size([len(head.weight)])
    chosen: Any = copy.copy(vae)
    chosen.data_shape, chosen._params_shape, chosen.head = size, size, head
    chosen._flat_likelihood = Gaussian(1.0).for_data(size, head.weight)
    chosen.kept = {"cost": vae.cost}
    return chosen
