"""Likelihoods whose log-probability is linear in what the data are: a bank by matrix products.

    log p(t|z) = a(z) t + b(z) + c(t)

The sum over observed elements of N parameter sets and B queries is then (N, E) @ (E, B), twice.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood


class Linear(Likelihood):
    """log p(t|z) = a t + b + c, with a and b from the parameters and c from the data."""

    num_kept = 2

    @abstractmethod
    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of each element, shape (*sample, E); in double where t can be large."""

    def base_measure(self, values: Tensor) -> Tensor | None:
        """c of each element, shape of values, or None where it is 0."""
        return None

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        slope, offset = self.slope_and_offset(params)
        values = values.to(slope.dtype)
        result, base = values * slope + offset, self.base_measure(values)
        return (result if base is None else result + base).to(params.dtype)

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = self.slope_and_offset(params)
        weight = mask.to(slope.dtype)
        data = values.to(slope.dtype) * weight
        result = torch.linalg.vecdot(slope, data) + torch.linalg.vecdot(offset, weight)
        return self._with_base(result, data, mask).to(params.dtype)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return self.slope_and_offset(params)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = kept
        weight = mask.to(slope.dtype)
        data = values.to(slope.dtype) * weight
        result = slope @ data.mT + offset @ weight.mT
        return self._with_base(result, data, mask).to(values.dtype)

    def _with_base(self, result: Tensor, data: Tensor, mask: Tensor) -> Tensor:
        base = self.base_measure(data)
        return result if base is None else result + torch.where(mask, base, 0.0).sum(-1)
