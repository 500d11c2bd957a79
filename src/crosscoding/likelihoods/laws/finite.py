"""Laws on finitely many values: classes, zeros and ones, and counts within bounds."""

import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.known import Known


class FiniteLaw(Law):
    """p(t = v|z) of each of K values, weighted by what is known of t.

    Args:
        values: The values, in order, shape (K,) or (B, P, K).
        log_probs: log p of each, shape (*sample, B, P, K).
        known: What is known.
    """

    def __init__(self, values: Tensor, log_probs: Tensor, known: Known) -> None:
        self._values = values.double()
        weight = known.log_weight(self._values)
        # −∞ is kept out of the sum, where its gradient would be NaN
        possible = (weight > -torch.inf) & (log_probs > -torch.inf)
        safe = torch.where(possible, log_probs.double() + torch.where(possible, weight, 0.0), -1e30)
        self._log_terms = safe
        total = safe.logsumexp(-1)
        self.log_mass = torch.where(possible.any(-1), total, -torch.inf)

    @property
    def probabilities(self) -> Tensor:
        """p(t = v|z, known) of each value, shape (*sample, B, P, K)."""
        return self._log_terms.softmax(-1)

    def mean(self) -> Tensor:
        return (self.probabilities * self._values).sum(-1)

    def variance(self) -> Tensor:
        gaps = self._values - self.mean()[..., None]
        return (self.probabilities * gaps.square()).sum(-1)

    def draw_index(self, uniforms: Tensor) -> Tensor:
        """Which of the values is drawn, integers of the shape of log_mass."""
        cumulative = self.probabilities.cumsum(-1)
        total = cumulative[..., -1:]
        index = (uniforms[..., None] * total >= cumulative).sum(-1)
        return index.minimum(_last(self.probabilities > 0))

    def draw(self, uniforms: Tensor) -> Tensor:
        index = self.draw_index(uniforms)
        values = self._values.expand(self._log_terms.shape)
        return values.gather(-1, index[..., None])[..., 0]


def _last(found: Tensor) -> Tensor:
    """The last index at which `found` is true, along the last dimension."""
    return found.shape[-1] - 1 - found.flip(-1).to(torch.int8).argmax(-1)
