"""Elements whose values are known only in part: their share of log p(x|z), and draws of them.

    log p(known|z) = Σ_e log ∫ p(known_e|t) p(t|z) dt

An element adds the probability of its interval or set, or the density of its noisy value, instead
of log p(t|z). Its Fisher information is that of the value, times the share of the variance of t
given z that the knowledge removes. For normal values this is −∂² log p exactly (Louis 1982).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosscoding.likelihoods import Likelihood
from crosscoding.likelihoods.categories import Categorical
from crosscoding.likelihoods.laws import FiniteLaw, Known, Law
from crosscoding.likelihoods.layout import ElementGroup
from crosscoding.uncertain_values import UncertainValues


@dataclass(frozen=True, eq=False)
class KnownElements:
    """Up to P variables of one likelihood for each of B queries, and what is known of them.

    Args:
        likelihood: For these variables, its settings of shape (B, P).
        elements: Which elements of the datum they are, shape (B, P, k); k > 1 if one-hot.
        outputs: Where their parameters are in the output passed to methods, shape (B, P, numbers).
        known: What is known of them.
        valid: Which of the P are needed, shape (B, P); the others are padding.
    """

    likelihood: Likelihood
    elements: Tensor
    outputs: Tensor
    known: Known
    valid: Tensor

    def select(self, index: Tensor | slice) -> "KnownElements":
        """Those of some of the queries."""
        return KnownElements(
            self.likelihood.select(index),
            self.elements[index],
            self.outputs[index],
            self.known.select(index),
            self.valid[index],
        )

    def moved(self, places: Tensor) -> "KnownElements":
        """The same for another output, in which places (R, outputs) has each number's place."""
        flat = places.expand(len(self.outputs), -1).gather(1, self.outputs.flatten(1))
        # padding may point beyond the end of an output that has only what some queries need
        outputs = torch.where(self.valid[..., None], flat.reshape(self.outputs.shape), 0)
        return replace(self, outputs=outputs)

    def mask(self, like: Tensor) -> Tensor:
        """Which elements of the data these are, of the shape of `like`, (B, D)."""
        found = torch.zeros_like(like, dtype=torch.int8)
        which = self.valid[..., None].expand(self.elements.shape).to(torch.int8)
        return found.scatter_add(1, self.elements.flatten(1), which.flatten(1)) > 0

    def law(self, output: Tensor) -> Law:
        """p(t|z, known) of these variables: output (S, B or 1, outputs) -> laws of (S, B, P)."""
        return self.likelihood.law(self._params(output), self.known)

    def log_prob(self, output: Tensor) -> Tensor:
        """log p(known|z) in nats, summed: (S, B)."""
        masses = torch.where(self.valid, self.law(output).log_mass, 0.0)
        return masses.sum(-1).to(output.dtype)

    @torch.no_grad()
    def _share_known(self, params: Tensor) -> Tensor:
        """The share of the variance of t given z that the knowledge removes, 0 to 1, (S, B, P)."""
        law = self.likelihood.law(params, self.known)
        if isinstance(law, FiniteLaw) and isinstance(self.likelihood, Categorical):
            before = self.likelihood.log_probs(params.double()).exp()
            left, all_ = (_spread(part) for part in (law.probabilities, before))
        else:
            left, all_ = law.variance(), self.likelihood.variance(params.double())
        return (1 - (left / all_).nan_to_num(nan=0.0)).clamp(0, 1)

    def fisher_product(self, output: Tensor, tangents: Tensor) -> Tensor:
        """F v: output (S, B, outputs), v (*more, S, B, outputs), in that shape."""
        params, own = self._params(output), self._params(tangents)
        share = self._share_known(params).to(tangents.dtype)
        product = self.likelihood.curvature_product(params, own, self.valid)
        product = product * share.reshape(*share.shape, *[1] * len(self.likelihood.param_shape))
        index = self.outputs.flatten(1).expand(*tangents.shape[:-1], -1)
        flat = product.reshape(index.shape)
        return torch.zeros_like(tangents).scatter_add(-1, index, flat.to(tangents.dtype))

    def _params(self, output: Tensor) -> Tensor:
        """Parameters of these variables, (*sample, B, P, *param_shape)."""
        index = self.outputs.flatten(1)
        sample = output.shape[:-2]
        output = output.expand(*sample, len(index), output.shape[-1])
        params = output.gather(-1, index.expand(*sample, *index.shape))
        params = params.reshape(*sample, *self.valid.shape, *self.likelihood.param_shape)
        return self.likelihood.only(params, self.valid)

    # ---- predictions -----------------------------------------------------------------------------

    def put_draws(self, data: Tensor, output: Tensor, uniforms: Tensor) -> Tensor:
        """Data (S, B, D) with draws of these elements, from uniform numbers (S, 1, D)."""
        law, first = self.law(output), self.elements[..., 0]
        own = uniforms.expand(len(output), len(first), -1)
        own = own.gather(-1, first.expand(len(output), -1, -1))
        if not self._is_one_hot:
            return self._put(data, law.draw(own)[..., None])
        assert isinstance(law, FiniteLaw)
        chosen = torch.nn.functional.one_hot(law.draw_index(own), self.elements.shape[-1])
        return self._put(data, chosen)

    def put_means(self, data: Tensor, output: Tensor) -> Tensor:
        """Data (S, B, D) with E[t|z, known] of these elements."""
        law = self.law(output)
        if self._is_one_hot:
            assert isinstance(law, FiniteLaw)
            return self._put(data, law.probabilities)
        return self._put(data, law.mean()[..., None])

    def put_variances(self, data: Tensor, output: Tensor) -> Tensor:
        """Data (S, B, D) with Var[t|z, known] of these elements."""
        law = self.law(output)
        if self._is_one_hot:
            assert isinstance(law, FiniteLaw)
            return self._put(data, law.probabilities * (1 - law.probabilities))
        return self._put(data, law.variance()[..., None])

    @property
    def is_bounded(self) -> bool:
        """Whether any of them has an interval."""
        return bool(self.known.low.isfinite().any() or self.known.high.isfinite().any())

    @property
    def _is_one_hot(self) -> bool:
        return self.elements.shape[-1] > 1

    def _put(self, data: Tensor, own: Tensor) -> Tensor:
        """Data with these numbers (S, B, P, k) for the elements that are needed."""
        index = self.elements.flatten(1).expand(len(data), -1, -1)
        valid = self.valid[..., None].expand(self.elements.shape).flatten(1)
        size = data.shape[-1]
        index = torch.where(valid, index, size)  # a spare place, cut off below
        padded = torch.nn.functional.pad(data, (0, 1))
        return padded.scatter(-1, index, own.flatten(2).to(data.dtype))[..., :size]


