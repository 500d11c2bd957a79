"""Different likelihoods for different columns of a table or channels of an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.layout import ElementGroup
from crosscoding.likelihoods.mixed_heads import Head, Part, columns_named, in_columns
from crosscoding.likelihoods.part_layout import PartLayout
from crosscoding.persistence.folder import Contents, prefixed, under


@dataclass(frozen=True, eq=False)
class Mixed(Likelihood):
    """Consecutive groups of columns, called parts, each with its own likelihood.

    The decoder outputs the parameters of one column after the other along the same dimension, as
    many numbers per column as its likelihood has parameters: two for `Gaussian(None)`, mean and
    scale, and five for `Categorical(5)`. A decoder with a head for each part may instead output a
    tuple of what each part alone would be decoded from: for two Gaussian columns, a class of four
    and a count, tensors of shape (B, 2), (B, 4) and (B, 1).

    Args:
        parts: (likelihood, number of columns) for each part; for one column, the likelihood alone
            is enough. A one-hot `Categorical(K, one_hot=True)` has K columns per variable. Settings
            that are tensors broadcast to (*data, columns) of their part: the data's shape without
            `dim`, followed by the part's columns.
        dim: Which dimension of the data holds the columns, counted from the last: −1 for a table,
            −3 for the channels of images (channels, height, width).

    Example:
        >>> from crosscoding.likelihoods import Categorical, Gaussian, Poisson
        >>> Mixed([(Gaussian(None), 2), Poisson(), Categorical(3)]).data_shape((2 * 2 + 1 + 3,))
        torch.Size([4])
    """

    parts: Sequence[Part | Likelihood]
    dim: int = -1
    _layout: PartLayout = field(init=False, repr=False)

    by_rows = False
    by_element = False
    support = "that fit their columns"

    def __post_init__(self) -> None:
        parts = tuple(_part(part) for part in self.parts)
        if not parts:
            raise ValueError("expected at least one part, got none")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim >= 0:
            raise ValueError(
                f"expected dim to be an int < 0, counted from the last, got {self.dim}"
            )
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "_layout", PartLayout(parts, self.dim))
        object.__setattr__(self, "num_kept", sum(part.num_kept for part, _ in parts))
        cheap = all(part.has_cheap_fisher for part, _ in parts)
        object.__setattr__(self, "has_cheap_fisher", cheap)

    # ---- shapes ----------------------------------------------------------------------------------

    @property
    def pairs(self) -> tuple[Part, ...]:
        """Each part with its number of columns."""
        return self.parts  # pyright: ignore[reportReturnType]

    def other_reading(self) -> "Mixed":
        return Mixed([(part.other_reading() or part, num) for part, num in self.pairs], self.dim)

    def data_shape(self, output: Sequence[int]) -> torch.Size | None:
        shape = list(output)
        if len(shape) < -self.dim or shape[self.dim] != sum(self._layout.outputs):
            return None
        shape[self.dim] = sum(self._layout.columns)
        return torch.Size(shape)

    def flat_shape(self, output: Sequence[int]) -> torch.Size:
        """All parameters of a datum in one dimension, in the decoder's order."""
        return torch.Size((math.prod(output),))

    def output_shape(self) -> str:
        after = [f", *after ({-1 - self.dim} dimensions)"] if self.dim < -1 else []
        return "".join([f"*before, {sum(self._layout.outputs)}", *after])

    def join(self, outputs: Sequence[Head]) -> Tensor:
        """The parameters as one tensor, from a decoder with a head for each part.

        Args:
            outputs: For each part, the tensor or tuple that it alone would be decoded from; or a
                single tensor for all, which is returned as it is.
        Raises:
            ValueError: There is not one output for each part, or one does not fit its part.
        """
        if len(outputs) == 1 < len(self.pairs) and isinstance(outputs[0], Tensor):
            return outputs[0]
        return torch.cat(in_columns(self.pairs, self.dim, outputs), self.dim)

    def for_data(self, data_shape: Sequence[int], like: Tensor) -> "Mixed":
        """The same likelihood for flattened data, one part after the other."""
        others = list(data_shape)
        del others[self.dim]
        num_others = math.prod(others)
        flat = Mixed(
            [(part.for_data((*others, n), like), n * num_others) for part, n in self.pairs]
        )
        if num_others > 1:
            layout = flat._layout.in_order_of(self.places(data_shape, like.device))
            object.__setattr__(flat, "_layout", layout)
        return flat

    def places(
        self, data_shape: Sequence[int], device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """For each part, the indices of its elements and parameters in flattened data and output.

        Shapes (*others, columns) and (*others, columns, *param_shape), where others is the data's
        shape without the columns.
        """
        return self._layout.places(data_shape, device)

    def joined(self, pieces: Sequence[Tensor]) -> Tensor:
        """Flat data, (*shape, E), from those of the parts."""
        return self._layout.joined(pieces)

    # ---- element by element ----------------------------------------------------------------------

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return self.joined(
            [part.log_prob(own, data) for part, own, data in self._layout.split(params, values)]
        )

    def mean(self, params: Tensor) -> Tensor:
        return self.joined([part.mean(own) for part, own in self._layout.split(params)])

    def variance(self, params: Tensor) -> Tensor:
        return self.joined([part.variance(own) for part, own in self._layout.split(params)])

    def fisher(self, params: Tensor) -> Tensor:
        return self._layout.joined_outputs(
            [part.fisher(own) for part, own in self._layout.split(params)]
        )

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        return self._joined_products("fisher_product", params, tangents, mask)

    def curvature_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        return self._joined_products("curvature_product", params, tangents, mask)

    def _joined_products(self, name: str, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """What a method of each part, such as `fisher_product`, returns."""
        masks, directions = self._layout.split_values(mask), self._layout.split(tangents)
        return self._layout.joined_outputs(
            [
                getattr(part, name)(own, direction, counts)
                for (part, own), (_, direction), counts in zip(
                    self._layout.split(params), directions, masks, strict=True
                )
            ]
        )

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        """The noise of each part, in double, one part after the other."""
        pieces = [
            part.noise((*shape[:-1], num), generator=generator, like=like).double()
            for part, num in self.pairs
        ]
        return torch.cat(pieces, -1)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        pieces = zip(self._layout.split(params), noise.split(self._layout.columns, -1), strict=True)
        return self.joined([part.draw(own, base).to(own.dtype) for (part, own), base in pieces])

    # ---- parameters that are invalid or rounded too coarsely -------------------------------------

    def allowed(self, params: Tensor) -> Tensor:
        found = [
            part.allowed(own).flatten(own.ndim - 1 - len(part.param_shape))
            for part, own in self._layout.params_of_parts(params)
        ]
        return torch.cat(found, -1).movedim(-1, self.dim)

    def valid(self, params: Tensor) -> Tensor:
        return self.joined([part.valid(own) for part, own in self._layout.split(params)])

    def describe(self, params: Tensor, element: int) -> str:
        order = self._layout.order
        place = element if order is None else int(order.argsort()[element])
        for (part, own), num in zip(self._layout.split(params), self._layout.columns, strict=True):
            if place < num:
                return part.describe(own, place)
            place -= num
        raise IndexError(f"expected an element below {sum(self._layout.columns)}, got {element}")

    def only(self, params: Tensor, mask: Tensor, other: float = 1.0) -> Tensor:
        pieces = [
            part.only(own, counts, other) for part, own, counts in self._layout.split(params, mask)
        ]
        return self._layout.joined_outputs(pieces)

    def may_be_lost(self, values: Tensor) -> Tensor:
        pieces = zip(self.pairs, self._layout.split_values(values), strict=True)
        return self.joined([part.may_be_lost(data) for (part, _), data in pieces])

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return self.joined(
            [part.lost(own, data) for part, own, data in self._layout.split(params, values)]
        )

    # ---- sums ------------------------------------------------------------------------------------

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        sums = [
            part.masked_log_prob(own, data, counts)
            for part, own, data, counts in self._layout.split(params, values, mask)
        ]
        return torch.stack(sums).sum(0)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return tuple(kept for part, own in self._layout.split(params) for kept in part.to_keep(own))

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        total, left = torch.zeros((), dtype=values.dtype, device=values.device), iter(kept)
        columns = zip(
            self._layout.split_values(values), self._layout.split_values(mask), strict=True
        )
        for (part, _), (data, counts) in zip(self.pairs, columns, strict=True):
            own = tuple(next(left) for _ in range(part.num_kept))
            total = total + part.pairwise_of_observed(own, data, counts)
        return total

    def pairwise_of_observed(
        self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor
    ) -> Tensor:
        return self.pairwise_log_prob(kept, values, mask)

    # ---- checks at the boundary ------------------------------------------------------------------

    def in_support(self, values: Tensor) -> Tensor:
        pieces = self._layout.columns_of_parts(values)
        inside = [part.in_support(data) for (part, _), data in zip(self.pairs, pieces, strict=True)]
        return torch.cat(inside, -1).movedim(-1, self.dim)

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        data = self._layout.columns_of_parts(values)
        masks = self._layout.columns_of_parts(mask)
        start = 0
        for (part, num), own, counts in zip(self.pairs, data, masks, strict=True):
            try:
                part.check_values(own, counts, name)
            except ValueError as error:
                raise ValueError(f"in {columns_named(start, num)}: {error}") from error
            start += num

    def check_params(self, params: Tensor) -> None:
        for part, own in self._layout.params_of_parts(params):
            part.check_params(own)

    def doubt(self, params: Tensor) -> str:
        doubts = [part.doubt(own) for part, own in self._layout.params_of_parts(params)]
        return next(filter(None, doubts), "")

    # ---- some elements -------------------------------------------------------------------------

    def elements_in(self, mask: Tensor) -> Tensor:
        """As in the base class, but part by part: queries are padded within each part."""
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        pairs = zip(self._layout.split_values(places), self._layout.split_values(mask), strict=True)
        found = [
            own.gather(1, part.elements_in(counts))
            for (part, _), (own, counts) in zip(self.pairs, pairs, strict=True)
            if counts.any() or not mask.any()
        ]
        return torch.cat(found, 1)

    def groups(self, num: int, device: torch.device) -> list[ElementGroup]:
        elements = self._layout.split_values(torch.arange(num, device=device))
        outputs = self._layout.split(torch.arange(sum(self._layout.outputs), device=device))
        found = []
        for own, (part, places) in zip(elements, outputs, strict=True):
            for group in part.groups(len(own), device):
                chosen = places.flatten()[group.outputs]
                found.append(ElementGroup(group.likelihood, own[group.elements], chosen))
        return found

    def outputs_of(self, elements: Tensor) -> Tensor:
        found, start = [], 0
        for (part, num), own in zip(self.pairs, self._layout.within_parts(elements), strict=True):
            found.append(start + part.outputs_of(own))
            start += num * math.prod(part.param_shape)
        places, order = torch.cat(found, -1), self._layout.output_order
        return places if order is None else order[places]

    def of_elements(self, elements: Tensor) -> "Mixed":
        """The same likelihood for some elements of each query, (B, E'), part after part."""
        own = zip(self.pairs, self._layout.within_parts(elements), strict=True)
        parts = [(part.of_elements(e), e.shape[-1]) for (part, _), e in own if e.shape[-1]]
        return Mixed(parts)

    def select(self, index: Tensor | slice) -> "Mixed":
        chosen = Mixed([(part.select(index), num) for part, num in self.pairs])
        object.__setattr__(chosen, "_layout", self._layout.with_pairs(chosen.pairs))
        return chosen

    # ---- saving ----------------------------------------------------------------------------------

    def to_parts(self) -> Contents:
        tensors, parts = {}, []
        for index, (part, num) in enumerate(self.pairs):
            own, description = part.to_parts()
            tensors |= prefixed(own, str(index))
            parts.append([description, num])
        return tensors, {"name": "Mixed", "settings": {"parts": parts, "dim": self.dim}}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> "Mixed":
        parts = [
            (Likelihood.from_parts((under(tensors, str(index)), description)), num)
            for index, (description, num) in enumerate(settings["parts"])
        ]
        return cls(parts, settings["dim"])


def _part(part: Part | Likelihood) -> Part:
    """A part with its number of columns.

    Raises:
        TypeError: It is not a likelihood, or is itself a `Mixed`.
        ValueError: The number is not ≥ 1, or the likelihood cannot have so many columns.
    """
    likelihood, num = part if isinstance(part, (tuple, list)) and len(part) == 2 else (part, 1)
    if not isinstance(likelihood, Likelihood) or isinstance(likelihood, Mixed):
        raise TypeError(
            "expected parts of crosscoding.likelihoods, not mixed themselves, with their number of "
            f"columns, got {likelihood!r}"
        )
    if isinstance(num, bool) or not isinstance(num, int):
        raise TypeError(f"expected a number of columns, got {num!r}")
    if num < 1 or likelihood.data_shape((num, *likelihood.param_shape)) is None:
        raise ValueError(f"expected a number of columns that {likelihood!r} can have, got {num}")
    return likelihood, num
