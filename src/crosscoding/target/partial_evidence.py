"""Evidence other than exact values: what it adds to log p(x|z), and to predictions.

log p(x|z) = log p(exact values|z) + Σ log p(interval, set or noisy value|z) + log p(sums|z)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.errors import and_more
from crosscoding.evidence import Evidence
from crosscoding.likelihoods import Gaussian, Likelihood
from crosscoding.likelihoods.layout import ElementGroup
from crosscoding.model.vae import VAE
from crosscoding.random import normal, uniform
from crosscoding.target.bounded_sums import BoundedElements
from crosscoding.target.independent_sums import check_reachable, independent_sums
from crosscoding.target.known_elements import KnownElements, known_elements
from crosscoding.target.known_sums import KnownSums, Scales
from crosscoding.uncertain_values import UncertainValues

_MOST_NOISE_OF_COUNTS = 1000.0  # at which four elements take half a minute
_PER_VARIABLE = 64  # numbers in memory for a variable that is known in part: some in double


@dataclass(frozen=True, eq=False)
class PartialEvidence:
    """What is known of B queries besides exact values.

    Args:
        elements: What is known of single elements, by likelihood.
        sums: Known sums; None without any.
        used: The elements that log p(x|z) needs for this, shape (B, D).
    """

    elements: tuple[KnownElements, ...]
    sums: KnownSums | None
    used: Tensor

    @classmethod
    def of(cls, vae: VAE, evidence: Evidence) -> "PartialEvidence | None":
        """That of flat evidence, (B, *data), which fits the model; None if all of it is exact.

        Raises:
            ValueError: A likelihood does not take such evidence, no value agrees with it, or sums
                contradict each other.
        """
        if evidence.is_exact or not len(evidence.values):
            return None
        shape = torch.Size((len(evidence.values), vae.data_size))
        values = evidence.values.reshape(shape)
        groups = vae.flat_likelihood.groups(vae.data_size, vae.device)
        sums = _sums(vae, evidence, groups) if evidence.sums else None
        summed = torch.zeros(shape, dtype=torch.bool, device=vae.device)
        if sums is not None:
            summed[:, sums.sums.elements] = sums.sums.summed
        found: list[KnownElements] = []
        if evidence.uncertain is not None:
            uncertain = evidence.uncertain.reshape(shape)
            _check_kinds(vae, groups, uncertain)
            if sums is not None:
                places = sums.sums.elements
                low = torch.where(sums.sums.summed, uncertain.low[:, places], -torch.inf)
                high = torch.where(sums.sums.summed, uncertain.high[:, places], torch.inf)
                _check_wide(vae, low, high, places)
                sums = replace(sums, bounded=BoundedElements.of(low, high))
                check_reachable(sums.sums, low, high)
            which = uncertain.known & ~evidence.exact.reshape(shape) & ~summed
            found = known_elements(groups, values, uncertain, which)
            for part in found:
                _check_possible(vae, part)
        if sums is None and not found:
            return None
        used = summed
        for part in found:
            used = used | part.mask(values)
        return cls(tuple(found), sums, used)

    def select(self, index: Tensor | slice) -> "PartialEvidence":
        """That of some of the queries."""
        sums = self.sums and self.sums.select(index)
        return PartialEvidence(
            tuple(part.select(index) for part in self.elements), sums, self.used[index]
        )

    @property
    def is_normal(self) -> bool:
        """Whether it is normal given a normal z: noisy values and sums with fixed scales only."""
        return (
            self.sums is None or (self.sums.scales.all_fixed and self.sums.bounded is None)
        ) and all(
            isinstance(part.likelihood, Gaussian) and not part.is_bounded for part in self.elements
        )

    @property
    def numbers(self) -> int:
        """About how much memory `log_prob` takes per query, in multiples of a datum's."""
        num = sum(_PER_VARIABLE * part.valid.shape[1] for part in self.elements)
        if self.sums is not None:
            num += self.sums.sums.values.shape[1] + self.sums.numbers_in_box
        return 1 + num // max(self.used.shape[1], 1)

    def within(self, outputs: Tensor, num: int) -> "PartialEvidence":
        """The same, given only some of the decoder's outputs, (R, n) of `num`, in this order."""
        places = torch.zeros(len(outputs), num, dtype=torch.long, device=outputs.device)
        order = torch.arange(outputs.shape[1], device=outputs.device)
        places.scatter_(1, outputs, order.expand(outputs.shape))
        sums = self.sums and self.sums.moved(places)
        return replace(
            self, elements=tuple(part.moved(places) for part in self.elements), sums=sums
        )

    # ---- log p(x|z) ------------------------------------------------------------------------------

    def log_prob(self, output: Tensor) -> Tensor:
        """What it adds to log p(x|z) in nats: output (S, B or 1, outputs) -> (S, B)."""
        terms = [part.log_prob(output) for part in self._parts()]
        return torch.stack(terms).sum(0) if terms else output.new_zeros(())

    def impossible(self, output: Tensor) -> int:
        """The first element of one query whose share of log p(x|z) is −inf or NaN; −1 if none.

        Args:
            output: The decoder's for one z, shape (1, outputs).
        """
        for part in self.elements:
            masses = part.law(output[None]).log_mass[0, 0].to(output.dtype)
            wrong = (part.valid[0] & ~masses.isfinite()).nonzero()
            if len(wrong):
                return int(part.elements[0, wrong[0, 0], 0])
        if self.sums is not None and not self.sums.log_prob(output[None]).isfinite().all():
            return int(self.sums.sums.elements[self.sums.sums.summed[0]][0])
        return -1

    def fisher_product(self, output: Tensor, tangents: Tensor) -> Tensor:
        """F v: output (S, B, outputs), v (*more, S, B, outputs), in that shape."""
        products = [part.fisher_product(output, tangents) for part in self._parts()]
        return torch.stack(products).sum(0) if products else torch.zeros_like(tangents)

    # ---- predictions -----------------------------------------------------------------------------

    def noise(
        self, num: int, rows: int = 1, *, generator: Generator, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Base noise for `num` draws: uniform (num, rows, D), normal (num, rows, sums), in double.

        All queries share one row of noise; with as many rows as queries they are independent.
        """
        like, size = like.double(), self.used.shape[1]
        uniforms = uniform((num, rows, size), generator=generator, like=like)
        num_sums = self.sums.sums.values.shape[1] if self.sums is not None else 0
        return uniforms, normal((num, rows, num_sums), generator=generator, like=like)

    def put_draws(self, data: Tensor, output: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        """Draws (S, B, D) from p(t|z), with those of p(t|z, known) where something is known.

        Args:
            data: Draws from p(t|z).
            output: The decoder's output, shape (S, B, outputs).
            noise: From `noise`.
        """
        for part in self.elements:
            data = part.put_draws(data, output, noise[0])
        return data if self.sums is None else self.sums.put_draws(data, output, noise[1], noise[0])

    def put_means(self, data: Tensor, output: Tensor) -> Tensor:
        """Means (S, B, D) of t given z, with E[t|z, known] where something is known."""
        for part in self._parts():
            data = part.put_means(data, output)
        return data

    def put_variances(self, data: Tensor, output: Tensor) -> Tensor:
        """Variances (S, B, D) of t given z, with Var[t|z, known] where something is known."""
        for part in self._parts():
            data = part.put_variances(data, output)
        return data

    def _parts(self) -> Sequence[KnownElements | KnownSums]:
        return self.elements if self.sums is None else (*self.elements, self.sums)


def log_agreement(evidence: Evidence, data: Tensor) -> Tensor:
    """log p(what is known|t) of complete data (B, *data) for flat evidence, in nats, (B,).

    It is −∞ outside intervals and sets, and where exact sums are not satisfied. Otherwise it sums
    the log-densities of the noise and what exact sums add (`Sums.log_density`).
    """
    num = len(evidence.values)
    result = torch.zeros(num, dtype=torch.double, device=data.device)
    flat = data.reshape(num, -1)
    summed = torch.zeros_like(flat, dtype=torch.bool)
    if evidence.sums:
        sums = independent_sums(evidence)
        result = result + sums.log_density(flat, torch.finfo(data.dtype).eps)
        summed[:, sums.elements] = sums.summed
    if evidence.uncertain is None:
        return result
    uncertain = evidence.uncertain.reshape(flat.shape)
    outside = uncertain.excludes(flat) & ~evidence.exact.reshape(flat.shape)
    noisy = (uncertain.noise > 0) & ~summed
    scale = torch.where(noisy, uncertain.noise, 1.0).double()
    gaps = evidence.values.reshape(flat.shape).double() - flat.double()
    log_density = -0.5 * (gaps / scale).square() - scale.log() - 0.9189385332046727
    result = result + torch.where(noisy, log_density, 0.0).sum(-1)
    return torch.where(outside.any(-1), -torch.inf, result)


# ---- sums of elements ----------------------------------------------------------------------------


def _sums(vae: VAE, evidence: Evidence, groups: Sequence[ElementGroup]) -> KnownSums:
    """Known sums of a model's elements.

    Raises:
        ValueError: An operator does not fit the data, an element is not Gaussian, or sums
            contradict each other.
    """
    for part in evidence.sums:
        if part.data_shape != vae.data_shape:
            raise ValueError(
                f"expected an operator of shape (m, {', '.join(map(str, vae.data_shape))}), or "
                f"(*batch, m, ...) with values of shape (*batch, m), got "
                f"{tuple(part.operator.shape)} and {tuple(part.values.shape)}; if it is meant for "
                "all queries but has the shape of one for each, expand it to one for each"
            )
    sums = independent_sums(evidence)
    like = torch.empty(0, dtype=vae.dtype, device=vae.device)
    fixed = torch.full((vae.data_size,), torch.nan, dtype=torch.double, device=vae.device)
    means, scales = (
        torch.zeros(vae.data_size, dtype=torch.long, device=vae.device) for _ in range(2)
    )
    is_log = torch.zeros_like(means, dtype=torch.bool)
    is_normal = torch.zeros_like(is_log)
    for group in groups:
        likelihood, own = group.likelihood, group.elements[:, 0]
        if isinstance(likelihood, Gaussian):
            is_normal[own], is_log[own] = True, likelihood.log_variance
            means[own], scales[own] = group.outputs[:, 0], group.outputs[:, -1]
            if likelihood.scale is not None:
                fixed[own] = torch.as_tensor(likelihood.scale).to(fixed).expand(len(own))
    _check(
        ~is_normal[sums.elements] & sums.summed,
        lambda place: vae.element_name(int(sums.elements[place])),
        "expected sums of elements with a Gaussian likelihood, or known exactly, got a sum with",
    )
    places = sums.elements
    found = Scales(fixed[places], scales[places][None], is_log[places])
    return KnownSums.of(sums, means[places][None], found, like)


# ---- checks --------------------------------------------------------------------------------------


def _check_kinds(vae: VAE, groups: Sequence[ElementGroup], uncertain: UncertainValues) -> None:
    """Raise ValueError where a likelihood does not take what is known of its elements."""
    kinds = {
        "interval": uncertain.is_bounded,
        "noise": uncertain.noise > 0,
        "set": uncertain.has_set,
    }
    for group in groups:
        likelihood = group.likelihood
        assert isinstance(likelihood, Likelihood)
        takes = tuple(k for k in likelihood.uncertain if k != "noise" or len(group.elements[0]) < 2)
        elements = group.elements.flatten()
        for kind, where in kinds.items():
            if kind in takes:
                continue
            words = " or ".join(["exact values", *(_NAMES[name] for name in takes)])
            _check(
                where[:, elements],
                lambda place, own=elements: vae.element_name(int(own[place])),
                f"expected {words} for {type(likelihood).__name__}, got {_NAMES[kind]} for",
            )
        if likelihood.kind == "counts":
            _check(
                uncertain.noise[:, elements] > _MOST_NOISE_OF_COUNTS,
                lambda place, own=elements: vae.element_name(int(own[place])),
                f"expected noise of at most {_MOST_NOISE_OF_COUNTS:,.0f} for counts, as all counts "
                "within it are summed over, got more for",
            )
        num = getattr(likelihood, "num_classes", 2 if likelihood.kind == "binary" else 0)
        wanted = 2 if len(group.elements[0]) > 1 else num
        if uncertain.allowed is not None and uncertain.allowed.shape[-1] < wanted:
            _check(
                uncertain.has_set[:, elements],
                lambda place, own=elements: vae.element_name(int(own[place])),
                f"expected sets that say whether each of {num} classes is allowed, got "
                f"{uncertain.allowed.shape[-1]} classes for",
            )


_NAMES = {"interval": "intervals", "noise": "values with noise", "set": "sets"}


def _check_wide(vae: VAE, low: Tensor, high: Tensor, places: Tensor) -> None:
    """Raise ValueError where an interval of a summed element is a single number."""
    _check(
        low == high,
        lambda place: vae.element_name(int(places[place])),
        "expected intervals with low < high for elements in sums, got low = high for",
    )


def _check_possible(vae: VAE, part: KnownElements) -> None:
    """Raise ValueError where no value of an element agrees with what is known of it."""
    wrong = ~part.likelihood.possible(part.known) & part.valid
    if wrong.any():
        query, place = wrong.nonzero()[0].tolist()
        element = int(part.elements[query, place, 0])
        low, high = (float(part.known.low[query, place]), float(part.known.high[query, place]))
        advice = "; give values that are known exactly by Evidence(values, mask)"
        raise ValueError(
            f"expected evidence that {type(part.likelihood).__name__} can agree with, got no value "
            f"between {low:.6g} and {high:.6g} for {vae.element_name(element)} of query {query}"
            f"{and_more(int(wrong.sum()) - 1)}{advice if low == high else ''}"
        )


def _check(wrong: Tensor, name: Callable[[int], str], message: str) -> None:
    """Raise ValueError that names the first of the wrong elements, (B or 1, n)."""
    if wrong.any():
        query, place = wrong.nonzero()[0].tolist()
        more = and_more(int(wrong.sum()) - 1)
        raise ValueError(f"{message} {name(place)} of query {query}{more}")