def known_elements(
    groups: Sequence[ElementGroup], values: Tensor, uncertain: UncertainValues, which: Tensor
) -> list[KnownElements]:
    """What is known of some elements, by likelihood; values and which have the shape (B, D)."""
    found = []
    for group in groups:
        likelihood = group.likelihood
        assert isinstance(likelihood, Likelihood)
        if group.elements.shape[1] > 1:
            kinds = [(likelihood, _known_one_hot(group, uncertain), _any(which, group))]
        else:
            elements = group.elements[:, 0]
            known, own = _known(elements, values, uncertain), which[:, elements]
            listed = (known.noise > 0) | _has_set(known)
            kinds = [(likelihood, replace(known, allowed=None), own & ~listed)]
            kinds.append((likelihood, known, own & listed))
        found += [_packed(group, *kind) for kind in kinds if kind[2].any()]
    return found


def _known(elements: Tensor, values: Tensor, uncertain: UncertainValues) -> Known:
    """What is known of elements (n,) of all queries, of shape (B, n)."""
    allowed = uncertain.allowed
    return Known(
        values[:, elements].double(),
        uncertain.noise[:, elements].double(),
        uncertain.low[:, elements].double(),
        uncertain.high[:, elements].double(),
        None if allowed is None else allowed[:, elements],
    )


def _known_one_hot(group: ElementGroup, uncertain: UncertainValues) -> Known:
    """The classes that one-hot variables may have, from what each of their elements may be."""
    low, high = (part[:, group.elements] for part in (uncertain.low, uncertain.high))
    may_be = [(low <= number) & (high >= number) for number in (0, 1)]
    if uncertain.allowed is not None:
        allowed = uncertain.allowed[:, group.elements]
        free = allowed.all(-1)
        may_be = [may & (allowed[..., number] | free) for number, may in enumerate(may_be)]
    zero, one = may_be
    others = zero.all(-1, keepdim=True) | ((~zero).sum(-1, keepdim=True) == 1) & ~zero
    nothing = torch.zeros(one.shape[:-1], dtype=torch.double, device=one.device)
    return Known(nothing, nothing, nothing - torch.inf, nothing + torch.inf, one & others)


def _any(which: Tensor, group: ElementGroup) -> Tensor:
    return which[:, group.elements].any(-1)


def _has_set(known: Known) -> Tensor:
    if known.allowed is None:
        return torch.zeros_like(known.noise, dtype=torch.bool)
    return ~known.allowed.all(-1)


def _packed(
    group: ElementGroup, likelihood: Likelihood, known: Known, which: Tensor
) -> KnownElements:
    """The variables of a group that `which` (B, n) names, each query's moved to the front."""
    most = int(which.sum(1).max())
    order = which.to(torch.int8).sort(dim=1, descending=True, stable=True)[1][:, :most]
    valid = which.gather(1, order)
    value, noise, low, high = (
        part.gather(1, order) for part in (known.value, known.noise, known.low, known.high)
    )
    allowed = known.allowed
    if allowed is not None:
        allowed = allowed.gather(1, order[..., None].expand(-1, -1, allowed.shape[-1]))
        allowed = allowed | ~valid[..., None]
    packed = Known(
        torch.where(valid, value, 0.0),
        torch.where(valid, noise, 0.0),
        torch.where(valid, low, -torch.inf),
        torch.where(valid, high, torch.inf),
        allowed,
    )
    outputs = group.outputs[order].flatten(2)
    return KnownElements(
        likelihood.of_elements(order), group.elements[order], outputs, packed, valid
    )


def _spread(probabilities: Tensor) -> Tensor:
    return (probabilities * (1 - probabilities)).sum(-1)
