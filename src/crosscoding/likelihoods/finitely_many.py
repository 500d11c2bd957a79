"""Likelihoods of finitely many values, each of which can be weighed by what is known."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.laws import FiniteLaw, Known


class FinitelyMany(Likelihood):
    """A likelihood of few enough values to list them all."""

    uncertain: ClassVar[tuple[str, ...]] = ("interval", "noise", "set")

    @abstractmethod
    def all_values(self, like: Tensor) -> Tensor:
        """The values in order, shape (K,), on the device of `like`, in double."""

    def law(self, params: Tensor, known: Known) -> FiniteLaw:
        values = self.all_values(params)
        return FiniteLaw(values, self.log_probs_at(params, values), known)

    def possible(self, known: Known) -> Tensor:
        weights = known.log_weight(self.all_values(known.low))
        return (weights > -torch.inf).any(-1)
