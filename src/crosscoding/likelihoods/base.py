"""The contract of every likelihood p(t|z) that factorises over the elements of t.

The decoder's output arrives as one tensor of parameters, shape (*sample, E, *param_shape), with the
E elements of a datum in one dimension: param_shape is () for a likelihood of one parameter an
element and (P,) for P of them. Given z, observed and unobserved elements are independent, so a sum
over observed elements is log p(x|z) and a sum over the others log p(y|z).
"""

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from crosscoding.errors import ModelFormatError, first_line
from crosscoding.persistence.folder import Contents

_CHUNK_BYTES = 64 * 2**20
LOST = 0.05  # nats: as much as the error of log p(x) that a trusted answer may have


class Likelihood(ABC):
    """What is asked of every likelihood. All log-probabilities are in nats and per element.

    Attributes:
        param_shape: Shape of an element's parameters: the decoder's output is (B, *data,
            *param_shape), or a tuple of P tensors (B, *data) where param_shape is (P,).
        support: In words, which values can be observed.
        takes: In words, which parameters p(t|z) exists for.
        infinite: Infinities that a parameter may be, such as −inf for the logit of a class that
            cannot be.
        num_kept: How many tensors `to_keep` gives.
        by_rows: Whether a decoder's last linear layer, where it shows one, may be run in part, with
            rows of it for each element. Not for `Mixed`, whose elements differ in their rows, nor
            for a pair of location and dispersion, which come out of different layers.
        by_element: Whether all elements are of one kind. Not of `Mixed`, whose elements may have
            different numbers of parameters.
        per_element: Settings that may be tensors which broadcast to the data's shape, and how many
            dimensions of their own they have after that.
        kind: What values are: "real", "binary" (0 and 1, and between as a cross-entropy), "counts"
            or "classes". `VAE.check` compares data with a plain law of that kind, so set it in a
            likelihood of your own; with "" it makes no comparison. Of `Mixed`, see its parts.
    """

    param_shape: tuple[int, ...] = ()
    support: str
    takes: str = "finite parameters"
    infinite: tuple[float, ...] = ()
    num_kept: int = 1
    by_rows: bool = True
    by_element: ClassVar[bool] = True
    per_element: ClassVar[dict[str, int]] = {}
    kind: ClassVar[str] = ""

    @abstractmethod
    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """log p(t|z) of each element, the broadcast shape of (*sample, E) and values."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def variance(self, params: Tensor) -> Tensor:
        """Var[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def fisher(self, params: Tensor) -> Tensor:
        """Fisher information of each parameter, −E[∂² log p(t|z)], shape of params.

        The diagonal of the Fisher matrix F; all of it is in `fisher_product`.
        """

    @abstractmethod
    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        """Base noise that `draw` turns into data, of the given shape: a number an element."""

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A draw of t given z for each element, from base noise."""

    @abstractmethod
    def in_support(self, values: Tensor) -> Tensor:
        """Whether each value of data (*batch, *data) can be observed at all, boolean."""

    @property
    def width(self) -> float | None:
        """Distance of neighbouring values if p(t|z) is the mass of an interval; None otherwise."""
        return None

    def other_reading(self) -> "Likelihood | None":
        """What a decoder's output may have meant instead, such as a rate and not its logarithm.

        A likelihood of the same parameter shape, or None if nothing is easily confused.
        `VAE.check` tries it on counts that do not fit.
        """
        return None

    # ---- where parameters say nothing, or not enough ---------------------------------------------

    def allowed(self, params: Tensor) -> Tensor:
        """Whether each number that a decoder outputs is finite, or one of `infinite`, boolean."""
        found = params.isfinite()
        for limit in self.infinite:
            found = found | (params == limit)
        return found

    def valid(self, params: Tensor) -> Tensor:
        """Whether p(t|z) of each element exists, boolean, shape (*sample, E)."""
        found = self.allowed(params)
        return found.flatten(-len(self.param_shape)).all(-1) if self.param_shape else found

    def describe(self, params: Tensor, element: int) -> str:
        """One element's parameters, out of (E, *param_shape), and what they should be, in words."""
        numbers = ", ".join(f"{number:.4g}" for number in params[element].reshape(-1).tolist())
        return f"{numbers} ({type(self).__name__} takes {self.takes})"

    def only(self, params: Tensor, mask: Tensor, other: float = 1.0) -> Tensor:
        """The parameters of the elements in mask, (B, E), and `other` in place of the rest.

        What is not observed may be infinite or NaN. Put away before any arithmetic, it reaches
        neither a sum nor a gradient. (1 is a parameter that every likelihood can have.)
        """
        counts = mask.reshape(*mask.shape, *[1] * len(self.param_shape))
        return torch.where(counts, params, other)

    def may_be_lost(self, values: Tensor) -> Tensor:
        """Of which values (*shape, E) there are parameters that `lost` is true for, boolean.

        Where it is false for all that is observed, nothing is decoded to find out.
        """
        return torch.ones_like(values, dtype=torch.bool)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        """Whether the parameters no longer tell log p(t|z), boolean, (*sample, E).

        True where they are rounded too coarsely: where one unit in the last place of them moves
        log p(t|z) by more than 0.05 nats. A likelihood that clamps its parameters adds where it
        does: an answer whose draws lie there is not trusted. One of your own may override this.

        Args:
            params: Parameters, shape (*sample, E, *param_shape).
            values: Data, which broadcast to (*sample, E).
        """
        info = torch.finfo(params.dtype)
        with torch.enable_grad():
            own = params.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(own, values).sum(), own)
        unit = info.eps * params.abs().clamp_min(info.tiny)
        moves = torch.where(slope == 0, 0.0, slope * unit).abs()
        if self.param_shape:
            moves = moves.flatten(-len(self.param_shape)).sum(-1)
        return ~(moves <= LOST)

    # ---- the decoder's output, as it comes -------------------------------------------------------

    def data_shape(self, output: Sequence[int]) -> torch.Size | None:
        """Shape of a datum whose parameters have shape `output`, or None if that cannot be."""
        num = len(output) - len(self.param_shape)
        fits = num > 0 and tuple(output[num:]) == self.param_shape
        return torch.Size(output[:num]) if fits else None

    def flat_shape(self, output: Sequence[int]) -> torch.Size:
        """Shape of the parameters of a datum laid out flat: (E, *param_shape)."""
        data_shape = torch.Size(output[: len(output) - len(self.param_shape)])
        return torch.Size((data_shape.numel(), *self.param_shape))

    def output_shape(self) -> str:
        """The shape of a datum's parameters in words, for messages."""
        return ", ".join(["*data", *map(str, self.param_shape)])

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """The parameters as one tensor, from a decoder that outputs several.

        Args:
            outputs: A tensor for each parameter of an element, (B, *data); or a single tensor,
                which is taken as it is.
        Raises:
            ValueError: There are not as many as parameters, or their shapes differ.
        """
        outputs, name = tuple(outputs), type(self).__name__
        for output in outputs:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"expected tensors from the decoder for {name}, got {type(output).__name__} "
                    "among them"
                )
        if len(outputs) == 1:
            return outputs[0]
        num = math.prod(self.param_shape)
        if len(outputs) != num:
            wanted = "one tensor"
            if self.param_shape:
                wanted = f"{num} tensors, or one whose last dimension is {num},"
            raise ValueError(
                f"expected {wanted} from the decoder for {name}, got {len(outputs)}; "
                f"{self._advice_on(len(outputs))}"
            )
        if len({output.shape for output in outputs}) > 1:
            raise ValueError(
                f"expected {num} tensors of the same shape from the decoder for {name}; where one "
                "holds for several elements, expand it to the shape of the others"
            )
        return torch.stack(outputs, dim=-1)

    def _advice_on(self, num: int) -> str:
        """What to do about a decoder that outputs `num` tensors, which is too many or too few."""
        return (
            "use Mixed if each is for columns of its own, or wrap the decoder in a module that "
            f"outputs what {type(self).__name__} takes"
        )

    def check_params(self, params: Tensor) -> None:  # noqa: B027 (most have nothing to check)
        """Raise ValueError if a decoder's output cannot be this likelihood's parameters."""

    def doubt(self, params: Tensor) -> str:
        """What is most likely wrong about a decoder's output that is allowed; "" if nothing is.

        Args:
            params: As the decoder has them for several z, shape (B, *data, *param_shape). Their
                autograd graph, where they have one, shows which function they come out of.
        """
        return ""

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        """Raise ValueError if values (*batch, *data) in mask cannot be data of this likelihood."""
        outside = mask & ~self.in_support(values)
        if outside.any():
            raise ValueError(
                f"expected {name} {self.support} for {type(self).__name__}, got "
                f"{first_and_more(values[outside])}; scale the data as the model was trained on it"
            )

    # ---- settings that each element has its own of -----------------------------------------------

    def for_data(self, data_shape: Sequence[int], like: Tensor) -> "Likelihood":
        """The same likelihood with what it holds per element laid out flat, as the decoder's.

        Raises:
            ValueError: A setting is of another dtype or on another device than the decoder's
                output, or does not broadcast to the data's shape.
        """
        flat = {}
        for name, value in self._tensors().items():
            own = value.ndim - self.per_element[name]
            if value.dtype != like.dtype or value.device != like.device:
                raise ValueError(
                    f"expected the {name}'s dtype and device to be the decoder's, {like.dtype} on "
                    f"{like.device}, got {value.dtype} on {value.device}"
                )
            try:
                shape = (*data_shape, *value.shape[own:])
                flat[name] = value.expand(shape).reshape(-1, *value.shape[own:]).clone()
            except RuntimeError:
                raise ValueError(
                    f"expected a {name} that broadcasts to the data's shape {tuple(data_shape)}, "
                    f"got {tuple(value.shape[:own])}"
                ) from None
        return self._with(flat)

    def elements_in(self, mask: Tensor) -> Tensor:
        """The elements of each query that are in mask, (B, E), in order: (B, E').

        E' is as large as the query with most asks for; those of the others are filled up with
        elements that are not in mask. All where no query has any, as there is no work with none.
        """
        most = int(mask.sum(1).max()) if len(mask) else 0
        order = mask.to(torch.int8).sort(dim=1, descending=True, stable=True)[1]
        return order[:, :most] if most else order

    def outputs_of(self, elements: Tensor) -> Tensor:
        """Where a decoder's output, laid out flat, has the parameters of elements (B, E')."""
        num = math.prod(self.param_shape)
        own = torch.arange(num, device=elements.device)
        return (elements[..., None] * num + own).flatten(-2)

    def of_elements(self, elements: Tensor) -> "Likelihood":
        """The same for some elements of each query, (B, E'), of data laid out flat."""
        return self._with({name: value[elements] for name, value in self._tensors().items()})

    def select(self, index: Tensor | slice) -> "Likelihood":
        """The same for some queries of those that `of_elements` was asked for."""
        return self._with({name: value[index] for name, value in self._tensors().items()})

    def trimmed(self, num: int) -> "Likelihood":
        """The same for the first `num` of the elements that `of_elements` was asked for."""
        return self._with({name: value[:, :num] for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        """The settings that are tensors, by name."""
        settings = {name: getattr(self, name) for name in self.per_element}
        return {name: value for name, value in settings.items() if isinstance(value, Tensor)}

    def _with(self, settings: dict[str, Tensor]) -> Self:
        return replace(self, **settings) if settings else self  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue]

    # ---- sums over elements ----------------------------------------------------------------------

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Σ over masked elements of log p(t|z), shape (*sample, B).

        Args:
            params: Parameters, shape (*sample, B, E, *param_shape).
            values: Data, shape (B, E), finite everywhere.
            mask: Which elements count, shape (B, E).
        """
        return torch.where(mask, self.log_prob(params, values), 0.0).sum(-1)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        """What `pairwise_log_prob` needs of parameters (N, E, *param_shape), worked out once."""
        return (params,)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        """`masked_log_prob` of every query under every one of N parameter sets, shape (N, B).

        Matrix products where the family has such a form; here, in chunks, the elements that each
        query has in its mask.

        Args:
            kept: What `to_keep` made of the parameters.
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

        They would have a say in how products of matrices are rounded, if in no more.
        """
        elements = mask.any(0).nonzero()[:, 0]
        if len(elements) == mask.shape[1]:
            return self.pairwise_log_prob(kept, values, mask)
        likelihood = self.of_elements(elements)
        own = tuple(part[:, elements] for part in kept)
        return likelihood.pairwise_log_prob(own, values[:, elements], mask[:, elements])

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """F v of each element in mask, 0 elsewhere: F its Fisher matrix, v a tangent of params.

        Args:
            params: Parameters, shape (*sample, B, E, *param_shape).
            tangents: v, shape (*more, *sample, B, E, *param_shape).
            mask: Which elements count, shape (B, E).
        Returns:
            Shape of tangents.
        """
        counts = mask.reshape(*mask.shape, *[1] * len(self.param_shape))
        return tangents * torch.where(counts, self.fisher(params), 0.0)

    # ---- saving ----------------------------------------------------------------------------------

    def to_parts(self) -> Contents:
        """The likelihood's name and settings, as JSON has them; settings that are tensors apart."""
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
                f"{first_line(error)}; import the module of one of your own first"
            ) from error

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> "Likelihood":
        return cls(**settings, **tensors)


def nearly_underflown(logarithms: Tensor) -> Tensor:
    """Whether these are logarithms of 1 to 10 times the smallest number above 0 of their dtype.

    Numbers so small are rounded to whole multiples of it, and the next smaller ones to 0: where
    softmax is followed by log, or exp by log, −inf stands for what is merely below e^−103.
    """
    info = torch.finfo(logarithms.dtype)
    log_least = math.log(info.tiny) + math.log(info.eps)
    multiple = (logarithms.double() - log_least).exp()
    whole = (multiple - multiple.round()).abs() <= 4 * info.eps * abs(log_least) * multiple
    return whole & (multiple > 0.5) & (multiple < 10.5)


def _families() -> dict[str, type[Likelihood]]:
    """Every likelihood that can be made, by name."""
    found, classes = {}, [Likelihood]
    for family in classes:  # which grows: those of its subclasses too
        classes += family.__subclasses__()
        if not family.__abstractmethods__:
            found[family.__name__] = family
    return found


def first_and_more(values: Tensor) -> str:
    """The first of values that cannot be data, and how many more there are, in words."""
    more = f" and {len(values) - 1} more outside" if len(values) > 1 else ""
    return f"{values[0]:.6g}{more}"
