"""Likelihoods whose log-probability is linear in what the data are: a bank by matrix products.

    log p(t|z) = a(z) t + b(z) + c(t)

The sum over observed elements of N parameter sets and B queries is then (N, E) @ (E, B), twice.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.rounding import MAX_ROUNDING_ERROR

_ROWS = 256  # of a bank, that are worked out in double at once


class ExponentialFamily(Likelihood):
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
        result, base = terms(slope, offset, values), self.base_measure(values)
        return (result if base is None else result + base).to(params.dtype)

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = self.slope_and_offset(params)
        weight = mask.to(slope.dtype)
        data = values.to(slope.dtype) * weight
        result, coarse = _summed(slope, offset, data, weight)
        if result.isnan().any():  # of 0 · inf, where an element does not count
            slope, offset = torch.where(mask, slope, 0.0), torch.where(mask, offset, 0.0)
            result, coarse = _summed(slope, offset, data, weight)
        coarse = coarse | result.isnan()  # of an infinite slope
        if coarse.any():
            one_by_one = torch.where(mask, terms(slope, offset, data), 0.0).sum(-1)
            result = torch.where(coarse, one_by_one, result)
        return self._with_base(result, data, mask).to(params.dtype)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return self.slope_and_offset(params)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = kept
        weight = mask.to(slope.dtype)
        data = values.to(slope.dtype) * weight
        offsets = offset @ weight.mT
        result = slope @ data.mT + offsets
        coarse = result.isnan() | _is_coarse(offsets)
        for rows in coarse.any(-1).nonzero()[:, 0].split(_ROWS):
            wide = (part.double() for part in (slope[rows], offset[rows], data, weight))
            again = _products(*wide).to(result.dtype)
            result[rows] = torch.where(coarse[rows], again, result[rows])
        return self._with_base(result, data, mask).to(values.dtype)

    def _with_base(self, result: Tensor, data: Tensor, mask: Tensor) -> Tensor:
        base = self.base_measure(data)
        return result if base is None else result + torch.where(mask, base, 0.0).sum(-1)


def _summed(slope: Tensor, offset: Tensor, data: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ a t + Σ b, and where the two are so large that their sum has lost its digits."""
    offsets = torch.linalg.vecdot(offset, weight)
    return torch.linalg.vecdot(slope, data) + offsets, _is_coarse(offsets)


def _is_coarse(sums: Tensor) -> Tensor:
    """Whether the last digit of sums is more than 0.05 nats; what is infinite has none."""
    return (torch.finfo(sums.dtype).eps * sums.abs() > MAX_ROUNDING_ERROR) & sums.isfinite()


def terms(slope: Tensor, offset: Tensor, values: Tensor) -> Tensor:
    """a t + b of each element, also where a is infinite.

    Then one value alone is possible: 0 where a = −inf, as of a log rate, and 1 where a = inf, as of
    a logit.
    """
    result = values * slope + offset
    if not result.isnan().any():
        return result
    result = torch.where(slope == -torch.inf, _certain(values == 0, offset), result)
    sure = (slope == torch.inf) & (offset == -torch.inf)
    return torch.where(sure, _certain(values == 1, torch.zeros_like(offset)), result)


def _certain(possible: Tensor, log_prob: Tensor) -> Tensor:
    return torch.where(possible, log_prob, -torch.inf)


def _products(slope: Tensor, offset: Tensor, data: Tensor, weight: Tensor) -> Tensor:
    """Σ of `terms` by matrix products, where what does not count may be infinite or NaN."""
    low, high = slope == -torch.inf, (slope == torch.inf) & (offset == -torch.inf)
    never = (offset == -torch.inf) & ~high
    unknown = slope.isnan() | offset.isnan() | (offset == torch.inf)
    unknown = unknown | (slope == torch.inf) & offset.isfinite()
    result = torch.where(slope.isfinite(), slope, 0.0) @ data.mT
    result = result + torch.where(offset.isfinite(), offset, 0.0) @ weight.mT
    num_impossible = low.to(weight) @ (weight * (data != 0)).mT
    num_impossible = num_impossible + high.to(weight) @ (weight * (data != 1)).mT
    num_impossible = num_impossible + never.to(weight) @ weight.mT
    result = result.masked_fill(num_impossible > 0, -torch.inf)
    return result.masked_fill(unknown.to(weight) @ weight.mT > 0, torch.nan)
