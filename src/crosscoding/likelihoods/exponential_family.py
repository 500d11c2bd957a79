"""Natural exponential families: likelihoods whose log-probability is linear in the data.

    log p(t|z) = a(z) t + b(z) + c(t)

For N parameter sets and B queries, the sums over observed elements are then two matrix products,
(N, E) @ (E, B).
"""

from abc import abstractmethod

import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.rounding import MAX_ROUNDING_ERROR

_ROWS = 256  # rows of a bank that are computed in double at once


class ExponentialFamily(Likelihood):
    """log p(t|z) = a t + b + c, with a and b from the parameters and c from the data."""

    num_kept = 2

    @abstractmethod
    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of each element, shape (*sample, E); in double if t can be large."""

    def base_measure(self, values: Tensor) -> Tensor | None:
        """c of each element, shape of values; None if it is 0."""
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
        if result.isnan().any():  # from 0 · inf at elements outside the mask
            slope, offset = torch.where(mask, slope, 0.0), torch.where(mask, offset, 0.0)
            result, coarse = _summed(slope, offset, data, weight)
        coarse = coarse | result.isnan()  # from an infinite slope
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
    """Σ a t + Σ b, and where the two are so large that their sum loses its digits."""
    offsets = torch.linalg.vecdot(offset, weight)
    return torch.linalg.vecdot(slope, data) + offsets, _is_coarse(offsets)


def _is_coarse(sums: Tensor) -> Tensor:
    """Whether one unit in the last place of a finite sum is more than 0.05 nats."""
    return (torch.finfo(sums.dtype).eps * sums.abs() > MAX_ROUNDING_ERROR) & sums.isfinite()


def terms(slope: Tensor, offset: Tensor, values: Tensor) -> Tensor:
    """a t + b of each element, even if a is infinite.

    Then only one value is possible: 0 for a = −inf, such as a log rate, and 1 for a = inf, such as
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
    """Σ of `terms` by matrix products; elements outside the mask may be infinite or NaN."""
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
