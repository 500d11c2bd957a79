"""Counts between two bounds, by sums with fewer and fewer terms away from the bound.

A sum over a tail starts at the bound and takes 32 counts one by one, then blocks of counts whose
width grows with the distance from the bound, each represented by its middle. Probabilities of a
tail fall smoothly, so the sum is accurate to 1e-4 and needs a few hundred terms however long the
tail is.

A law of counts must have one mode.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.known import Known
from crosscoding.likelihoods.samplers import substream

_ONE_BY_ONE = 32  # counts; afterwards a block is as wide as 1 / _ONE_BY_ONE of its distance
_REACH = 40.0  # of a tail, in the larger of standard deviation and variance over mean
_MOST_REACH = 1e12
_NOISE_REACH = 12.0  # standard deviations of noise, beyond which its density is below e^(−72)
_MOST_ROUNDS = 128  # of rejection, each accepted with probability > 0.3: all fail in 1e-20


class CountLaw(Law):
    """p(t|z) of counts t between low and high.

    Args:
        log_prob: log p of counts k (*sample, B, P, N), in that shape; smooth in k.
        draw: A draw of t without bounds from uniform noise (n,), for the n elements of a boolean
            mask (*sample, B, P).
        mean, variance: Of t without bounds, shape (*sample, B, P).
        low, high: Bounds, shape (B, P), low ≤ high.
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor], Tensor],
        draw: Callable[[Tensor, Tensor], Tensor],
        mean: Tensor,
        variance: Tensor,
        low: Tensor,
        high: Tensor,
    ) -> None:
        self._log_prob, self._draw = log_prob, draw
        self._mean, self._variance = mean.detach().double(), variance.detach().double()
        low, high = low.ceil().clamp_min(0).expand_as(mean), high.floor().expand_as(mean)
        inside = (self._mean >= low) & (self._mean <= high)
        close = high - low <= (2 * self._variance.sqrt()).clamp_min(_ONE_BY_ONE - 1)
        self._by_tails = inside & ~close
        down = self._mean > high
        start, step = torch.where(down, high, low), torch.where(down, -1.0, 1.0)
        self._direct = _Tail(self, start, step, high - low + 1, ~self._by_tails)
        tails = [
            _Tail(self, low - 1, torch.full_like(step, -1.0), low, self._by_tails),
            _Tail(self, high + 1, torch.ones_like(step), self._beyond(high), self._by_tails),
        ]
        self._tails = tails if self._by_tails.any() else []
        outside = sum((tail.mass for tail in self._tails), torch.zeros_like(self._mean))
        within = (-torch.where(self._by_tails, outside, 0.0)).log1p()
        self.log_mass = torch.where(self._by_tails, within, self._direct.log_mass)

    def terms(self, counts: Tensor) -> Tensor:
        """log p of counts (*sample, B, P, N)."""
        return self._log_prob(counts).double()

    def reach(self) -> float:
        """The distance from a bound after which no tail has any mass to speak of."""
        size = self._variance.sqrt().maximum(self._variance / self._mean.clamp_min(1e-9))
        finite = size[size.isfinite()]
        most = float(finite.max()) if finite.numel() else 1.0
        return min(_REACH * (most + 1), _MOST_REACH)

    @staticmethod
    def _beyond(high: Tensor) -> Tensor:
        return torch.where(high.isinf(), 0.0, torch.inf)

    def mean(self) -> Tensor:
        return self._moments()[0]

    def variance(self) -> Tensor:
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, around the mean without bounds."""
        mean, variance = self._direct.moments()
        if not self._tails:
            return mean, variance
        sums = [tail.sums(self._mean) for tail in self._tails]
        first = -sum(part[0] for part in sums) / self.log_mass.exp()
        second = (self._variance - sum(part[1] for part in sums)) / self.log_mass.exp()
        return (
            torch.where(self._by_tails, self._mean + first, mean),
            torch.where(self._by_tails, (second - first.square()).clamp_min(0), variance),
        )

    def draw(self, uniforms: Tensor) -> Tensor:
        """Draw by blocks where the law is a tail, by rejection elsewhere."""
        direct = self._direct.draw(uniforms)
        pending, result = self._by_tails.clone(), direct
        for round_ in range(_MOST_ROUNDS):
            if not pending.any():
                break
            noise = substream(uniforms.expand_as(direct)[pending], round_)
            result[pending] = self._draw(noise, pending).double()
            pending = self._by_tails & ~self._within(result)
        return result

    def _within(self, counts: Tensor) -> Tensor:
        below, above = self._tails
        return (counts > below.start) & (counts < above.start)


class _Tail:
    """A sum of p(t|z) from a count on, up or down.

    Args:
        law: Gives log p.
        start: The first count, shape (*sample, B, P).
        step: 1 or −1.
        num: How many counts, at most.
        wanted: Where the sum is needed. If it is needed nowhere, hardly anything is computed.
    """

    def __init__(
        self, law: CountLaw, start: Tensor, step: Tensor, num: Tensor, wanted: Tensor
    ) -> None:
        self._law, self.start, self._step = law, start, step
        num = torch.where(wanted, num, 0.0)
        finite = torch.where(num > 0, start, 0.0)  # a bound may be infinite
        most = min(float(num.max()) if num.numel() else 0.0, law.reach())
        first, width = _blocks(most, start)
        self._width = (num[..., None] - first).minimum(width).clamp_min(0)
        middle = first + 0.5 * (self._width - 1).clamp_min(0)
        self._counts = (finite[..., None] + step[..., None] * middle).clamp_min(0)
        empty = self._width == 0
        counts = torch.where(empty, 0.0, self._counts)
        terms = law.terms(counts) + torch.where(empty, 1.0, self._width).log()
        self._terms = torch.where(empty | (terms == -torch.inf), -1e30, terms)
        self._empty = (self._terms <= -1e30).all(-1)
        self.log_mass = torch.where(self._empty, -torch.inf, self._terms.logsumexp(-1))
        self.mass = torch.where(self._empty, 0.0, self._terms.logsumexp(-1).exp())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the counts of the tail."""
        shares = self._terms.softmax(-1)
        mean = (shares * self._counts).sum(-1)
        squares = (self._counts - mean[..., None]).square() + self._within_block()
        return mean, (shares * squares).sum(-1)

    def sums(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Σ p (k − centre) and Σ p (k − centre)²."""
        probabilities = torch.where(self._empty[..., None], 0.0, self._terms.exp())
        gaps = self._counts - centre[..., None]
        squares = gaps.square() + self._within_block()
        return (probabilities * gaps).sum(-1), (probabilities * squares).sum(-1)

    def _within_block(self) -> Tensor:
        return (self._width.square() - 1).clamp_min(0) / 12

    def draw(self, uniforms: Tensor) -> Tensor:
        """Draw a block by its mass, and a count within it by the slope of log p there."""
        cumulative = self._terms.softmax(-1).cumsum(-1)
        quantile = (uniforms * cumulative[..., -1])[..., None]
        index = (quantile >= cumulative).sum(-1, keepdim=True).clamp_max(cumulative.shape[-1] - 1)
        before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, index)
        share = ((quantile - before) / (cumulative.gather(-1, index) - before)).clamp(0, 1 - 1e-12)
        middle, width = self._counts.gather(-1, index), self._width.gather(-1, index)
        step = self._step[..., None]
        ends = [(middle + side * step).clamp_min(0) for side in (0.5, -0.5)]
        falls = (self._law.terms(ends[1]) - self._law.terms(ends[0])).nan_to_num(0.0, 0.0, 0.0)
        total = (falls * width).clamp(1e-9, 500)
        place = -(share * (-total).expm1()).log1p() / total  # 0 to 1, away from the start
        offset = (place * width).floor().minimum(width - 1) - 0.5 * (width - 1)
        return (middle + step * offset).round().clamp_min(0)[..., 0]


def _blocks(reach: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """First offsets and widths of the blocks that cover offsets 0 to reach, at least one."""
    first, width, at = [], [], 0
    while at <= reach or not first:
        size = max(at // _ONE_BY_ONE, 1)
        first.append(float(at))
        width.append(float(size))
        at += size
    return (
        torch.tensor(first, dtype=torch.double, device=like.device),
        torch.tensor(width, dtype=torch.double, device=like.device),
    )


def _classes_of(known: Known) -> Tensor:
    """The counts that sets can hold, (K,)."""
    assert known.allowed is not None
    return torch.arange(known.allowed.shape[-1], dtype=torch.double, device=known.low.device)


def counts_near(known: Known) -> Tensor:
    """All counts that noisy values or sets leave possible for each element, (B, P, K)."""
    reach = torch.where(known.noise > 0, _NOISE_REACH * known.noise, torch.inf)
    low = known.low.maximum(known.value - reach).ceil().clamp_min(0)
    high = known.high.minimum(known.value + reach).floor()
    if known.allowed is not None:
        last = known.allowed.shape[-1] - 1.0
        high = torch.where(known.allowed.all(-1), high, high.clamp_max(last))
    high = torch.where(high.isinf(), low, high.maximum(low))  # where nothing is known
    num = int((high - low).max()) + 1 if low.numel() else 1
    offsets = torch.arange(num, dtype=torch.double, device=low.device)
    return low[..., None] + offsets


def some_count_agrees(known: Known) -> Tensor:
    """Whether some count agrees with what is known of each element, boolean (B, P)."""
    low, high = known.low.ceil().clamp_min(0), known.high.floor()
    if known.allowed is None:
        return low <= high
    has_set = ~known.allowed.all(-1)
    members = known.allowed & (known.log_weight(_classes_of(known)) > -torch.inf)
    return (low <= high) & (members.any(-1) | ~has_set)
