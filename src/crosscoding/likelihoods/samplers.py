"""Draws of gamma, Poisson and binomial variables, each as a function of one number of base noise.

These distributions have no cheap quantile function. The usual samplers reject proposals from one
shared stream of random numbers, so that each draw depends on the draws before it. Here, each number
of noise seeds its own stream of uniforms, and a draw depends only on its own parameters and noise.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from crosscoding.random import uniform

_MOST_PROPOSALS = 64  # each is accepted with probability > 0.6, so that all fail in 1e-25
_FEW = 10.0  # mean count below which summing probabilities is faster than rejection
_MOST_COUNTS = 110  # a mean of _FEW exceeds it with probability 1e-70
_MIXERS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # as signed 64-bit integers
_STEP = -0x61C8864680B583EB


def seeds(shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
    """Base noise in [0, 1), always in double: each number is 53 bits that seed a stream."""
    return uniform(shape, generator=generator, like=like.double())


def uniforms(noise: Tensor, index: int) -> Tensor:
    """Number `index` of the stream that each number of noise seeds: in (0, 1), double.

    Source: Steele, Lea and Flood (2014), SplitMix64. Differs in: the seed is mixed first, because
    neighbouring seeds would be neighbouring states.
    """
    state = _mixed((noise.double() * 2**53).long() + _STEP)
    step = ((index + 1) * _STEP + 2**63) % 2**64 - 2**63  # wraps around, as the tensor does
    return (_shifted(_mixed(state + step), 12).double() + 0.5) * 2.0**-52


def substream(noise: Tensor, index: int) -> Tensor:
    """Independent noise number `index`, for a draw that combines several variables."""
    return uniforms(noise, -1 - index)


def log_gamma(shape: Tensor, noise: Tensor) -> Tensor:
    """Logarithms of Gamma(shape, 1) variables, in double.

    Source: Marsaglia and Tsang (2000). Differs in: computed in logarithms, so that shapes near 0 do
    not underflow; no squeeze step, which only saves time.
    """
    shape, noise = torch.broadcast_tensors(shape.double(), noise)
    large = torch.where(shape < 1, shape + 1, shape)
    d = large - 1 / 3

    def propose(at: Tensor, stream: Tensor, round_: int) -> tuple[Tensor, Tensor]:
        x = torch.special.ndtri(uniforms(stream, 2 * round_))
        log_v = 3 * (x / (9 * d[at]).sqrt()).clamp_min(-1 + 1e-15).log1p()
        bound = 0.5 * x.square() + d[at] * (1 - log_v.exp() + log_v)
        accepted = uniforms(stream, 2 * round_ + 1).log() < bound
        return d[at].log() + log_v, accepted

    drawn = _first_accepted(propose, substream(noise, 0))
    boost = uniforms(substream(noise, 1), 0).log() / shape
    return torch.where(shape < 1, drawn + boost, drawn)


def poisson(rate: Tensor, noise: Tensor) -> Tensor:
    """Poisson variables with the given means, up to about 1e12, in double."""
    rate, noise = torch.broadcast_tensors(rate.double(), noise)
    few = rate < _FEW
    small = torch.where(few, rate, 1.0)
    by_sum = _by_summation((-small).exp(), lambda k: small / (k + 1), noise)
    large = torch.where(few, _FEW, rate)
    b = 0.931 + 2.53 * large.sqrt()
    a = -0.059 + 0.02483 * b
    log_height = (1.1239 + 1.1328 / (b - 3.4)).log()

    def log_prob(k: Tensor, at: Tensor) -> Tensor:
        return k * large[at].log() - large[at] - (k + 1).lgamma()

    by_rejection = _by_transformed_rejection(a, b, large + 0.43, log_height, log_prob, noise)
    return torch.where(few, by_sum, by_rejection)


def binomial(total: Tensor, probability: Tensor, noise: Tensor) -> Tensor:
    """Numbers of successes in `total` trials, in double."""
    total, p, noise = torch.broadcast_tensors(total.double(), probability.double(), noise)
    flipped = p > 0.5
    p = torch.where(flipped, 1 - p, p)
    few = total * p < _FEW
    q = torch.where(few, p, 0.5)
    odds = q / (1 - q)
    by_sum = _by_summation(
        (total * (-q).log1p()).exp(), lambda k: (total - k).clamp_min(0) / (k + 1) * odds, noise
    )
    n, p = torch.where(few, 2 * _FEW, total), torch.where(few, 0.5, p)
    deviation = (n * p * (1 - p)).sqrt()
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * p
    mode = ((n + 1) * p).floor()
    log_odds = p.log() - (-p).log1p()

    def log_ratio(k: Tensor, at: Tensor) -> Tensor:
        m, of = mode[at], n[at]
        ways = (m + 1).lgamma() + (of - m + 1).lgamma() - (k + 1).lgamma()
        inside = ways - (of - k.minimum(of) + 1).lgamma() + (k - m) * log_odds[at]
        return torch.where(k <= of, inside, -torch.inf)

    log_height = ((2.83 + 5.1 / b) * deviation).log()
    by_rejection = _by_transformed_rejection(a, b, n * p + 0.5, log_height, log_ratio, noise)
    count = torch.where(few, by_sum, by_rejection)
    return torch.where(flipped, total - count, count)


def _by_summation(first: Tensor, ratio: Callable[[int], Tensor], noise: Tensor) -> Tensor:
    """The quantile at noise of a distribution on 0, 1, … from ratios of its probabilities."""
    probability, below, count = first, first, torch.zeros_like(noise)
    for k in range(_MOST_COUNTS):
        above = noise >= below
        if not above.any():
            break
        count = torch.where(above, k + 1.0, count)
        probability = probability * ratio(k)
        below = below + probability
    return count


def _by_transformed_rejection(
    a: Tensor,
    b: Tensor,
    centre: Tensor,
    log_height: Tensor,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
) -> Tensor:
    """Transformed rejection of a count: floor((2 a / us + b) u + centre), us = ½ − |u|.

    Source: Hörmann (1993), algorithms PTRS and BTRS. Differs in: no squeeze steps, which only save
    time.
    """

    def propose(at: Tensor, stream: Tensor, round_: int) -> tuple[Tensor, Tensor]:
        u = uniforms(stream, 2 * round_) - 0.5
        us = 0.5 - u.abs()
        k = ((2 * a[at] / us + b[at]) * u + centre[at]).floor()
        height = log_height[at] - (a[at] / us.square() + b[at]).log()
        reached = uniforms(stream, 2 * round_ + 1).log() + height
        return k, (k >= 0) & (reached <= log_prob(k.clamp_min(0), at))

    return _first_accepted(propose, noise)


def _first_accepted(
    propose: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], noise: Tensor
) -> Tensor:
    """The first accepted proposal for each number of noise, in the shape of noise."""
    result = torch.zeros_like(noise)
    pending = torch.ones_like(noise, dtype=torch.bool)
    for round_ in range(_MOST_PROPOSALS):
        proposed, accepted = propose(pending, noise[pending], round_)
        result[pending] = proposed
        pending[pending.clone()] = ~accepted
        if not pending.any():
            break
    return result


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in _MIXERS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Bits shifted right as those of an unsigned integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
