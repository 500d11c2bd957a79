"""What is known of some elements of each query: a noisy value, an interval, a set."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of P elements of each of B queries, in double.

    Args:
        value: Values with noise, shape (B, P).
        noise: Standard deviation of the noise, shape (B, P); 0 where there is no value.
        low, high: Bounds, both included, shape (B, P); ±∞ where there are none.
        allowed: The classes that an element may have, boolean, shape (B, P, K); all True where
            there is no set; None without any.
    """

    value: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor
    allowed: Tensor | None = None

    def select(self, index: Tensor | slice) -> "Known":
        """That of some of the queries."""
        allowed = None if self.allowed is None else self.allowed[index]
        value, noise, low, high = self.value, self.noise, self.low, self.high
        return Known(value[index], noise[index], low[index], high[index], allowed)

    def log_weight(self, values: Tensor) -> Tensor:
        """log p(what is known|t) at values t (…, K) of each element: shape (B, P, K).

        −∞ outside of the interval or the set, and the normal density of the noise within.

        Args:
            values: Shape (K,) or (B, P, K); whole numbers if there are sets.
        """
        inside = (values >= self.low[..., None]) & (values <= self.high[..., None])
        if self.allowed is not None:
            inside = inside & self._is_allowed(self.allowed, values.expand(inside.shape))
        noise = torch.where(self.noise > 0, self.noise, 1.0)
        log_density = log_normal(self.value[..., None] - values, noise[..., None])
        log_density = torch.where(self.noise[..., None] > 0, log_density, 0.0)
        return torch.where(inside, log_density, -torch.inf)

    @staticmethod
    def _is_allowed(allowed: Tensor, values: Tensor) -> Tensor:
        num = allowed.shape[-1]
        member = allowed.gather(-1, values.clamp(0, num - 1).long()) & (values < num)
        return member | allowed.all(-1, keepdim=True)


def log_normal(gap: Tensor, scale: Tensor) -> Tensor:
    """log N(gap; 0, scale²)."""
    return -0.5 * (gap / scale).square() - scale.log() - 0.9189385332046727  # ½ log 2π
