"""Quantiles of one-dimensional Gaussian mixtures, and their inverse, far into both tails.

F(x) = Σ_k w_k Φ((x − m_k) / s_k) is compared with Φ(ε) by the logarithm of the smaller tail, which
both keep to full precision. The search for x is not differentiated; by the implicit function
theorem, with f the density,

    dx = (φ(ε) dε − Σ_k Φ((x − m_k) / s_k) dw_k) / f(x),   Σ_k dw_k = 0.

Points have shape (N,), log-weights, which are normalised, (N, K), means and scales (K,).
Derivatives are those with respect to ε and the log-weights.

Source: the search is `rtsafe` in Press et al. (2007), Numerical Recipes, section 9.4. Differs in:
all points at once; Newton steps are those of the logarithm.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_STEPS = 100  # Newton and bisection together; six are usual
_ROUNDING = 4  # eps of log Φ by which F may be off: rounding allows no less
_SCORE_STEPS = 8  # of Newton, from the left on a concave function: exact to rounding in double
_UNDERFLOW = 0.9  # share of the |ε| at which Φ underflows; beyond it, tails are kept as logarithms
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class Components(NamedTuple):
    """The components of a mixture in one dimension."""

    log_weights: Tensor
    mean: Tensor
    scale: Tensor

    def gaps(self, x: Tensor) -> Tensor:
        """Distances from the means, in scales, (N, K)."""
        return (x.unsqueeze(-1) - self.mean) / self.scale

    def log_densities(self, x: Tensor) -> Tensor:
        """log of each weighted component's density at x, (N, K)."""
        return self.log_weights - 0.5 * self.gaps(x).square() - self.scale.log() - _LOG_ROOT

    def log_tails(self, x: Tensor, sign: Tensor) -> Tensor:
        """log of each weighted component's mass above x where sign is 1, below where it is −1."""
        return self.log_weights + torch.special.log_ndtr(-sign.unsqueeze(-1) * self.gaps(x))

    def tail_and_density(self, x: Tensor, sign: Tensor, far: bool) -> tuple[Tensor, Tensor]:
        """log of the mixture's tail, as above, and of its density, both (N,).

        Unless `far`, tails and densities that underflow are −inf; this takes a tenth of the time.
        """
        if far:
            return self.log_tails(x, sign).logsumexp(-1), self.log_densities(x).logsumexp(-1)
        gaps, weights = self.gaps(x), self.log_weights.exp()
        tails = weights * torch.erfc(sign.unsqueeze(-1) * gaps * math.sqrt(0.5))
        densities = weights * (-0.5 * gaps.square()).exp() / self.scale
        return tails.sum(-1).log() - math.log(2), densities.sum(-1).log() - _LOG_ROOT

    def select(self, index: Tensor) -> "Components":
        """The components for some of the points."""
        return Components(self.log_weights[index], self.mean, self.scale)


def quantile(noise: Tensor, mixture: Components) -> Tensor:
    """The x with F(x) = Φ(noise), differentiable once."""
    return _Quantile.apply(noise, *mixture)  # pyright: ignore[reportReturnType]


def normal_score(x: Tensor, mixture: Components) -> Tensor:
    """The ε with Φ(ε) = F(x)."""
    ones = torch.ones_like(x)
    below, above = (mixture.log_tails(x, sign).logsumexp(-1) for sign in (-ones, ones))
    tail = torch.minimum(below, above)
    # log Φ(ε) <= −ε²/2 − log 2 for ε <= 0, so the first ε is below the root
    score = -(-2 * (tail.detach() + math.log(2))).clamp_min(0.0).sqrt()
    for _ in range(_SCORE_STEPS):
        log_cdf = torch.special.log_ndtr(score)
        slope = (-0.5 * score.square() - _LOG_ROOT - log_cdf).exp()
        score = (score - (log_cdf - tail) / slope).clamp_max(0.0)
    return torch.where(below <= above, score, -score)


class _Quantile(torch.autograd.Function):
    """The quantile and its derivatives."""

    @staticmethod
    def forward(noise: Tensor, log_weights: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        mixture, distance = Components(log_weights, mean, scale), noise.abs()
        limit = _UNDERFLOW * math.sqrt(-2 * math.log(torch.finfo(noise.dtype).tiny))
        x = _searched(noise, mixture, far=False)
        far = (distance > limit).nonzero()[:, 0]
        if len(far):
            x[far] = _searched(noise[far], mixture.select(far), far=True)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_noise, of_weights = _slopes(*ctx.saved_tensors)
        return grads[0] * of_noise, grads[0].unsqueeze(-1) * of_weights, None, None

    @staticmethod
    def jvp(ctx: Any, *grads: Tensor | None) -> Tensor:
        of_noise, of_weights = _slopes(*ctx.saved_tensors)
        along = torch.zeros_like(of_noise) if grads[0] is None else grads[0] * of_noise
        return along if grads[1] is None else along + (grads[1] * of_weights).sum(-1)


def _slopes(
    noise: Tensor, log_weights: Tensor, mean: Tensor, scale: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """dx / dε, (N,), and dx / d log w, (N, K)."""
    mixture, sign = Components(log_weights, mean, scale), _sign(noise)
    log_density = mixture.log_densities(x).logsumexp(-1)
    of_noise = (-0.5 * noise.square() - _LOG_ROOT - log_density).exp()
    of_weights = (mixture.log_tails(x, sign) - log_density.unsqueeze(-1)).exp()
    return of_noise, sign.unsqueeze(-1) * of_weights


def _sign(noise: Tensor) -> Tensor:
    """1 where the upper tail is the smaller one, −1 elsewhere."""
    return torch.where(noise > 0, 1.0, -1.0).to(noise)


def _searched(noise: Tensor, mixture: Components, *, far: bool) -> Tensor:
    """The quantile, by Newton steps, or bisection where one leaves the bracket or hardly helps.

    The first bracket is that of the components' quantiles: the mixture's lies between them.
    """
    of_each = mixture.mean + mixture.scale * noise.unsqueeze(-1)
    low, high = of_each.amin(-1), of_each.amax(-1)
    found = torch.minimum(torch.maximum((mixture.log_weights.exp() * of_each).sum(-1), low), high)
    wanted, eps = torch.special.log_ndtr(-noise.abs()), torch.finfo(noise.dtype).eps
    active = torch.arange(len(noise), device=noise.device)
    x, before, sign = found, high - low, _sign(noise)
    for _ in range(_MOST_STEPS):
        tail, density = mixture.tail_and_density(x, sign, far)
        miss = tail - wanted
        beyond = (miss < 0) == (sign > 0)  # x is above the root
        low, high = torch.where(beyond, low, x), torch.where(beyond, x, high)
        newton = x + sign * miss * (tail - density).exp()
        good = (newton >= low) & (newton <= high) & ((newton - x).abs() <= 0.5 * before)
        settled = miss.abs() <= _ROUNDING * eps * wanted.abs().clamp_min(1.0)
        following = torch.where(settled, x, torch.where(good, newton, 0.5 * (low + high)))
        before, x = (following - x).abs(), following
        found[active] = x
        rest = before > eps * x.abs()
        if not rest.any():
            break
        if rest.sum() <= len(rest) // 2:
            rest = rest.nonzero()[:, 0]
            active, mixture = active[rest], mixture.select(rest)
            x, low, high, before = x[rest], low[rest], high[rest], before[rest]
            wanted, sign = wanted[rest], sign[rest]
    return found
