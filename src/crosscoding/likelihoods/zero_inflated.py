"""Counts with more zeros than their distribution has."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.likelihoods.laws import FiniteLaw, Known, MixtureLaw, WeightedLaw
from crosscoding.likelihoods.of_other import OfOther, choice_noise


@dataclass(frozen=True, eq=False)
class ZeroInflated(OfOther):
    """Counts of another likelihood, each replaced by 0 with probability σ(a).

        p(0|z) = σ(a) + σ(−a) p₀(0|z),   p(t|z) = σ(−a) p₀(t|z) for t > 0

    The decoder outputs the logit a, then the other's parameters: 1 + P numbers per element, or as a
    tuple of tensors (B, *data).

    Args:
        other: p₀, a likelihood of counts, such as `NegativeBinomial(None)`.

    Source: Lambert (1992), eq. 1; the Fisher matrix follows from it. Differs in: nothing.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "counts":
            raise TypeError(
                f"expected a likelihood of counts in ZeroInflated, got {self.other!r}, in which 0 "
                "is impossible or a value like any other"
            )
        object.__setattr__(self, "param_shape", (1 + self.num_other,))
        takes = f"a finite logit, and for {type(self.other).__name__}: {self.other.takes}"
        object.__setattr__(self, "takes", takes)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The logits a, (*sample, E), and the other's parameters."""
        rest = params[..., 1:]
        return params[..., 0], rest.reshape(*rest.shape[:-1], *self.other.param_shape)

    def _joined(self, gate: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([gate[..., None], rest.reshape(*gate.shape, -1)], -1)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        gate, own = self._split(params)
        log_prob = F.logsigmoid(-gate) + self.other.log_prob(own, values)
        return torch.where(values == 0, torch.logaddexp(F.logsigmoid(gate), log_prob), log_prob)

    def mean(self, params: Tensor) -> Tensor:
        gate, own = self._split(params)
        return (-gate).sigmoid() * self.other.mean(own)

    def variance(self, params: Tensor) -> Tensor:
        gate, own = self._split(params)
        within, mean = self.other.variance(own), self.other.mean(own)
        return (-gate).sigmoid() * (within + gate.sigmoid() * mean.square())

    # ---- Fisher information ----------------------------------------------------------------------

    def _information(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of the Fisher matrix, where s₀ = ∇ log p₀(0).

        Returns:
            The diagonal entry of the logit; its entries with the other's parameters; the factor of
            s₀ s₀ᵀ in what extra zeros take from the other's Fisher matrix; and s₀.
        """
        gate, own = self._split(params)
        with torch.enable_grad():
            own = own.detach().requires_grad_()
            log_zero = self.other.log_prob(own, torch.zeros_like(gate))
            (score,) = torch.autograd.grad(log_zero.sum(), own)
        log_zero, stays = log_zero.detach(), F.logsigmoid(-gate)
        extra = F.logsigmoid(gate)
        extra = extra - torch.logaddexp(extra, stays + log_zero)  # log p(the zero is extra|0)
        misses = -log_zero.expm1()
        of_gate = (F.logsigmoid(gate) + extra + stays).exp() * misses
        hidden = (stays + log_zero + extra).exp()
        return of_gate, self._at_others(hidden) * score, hidden, score

    def _at_others(self, factor: Tensor) -> Tensor:
        return factor.reshape(*factor.shape, *[1] * len(self.other.param_shape))

    def fisher(self, params: Tensor) -> Tensor:
        gate, own = self._split(params)
        of_gate, _, hidden, score = self._information(params)
        whole = self._at_others((-gate).sigmoid()) * self.other.fisher(own)
        rest = whole - self._at_others(hidden) * score.square()
        return self._joined(of_gate, rest.clamp_min(0))

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        params = self.only(params, mask)
        gate, own = self._split(params)
        along, others = self._split(tangents)
        of_gate, across, hidden, score = self._information(params)
        num = len(self.other.param_shape)

        def inner(vector: Tensor) -> Tensor:
            product = vector * others
            return product.flatten(-num).sum(-1) if num else product

        first = of_gate * along + inner(across)
        rest = self._at_others((-gate).sigmoid()) * self.other.fisher_product(own, others, mask)
        rest = rest + across * self._at_others(along)
        rest = rest - score * self._at_others(hidden * inner(score))
        product = self._joined(first.expand(tangents.shape[:-1]), rest)
        return torch.where(mask[..., None], product, 0.0)

    # ---- draws, and elements known in part -------------------------------------------------------

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return self.other.noise(shape, generator=generator, like=like.double())

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        gate, own = self._split(params)
        drawn = self.other.draw(own, noise).to(params.dtype)
        return torch.where(choice_noise(noise) < gate.double().sigmoid(), 0.0, drawn)

    def law(self, params: Tensor, known: Known) -> MixtureLaw:
        gate, own = self._split(params.double())
        zero = FiniteLaw(torch.zeros(1, device=gate.device), F.logsigmoid(gate)[..., None], known)
        return MixtureLaw([zero, WeightedLaw(self.other.law(own, known), F.logsigmoid(-gate))])

    def possible(self, known: Known) -> Tensor:
        return self.other.possible(known)

    # ---- a decoder's output ----------------------------------------------------------------------

    def allowed(self, params: Tensor) -> Tensor:
        gate, own = self._split(params)
        return self._joined(gate.isfinite(), self.other.allowed(own))

    def valid(self, params: Tensor) -> Tensor:
        gate, own = self._split(params)
        return gate.isfinite() & self.other.valid(own)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return super().lost(params, values) | self.other.lost(self._split(params)[1], values)

    def check_params(self, params: Tensor) -> None:
        self.other.check_params(self._split(params)[1])

    def doubt(self, params: Tensor) -> str:
        return self.other.doubt(self._split(params)[1])
