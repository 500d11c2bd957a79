"""Mixtures of several distributions of one family, whose weights are decoded too."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.likelihoods.expectations import nodes_of
from crosscoding.likelihoods.laws import Known, MixtureLaw, WeightedLaw
from crosscoding.likelihoods.of_other import OfOther, choice_noise

_SHARE = 0.01  # a component that adds less to p(t|z) moves log p(t|z) by as little if it is wrong


@dataclass(frozen=True, eq=False)
class Mixture(OfOther):
    """One of K distributions of another likelihood, drawn with decoded weights.

        p(t|z) = Σ_k π_k p_k(t|z),   π = softmax of K logits

    For each element the decoder outputs the K logits, then the first parameter of all K, then the
    second, and so on: K (1 + P) numbers, or a tuple of 1 + P tensors (B, *data, K). This is a
    mixture density network.

    Args:
        other: The family of the K distributions, such as `Gaussian(None)`. A setting, such as a
            fixed scale, is shared by all.
        num: K ≥ 1.

    Source: Bishop (1994), eq. 22–24. Differs in: any family.
    """

    num: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "has_cheap_fisher", False)  # a quadrature
        if isinstance(self.num, bool) or not isinstance(self.num, int):
            raise TypeError(f"expected num to be an int, got {self.num!r}")
        if self.num < 1:
            raise ValueError(f"expected num >= 1, got {self.num}")
        object.__setattr__(self, "param_shape", (self.num * (1 + self.num_other),))
        takes = f"finite logits, and for {type(self.other).__name__}: {self.other.takes}"
        object.__setattr__(self, "takes", takes)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """As in the base class, from tensors (B, *data, K): the logits, then each parameter."""
        outputs, wanted = tuple(outputs), 1 + self.num_other
        if len(outputs) == 1:
            return super().join(outputs)
        if len(outputs) != wanted or any(
            not isinstance(part, Tensor)
            or part.shape != outputs[0].shape
            or part.shape[-1:] != (self.num,)
            for part in outputs
        ):
            raise ValueError(
                f"expected {wanted} tensors (B, *data, {self.num}) from the decoder for {self!r}, "
                "the logits of the weights and each parameter of its distributions, got "
                + ", ".join(str(tuple(getattr(part, "shape", ()))) for part in outputs)
            )
        return torch.cat(outputs, -1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (*sample, E, K), and the other's parameters (*sample, E, K, *other)."""
        parts = params.unflatten(-1, (1 + self.num_other, self.num))
        own = parts[..., 1:, :].movedim(-1, -2)
        return parts[..., 0, :], own.reshape(*own.shape[:-1], *self.other.param_shape)

    def _joined(self, logits: Tensor, own: Tensor) -> Tensor:
        own = own.reshape(*logits.shape, self.num_other).movedim(-1, -2)
        return torch.cat([logits[..., None, :], own], -2).flatten(-2)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        logits, own = self._split(params)
        log_probs = self.other.with_dimension().log_prob(own, values[..., None])
        return (logits.log_softmax(-1) + log_probs).logsumexp(-1)

    def mean(self, params: Tensor) -> Tensor:
        logits, own = self._split(params)
        return (logits.softmax(-1) * self.other.with_dimension().mean(own)).sum(-1)

    def variance(self, params: Tensor) -> Tensor:
        logits, own = self._split(params)
        other, weights = self.other.with_dimension(), logits.softmax(-1)
        means = other.mean(own)
        gaps = means - (weights * means).sum(-1, keepdim=True)
        return (weights * (other.variance(own) + gaps.square())).sum(-1)

    # ---- Fisher information ----------------------------------------------------------------------

    def _information(self, params: Tensor) -> Tensor:
        """The Fisher matrices of elements (*sample, E, P), shape (*sample, E, P, P).

        E[s sᵀ] under each of the K distributions, by the quadrature of its family, summed with the
        weights. The nodes of a wide distribution may miss a narrow one; there the narrow one's own
        nodes count more.
        """
        params = params.detach()
        tensors = {name: value.double() for name, value in self._tensors().items()}
        double = self._with(tensors)
        logits, own = double._split(params.double())
        weights = logits.softmax(-1)
        total = torch.zeros_like(weights)
        matrix = weights.new_zeros(*params.shape, params.shape[-1])
        for values, mass in nodes_of(double.other.with_dimension(), own):
            share = weights * mass
            score = double._score(params.double(), values)
            matrix = matrix + (score * share[..., None]).mT @ score
            total = total + share
        return (matrix / total.sum(-1)[..., None, None]).to(params.dtype)

    def _score(self, params: Tensor, values: Tensor) -> Tensor:
        """∇ log p(t|z) in the parameters at M values (*sample, E, M): (*sample, E, M, P)."""
        with torch.enable_grad():
            each = params[..., None, :].expand(*values.shape, params.shape[-1])
            each = each.clone().requires_grad_()
            total = self.with_dimension().log_prob(each, values).sum()
            (score,) = torch.autograd.grad(total, each)
        return score

    def fisher(self, params: Tensor) -> Tensor:
        return self._information(params).diagonal(dim1=-2, dim2=-1)

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        mask = mask.expand(params.shape[-3:-1])
        settings = {
            name: value.expand(*mask.shape, *value.shape[2:])[mask]
            for name, value in self._tensors().items()
        }
        matrix = self._with(settings)._information(params[..., mask, :]).to(tangents.dtype)
        product = torch.zeros_like(tangents)
        product[..., mask, :] = (matrix @ tangents[..., mask, :, None])[..., 0]
        return product

    def curvature_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """As in the base class, with the Fisher matrix of t and the distribution that drew it.

            diag(π) − π πᵀ for the logits, π_k F_k for the parameters of distribution k

        It needs no quadrature, and exceeds the Fisher matrix of t by what t leaves open about the
        choice: nothing if the distributions are separate.

        Source: Dempster, Laird and Rubin (1977), the information of complete data; that it is the
        larger one follows from Louis (1982), eq. 3.1. Differs in: nothing.
        """
        logits, own = self._split(self.only(params, mask))
        of_logits, of_own = self._split(tangents)
        weights, more = logits.softmax(-1), len(self.other.param_shape)
        mean = (weights * of_logits).sum(-1, keepdim=True)
        products = [
            self.other.curvature_product(part, along, mask)
            for part, along in zip(
                own.unbind(own.ndim - 1 - more), of_own.unbind(of_own.ndim - 1 - more), strict=True
            )
        ]
        each = torch.stack(products, of_own.ndim - 1 - more)
        each = each * weights.reshape(*weights.shape, *[1] * more)
        product = self._joined(weights * (of_logits - mean), each)
        return torch.where(mask[..., None], product, 0.0)

    # ---- draws, and elements known in part -------------------------------------------------------

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return self.other.noise(shape, generator=generator, like=like.double())

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        logits, own = self._split(params)
        ends = logits.double().softmax(-1).cumsum(-1)
        place = choice_noise(noise)[..., None] * ends[..., -1:]
        index = (place >= ends[..., :-1]).sum(-1)
        more = len(self.other.param_shape)
        where = index.reshape(*index.shape, *[1] * (1 + more))
        own = own.expand(*index.shape, *own.shape[own.ndim - 1 - more :])
        chosen = own.gather(index.ndim, where.expand(*index.shape, 1, *self.other.param_shape))
        return self.other.draw(chosen.squeeze(index.ndim), noise).to(params.dtype)

    def law(self, params: Tensor, known: Known) -> MixtureLaw:
        logits, own = self._split(params.double())
        log_weights, more = logits.log_softmax(-1), len(self.other.param_shape)
        parts = own.unbind(own.ndim - 1 - more)
        return MixtureLaw(
            [
                WeightedLaw(self.other.law(part, known), weight)
                for part, weight in zip(parts, log_weights.unbind(-1), strict=True)
            ]
        )

    def possible(self, known: Known) -> Tensor:
        return self.other.possible(known)

    # ---- a decoder's output ----------------------------------------------------------------------

    def allowed(self, params: Tensor) -> Tensor:
        logits, own = self._split(params)
        return self._joined(logits.isfinite(), self.other.allowed(own))

    def valid(self, params: Tensor) -> Tensor:
        logits, own = self._split(params)
        return logits.isfinite().all(-1) & self.other.with_dimension().valid(own).all(-1)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        """As in the base class, or if it is lost in a component that may have drawn the value."""
        logits, own = self._split(params)
        other, values_ = self.other.with_dimension(), values[..., None]
        shares = (logits.log_softmax(-1) + other.log_prob(own, values_)).softmax(-1)
        lost = other.lost(own, values_) & (shares > _SHARE)
        return super().lost(params, values) | lost.any(-1)

    def check_params(self, params: Tensor) -> None:
        self.other.check_params(self._split(params)[1])

    def doubt(self, params: Tensor) -> str:
        return self.other.doubt(self._split(params)[1])
