"""The contract of every likelihood p(t|z) that factorises over the elements of t.

Given z, observed and unobserved elements are independent, so the sum of log p(t|z) over observed
elements is log p(x|z), and the sum over the others log p(y|z).
"""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from crosscoding.errors import ModelFormatError, first_line
from crosscoding.likelihoods.laws import Known, Law
from crosscoding.likelihoods.layout import ElementLayout
from crosscoding.likelihoods.rounding import MAX_ROUNDING_ERROR
from crosscoding.persistence.folder import Contents

_CHUNK_BYTES = 64 * 2**20
ADVICE_ON_WHOLE_NUMBERS = (
    "counts and classes are not scaled: give them as the model was trained on them"
)


class Likelihood(ElementLayout, ABC):
    """The base class of likelihoods p(t|z). Log-probabilities are in nats, per element.

    A likelihood of your own is a frozen dataclass of its settings. It sets `param_shape`, `support`
    and `kind`, and defines the seven abstract methods; everything else has a default.

    Attributes:
        support: Which values can be observed, in words that follow "expected observed values".
        takes: For which parameters p(t|z) exists, in words that follow the likelihood's name and
            "takes". If not all finite parameters are allowed, override `valid` too.
        infinite: Infinities that a parameter may be, such as −inf for the logit of an impossible
            class.
        placeholder: A value that can be observed; it replaces unobserved values.
        num_kept: How many tensors `to_keep` returns.
        uncertain: What may be known of an element instead of its exact value, where `law` is
            defined: "interval", "noise" (a value with Gaussian noise) and "set" (of classes).
        kind: What values are: "real", "binary" (0 and 1, or between with a cross-entropy), "counts"
            or "classes". `VAE.check` compares the model with a simple distribution of that kind.
            The default "" skips the comparison. The parts of a `Mixed` have kinds of their own.
        has_cheap_fisher: Whether `fisher` costs little compared with decoding.
    """

    support: str
    takes: str = "finite parameters"
    infinite: tuple[float, ...] = ()
    placeholder: ClassVar[float] = 0.0
    num_kept: int = 1
    kind: ClassVar[str] = ""
    has_cheap_fisher: bool = True
    uncertain: ClassVar[tuple[str, ...]] = ()
    _advice_on_values: ClassVar[str] = "scale the data as the model was trained on it"

    @abstractmethod
    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """log p(t|z) of each element.

        Args:
            params: Parameters, shape (*sample, E, *param_shape).
            values: Data, a shape that broadcasts with (*sample, E).
        Returns:
            The shape that the two broadcast to. At parameters of 1 and a value of `placeholder`,
            which stand in for unobserved elements, its gradient must be finite.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def variance(self, params: Tensor) -> Tensor:
        """Var[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def fisher(self, params: Tensor) -> Tensor:
        """Fisher information of each parameter, −E[∂² log p(t|z)], shape of params.

        This is the diagonal of the Fisher matrix of an element. Where the matrix has other entries,
        override `fisher_product` too.
        """

    @abstractmethod
    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        """Base noise of the given shape for `draw`, one number per element.

        Usually `crosscoding.random.uniform` or `normal`; use `samplers.seeds` where a draw needs
        several random numbers.
        """

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A draw of t given z for each element, as a function of its parameters and base noise."""

    @abstractmethod
    def in_support(self, values: Tensor) -> Tensor:
        """Whether each value of data (*batch, *data) can be observed, boolean."""

    @property
    def width(self) -> float | None:
        """Distance of neighbouring values if p(t|z) is the mass of an interval; None otherwise."""
        return None

    def other_reading(self) -> "Likelihood | None":
        """What a decoder's output may mean instead, such as a rate rather than its logarithm.

        A likelihood of the same parameter shape, or None if there is none to confuse it with.
        `VAE.check` tries it on counts that do not fit.
        """
        return None

    # ---- elements that are known only in part ---------------------------------------------------

    def law(self, params: Tensor, known: Known) -> Law:
        """p(t|z, what is known of t) for P elements of each query, and its mass.

        Args:
            params: Parameters, shape (*sample, B, P, *param_shape); settings that are tensors have
                the shape (B, P).
            known: What is known. Either no element has a noisy value or a set, or all do.
        Raises:
            NotImplementedError: The family has none; `uncertain` is then empty.
        """
        raise NotImplementedError(f"{type(self).__name__} takes exact values only")

    def possible(self, known: Known) -> Tensor:
        """Whether some value of each element agrees with what is known of it, boolean (B, P)."""
        return known.low < known.high

    def log_probs_at(self, params: Tensor, values: Tensor) -> Tensor:
        """log p of K values of each element: (*sample, E, K).

        Args:
            params: Parameters, shape (*sample, E, *param_shape).
            values: Shape (K,), or a shape that broadcasts with (*sample, E, K).
        """
        params = params.unsqueeze(params.ndim - len(self.param_shape))
        return self.with_dimension().log_prob(params, values)

    # ---- parameters that are invalid or rounded too coarsely -------------------------------------

    def allowed(self, params: Tensor) -> Tensor:
        """Whether each number of a decoder's output is finite or one of `infinite`, boolean."""
        found = params.isfinite()
        for limit in self.infinite:
            found = found | (params == limit)
        return found

    def valid(self, params: Tensor) -> Tensor:
        """Whether each element's parameters define a p(t|z), boolean, shape (*sample, E)."""
        found = self.allowed(params)
        return found.flatten(-len(self.param_shape)).all(-1) if self.param_shape else found

    def describe(self, params: Tensor, element: int) -> str:
        """One element's parameters, from (E, *param_shape), and what they should be, in words."""
        numbers = ", ".join(f"{number:.4g}" for number in params[element].reshape(-1).tolist())
        return f"{numbers} ({type(self).__name__} takes {self.takes})"

    def only(self, params: Tensor, mask: Tensor, other: float = 1.0) -> Tensor:
        """The parameters of the elements in mask, (B, E), and `other` in place of the rest.

        Parameters of unobserved elements may be infinite or NaN. Replaced before any arithmetic,
        they reach neither sums nor gradients. 1 is a valid parameter of every likelihood.
        """
        counts = mask.reshape(*mask.shape, *[1] * len(self.param_shape))
        return torch.where(counts, params, other)

    def may_be_lost(self, values: Tensor) -> Tensor:
        """For which values (*shape, E) `lost` can be true at all, boolean.

        If it is false for all observed values, nothing is decoded to find out.
        """
        return torch.ones_like(values, dtype=torch.bool)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        """Whether rounding of the parameters has lost log p(t|z), boolean, shape (*sample, E).

        That is where one unit in their last place moves log p(t|z) by more than 0.05 nats. A
        likelihood that clamps its parameters must override this and also return True where it
        clamps, because an answer with draws there is not trusted.

        Args:
            params: Parameters, shape (*sample, E, *param_shape).
            values: Data, a shape that broadcasts to (*sample, E).
        """
        info = torch.finfo(params.dtype)
        with torch.enable_grad():
            own = params.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(own, values).sum(), own)
        unit = info.eps * params.abs().clamp_min(info.tiny)
        moves = torch.where(slope == 0, 0.0, slope * unit).abs()
        if self.param_shape:
            moves = moves.flatten(-len(self.param_shape)).sum(-1)
        return ~(moves <= MAX_ROUNDING_ERROR)

    # ---- checks at the boundary ------------------------------------------------------------------

    def check_params(self, params: Tensor) -> None:
        """Raise ValueError if a decoder's output cannot be this likelihood's parameters."""

    def doubt(self, params: Tensor) -> str:
        """What is probably wrong with a decoder's output although it is valid; "" if nothing is.

        Args:
            params: The decoder's output for several z, shape (B, *data, *param_shape). Its autograd
                graph, if any, shows which function computed it.
        """
        return ""

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        """Raise ValueError if values (*batch, *data) in mask cannot be data of this likelihood."""
        outside = mask & ~self.in_support(values)
        if outside.any():
            raise ValueError(
                f"expected {name} {self.support} for {type(self).__name__}, got "
                f"{_first_and_more(values[outside])}; {self._advice_on_values}"
            )

    # ---- sums over elements ----------------------------------------------------------------------

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Σ over masked elements of log p(t|z), shape (*sample, B).

        Args:
            params: Parameters, shape (*sample, B, E, *param_shape).
            values: Data, shape (B, E), finite everywhere.
            mask: Which elements count, shape (B, E).
        """
        if self.placeholder:  # unobserved values are 0 already
            values = torch.where(mask, values, self.placeholder)
        return torch.where(mask, self.log_prob(params, values), 0.0).sum(-1)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        """What `pairwise_log_prob` needs from parameters (N, E, *param_shape), computed once."""
        return (params,)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        """`masked_log_prob` of every query under every one of N parameter sets, shape (N, B).

        This default goes, in chunks, through the elements that each query has in its mask. Families
        that can do so use matrix products instead.

        Args:
            kept: What `to_keep` returned for the parameters.
            values: Data, shape (B, E), finite everywhere.
            mask: Which elements count, shape (B, E).
        """
        (params,) = kept
        elements = self.elements_in(mask)
        likelihood = self.of_elements(elements)
        values, mask = values.gather(1, elements), mask.gather(1, elements)
        row_bytes = elements.numel() * params[:1, :1].nbytes
        pieces = [
            likelihood.masked_log_prob(likelihood.only(piece[:, elements], mask), values, mask)
            for piece in params.split(max(_CHUNK_BYTES // max(row_bytes, 1), 1))
        ]
        return torch.cat(pieces)

    def pairwise_of_observed(
        self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor
    ) -> Tensor:
        """`pairwise_log_prob` without the elements that no query has in its mask.

        Such elements would add 0, but they would change how matrix products are rounded.
        """
        elements = mask.any(0).nonzero()[:, 0]
        if len(elements) == mask.shape[1]:
            return self.pairwise_log_prob(kept, values, mask)
        likelihood = self.of_elements(elements)
        own = tuple(part.transpose(0, 1)[elements].transpose(0, 1) for part in kept)
        return likelihood.pairwise_log_prob(own, values[:, elements], mask[:, elements])

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """F v for each element in mask, 0 elsewhere; F is its Fisher matrix, v a tangent of params.

        This default takes F to be diagonal.

        Args:
            params: Parameters, shape (*sample, B, E, *param_shape).
            tangents: v, shape (*more, *sample, B, E, *param_shape).
            mask: Which elements count, shape (B, E).
        Returns:
            Shape of tangents.
        """
        counts = mask.reshape(*mask.shape, *[1] * len(self.param_shape))
        return tangents * torch.where(counts, self.fisher(params), 0.0)

    def curvature_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """As `fisher_product`, with a matrix for steps and proposals in place of F.

        It is F itself unless F is expensive; a family may then give a matrix that is positive
        semi-definite and near F or above. Answers stay exact: proposals are weighed, and steps are
        judged by log p.
        """
        return self.fisher_product(params, tangents, mask)

    # ---- saving ----------------------------------------------------------------------------------

    def to_parts(self) -> Contents:
        """The settings that are tensors, and the name and other settings as JSON stores them."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
            if name not in tensors
        }
        return tensors, {"name": type(self).__name__, "settings": plain}

    @staticmethod
    def from_parts(parts: Contents) -> "Likelihood":
        """The likelihood that `to_parts` described.

        Raises:
            ModelFormatError: There is no such likelihood, or it has no such settings.
        """
        tensors, description = parts
        try:
            likelihood = _families()[description["name"]]
            return likelihood._from_settings(description["settings"], tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(
                f"expected a known likelihood, got {reprlib.repr(description)}: "
                f"{first_line(error)}; import the module of a likelihood of your own first"
            ) from error

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> "Likelihood":
        return cls(**settings, **tensors)


def _families() -> dict[str, type[Likelihood]]:
    """Every concrete likelihood, by name."""
    found, classes = {}, [Likelihood]
    for family in classes:  # the list grows as the loop finds subclasses
        classes += family.__subclasses__()
        if not family.__abstractmethods__:
            found[family.__name__] = family
    return found


def _first_and_more(values: Tensor) -> str:
    """The first of several values outside the support, and how many more there are, in words."""
    more = f" and {len(values) - 1} more outside" if len(values) > 1 else ""
    return f"{values[0]:.6g}{more}"
