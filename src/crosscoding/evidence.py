"""Evidence: what is known of a datum, as exact or noisy values, intervals, sets and sums."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscoding.arrays import Numbers, as_tensor, check_values_and_mask, numbers_in
from crosscoding.covariates import Covariates, agreed, flattened, mapped
from crosscoding.errors import NonFiniteError
from crosscoding.evidence_words import EvidenceWords
from crosscoding.isolation import isolated, isolated_class
from crosscoding.linear_evidence import LinearEvidence, linear_evidence
from crosscoding.uncertain_values import UncertainValues, intervals_of, noise_of, sets_of


@isolated_class
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Evidence(EvidenceWords):
    """Observed values x and where they are; everything else is the query y.

    Unobserved values are replaced by 0 on entry, so that whatever was there (NaN included) can
    reach neither a density nor its gradient. Observed values are kept bit for bit.

    Evidence need not be values: `interval`, `one_of` and `linear` make evidence of other kinds, and
    `a & b` combines two pieces of evidence. Answers include every element that is not known
    exactly.

    NumPy arrays become CPU tensors of the same dtype. That is usually float64, while a model is
    usually float32: pass `values.astype("float32")`.

    Args:
        values: Data, shape (*batch, *data), floating point.
        mask: True = observed, boolean, broadcastable to the shape of values. Broadcasting starts
            from the last dimension: one mask for each of B colour images is (B, 1, height, width).
        noise: Standard deviation of Gaussian noise that was added to the observed values, ≥ 0, in
            their units: a number, or numbers that broadcast to the shape of values. 0 means that a
            value is exact.
        given: Covariates of each query, such as labels, for a model whose decoder takes them in
            addition to z: a tensor of shape (*batch, *covariates), or a dict or tuple of tensors.

    Attributes:
        values: The values as a tensor, 0 where nothing was observed.
        mask: Which elements are known, exactly or in part, a tensor of the same shape.
        exact: Which elements are known exactly, of the same shape: they are kept bit for bit.
        uncertain: Noise, intervals and sets of other elements; None if there are none.
        sums: Known sums of elements.
        given: The covariates as tensors, or None.

    Raises:
        TypeError: values or mask is not a tensor or an array, values are not floating point, or
            mask is not boolean.
        ValueError: mask or noise does not broadcast to values or is on another device, noise is
            negative or not finite, or values are on the meta device, which holds no numbers.
        NonFiniteError: An observed value is NaN or infinite.

    Example:
        >>> evidence = Evidence(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
        >>> evidence.num_observed
        tensor(2)
        >>> at_least = Evidence.interval(low=torch.tensor([torch.nan, 2.0, torch.nan]))
        >>> (evidence & at_least).mask
        tensor([True, True, True])
    """

    values: Tensor
    mask: Tensor
    exact: Tensor
    uncertain: UncertainValues | None
    sums: tuple[LinearEvidence, ...]
    given: Covariates

    def __init__(
        self,
        values: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
        *,
        noise: Numbers = 0.0,
        given: Covariates = None,
    ) -> None:
        values, mask = as_tensor(values, "values"), as_tensor(mask, "mask", "bool")
        check_values_and_mask(values, mask)
        try:
            mask = mask.expand(values.shape)
        except RuntimeError:
            raise ValueError(
                f"expected a mask that broadcasts to the values' shape {tuple(values.shape)}, "
                f"got {tuple(mask.shape)}"
            ) from None
        values = values.detach()
        bad = mask & ~values.isfinite()
        if bad.any():
            raise NonFiniteError(
                f"expected finite observed values, got {int(bad.sum())} NaN or infinite, first at "
                f"index {tuple(bad.nonzero()[0].tolist())}; mark missing values as unobserved, "
                "for example with Evidence.from_nan(values)"
            )
        scale = torch.where(mask, noise_of(noise, values), 0.0)
        uncertain = None
        if (scale > 0).any():
            nothing = UncertainValues.nothing(values)
            uncertain = UncertainValues(scale, nothing.low, nothing.high)
        exact = mask & (scale == 0)
        given = mapped(lambda part: as_tensor(part, "covariates").detach().clone(), given)
        self._set(torch.where(mask, values, 0.0), mask.clone(), exact, uncertain, given=given)

    def _set(
        self,
        values: Tensor,
        mask: Tensor,
        exact: Tensor,
        uncertain: UncertainValues | None = None,
        sums: tuple[LinearEvidence, ...] = (),
        given: Covariates = None,
    ) -> "Evidence":
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "exact", exact)
        object.__setattr__(self, "uncertain", uncertain)
        object.__setattr__(self, "sums", sums)
        object.__setattr__(self, "given", given)
        return self

    @classmethod
    def _of_checked(
        cls,
        values: Tensor,
        mask: Tensor,
        exact: Tensor | None = None,
        uncertain: UncertainValues | None = None,
        sums: tuple[LinearEvidence, ...] = (),
        given: Covariates = None,
    ) -> "Evidence":
        """Evidence made from parts of other evidence, which has been checked."""
        exact = mask if exact is None else exact
        return object.__new__(cls)._set(values, mask, exact, uncertain, sums, given)

    @classmethod
    def from_nan(
        cls,
        values: Tensor | np.ndarray,
        *,
        noise: Numbers = 0.0,
        given: Covariates = None,
    ) -> "Evidence":
        """Evidence from data in which NaN means: not observed."""
        values = as_tensor(values, "values")
        return cls(values, ~values.isnan(), noise=noise, given=given)

    @classmethod
    def interval(cls, low: Numbers = -np.inf, high: Numbers = np.inf) -> "Evidence":
        """Elements known to lie between two bounds: low ≤ t ≤ high.

        For censored values ("above 5"), rounded ones ("3.2" is 3.15 to 3.25) and counts ("at least
        4"). Both ends are included, which matters where values are whole numbers: for "more than 4"
        of them, low is 5.

        Args:
            low, high: The bounds, numbers or tensors that broadcast to (*batch, *data), at least
                one of them a tensor of that shape. −∞, ∞ and NaN mean no bound; an element
                without bounds is unobserved.
        Raises:
            TypeError: Neither is a tensor or an array, or one is not floating point.
            ValueError: A low is above its high, or an interval contains no finite number.

        Example:
            >>> Evidence.interval(torch.tensor([3.15, -torch.inf]), torch.tensor([3.25, 0.0])).mask
            tensor([True, True])
        """
        known = intervals_of(low, high)
        nothing = torch.zeros_like(known.low)
        return cls._of_checked(nothing, known.known, torch.zeros_like(known.known), known)

    @classmethod
    def one_of(cls, allowed: Tensor | np.ndarray) -> "Evidence":
        """Elements known to be of one of several classes.

        Args:
            allowed: Which classes each element may have, boolean, shape (*batch, *data, K), with K
                the largest number of classes of an element: 2 where elements are 0 or 1, such as
                those of a one-hot variable. An element whose classes are all allowed is unobserved.
                For counts, class k is the count k, and counts from K on are not allowed.
        Raises:
            TypeError: allowed is not a boolean tensor or array.
            ValueError: A set has no members.

        Example:
            >>> allowed = torch.tensor([[True, True, False], [True, True, True]])
            >>> Evidence.one_of(allowed).mask
            tensor([ True, False])
        """
        known = sets_of(numbers_in(allowed, "allowed", "bool"))
        nothing = torch.zeros_like(known.noise)
        return cls._of_checked(nothing, known.known, torch.zeros_like(known.known), known)

    @classmethod
    def linear(
        cls,
        operator: Tensor | np.ndarray,
        values: Tensor | np.ndarray,
        noise: Numbers = 0.0,
    ) -> "Evidence":
        """Known sums of elements: A t = b, with or without Gaussian noise.

        For totals, averages, and blurred, down-sampled or projected pictures. The elements that
        enter a sum must have a `Gaussian` likelihood, unless they are known exactly.

        Args:
            operator: A, shape (m, *data), or (*batch, m, *data) with one for each query. Where both
                readings fit, it is the latter if its shape begins with that of values.
            values: b, shape (*batch, m). NaN where a query lacks a number.
            noise: Standard deviation of the noise in b, ≥ 0, a number or numbers that broadcast to
                values. Where it is 0, or below rounding, completions satisfy the sum up to
                rounding.
        Raises:
            TypeError: operator or values is not a tensor or an array, or not floating point.
            ValueError: Their shapes, dtypes or devices do not fit, or noise is negative.
            NonFiniteError: A coefficient is NaN or infinite, or a value is infinite.

        Example:
            >>> total = Evidence.linear(torch.ones(1, 4), torch.tensor([10.0]))
            >>> total.values.shape, total.num_observed
            (torch.Size([4]), tensor(0))
        """
        part = linear_evidence(
            numbers_in(operator, "operator"), numbers_in(values, "values"), noise
        )
        nothing = part.values.new_zeros(*part.batch_shape, *part.data_shape)
        none = torch.zeros_like(nothing, dtype=torch.bool)
        return cls._of_checked(nothing, none, none, sums=(part,))

    @classmethod
    def all_of(cls, parts: Iterable["Evidence"]) -> "Evidence":
        """All of these pieces of evidence combined: `a & b` for more than two.

        Raises:
            ValueError: There are none, or what `&` raises.
        """
        found: Evidence | None = None
        for part in parts:
            found = part if found is None else found & part
        if found is None:
            raise ValueError("expected evidence, got none")
        return found

    @property
    def num_observed(self) -> Tensor:
        """Total number of elements that are known, exactly or in part, a tensor of shape ()."""
        return self.mask.sum()

    def with_sums(self, sums: tuple[LinearEvidence, ...]) -> "Evidence":
        """The same evidence with these known sums, which fit it, instead of its own."""
        own = self.values, self.mask, self.exact, self.uncertain
        return Evidence._of_checked(*own, sums, self.given)

    def with_given(self, given: Covariates) -> "Evidence":
        """The same evidence with these covariates, one row per query, instead of its own."""
        given = mapped(lambda part: as_tensor(part, "covariates"), given)
        own = self.values, self.mask, self.exact, self.uncertain
        return Evidence._of_checked(*own, self.sums, given)

    def in_dtype(self, dtype: torch.dtype) -> "Evidence":
        """The same evidence in another dtype if it has only sets and no numbers; else itself."""
        numbers = self.sums or self.has_value.any()
        if (
            self.values.dtype == dtype
            or numbers
            or (self.uncertain is not None and self.uncertain.is_bounded.any())
        ):
            return self
        uncertain = self.uncertain and self.uncertain.to(dtype)
        own = self.values.to(dtype), self.mask, self.exact, uncertain
        return Evidence._of_checked(*own, given=self.given)

    @property
    def has_value(self) -> Tensor:
        """Which elements have a value, exact or with noise, shape (*batch, *data)."""
        return self.exact if self.uncertain is None else self.exact | (self.uncertain.noise > 0)

    @property
    def is_exact(self) -> bool:
        """Whether the evidence consists of exact values only."""
        return self.uncertain is None and not self.sums

    def flatten(self, num_data_dims: int) -> "Evidence":
        """The same evidence with its batch dimensions merged into one, shape (B, *data)."""
        data_shape = self.values.shape[self.values.ndim - num_data_dims :]
        num_queries = self.values.shape[: self.values.ndim - num_data_dims].numel()
        shape = torch.Size((num_queries, *data_shape))
        return Evidence._of_checked(
            self.values.reshape(shape),
            self.mask.reshape(shape),
            self.exact.reshape(shape),
            self.uncertain and self.uncertain.reshape(shape),
            tuple(part.flatten() for part in self.sums),
            flattened(self.given, self.values.ndim - num_data_dims),
        )

    @isolated
    def __and__(self, other: "Evidence") -> "Evidence":
        """Both pieces of evidence combined; they are about data of one shape.

        Evidence for one query may be combined with that for a batch of them.

        Raises:
            ValueError: The data differ in shape, dtype or device; both give a value for an element,
                unless the values are exact and equal; or they contradict each other.
        """
        if not isinstance(other, Evidence):
            return NotImplemented
        return _combined(*_alike(self, other))

    def __getitem__(self, index: int | slice | Tensor) -> "Evidence":
        """Entries of the batch, indexed along the first dimension."""
        return Evidence._of_checked(
            self.values[index],
            self.mask[index],
            self.exact[index],
            self.uncertain and self.uncertain[index],
            tuple(part[index] for part in self.sums),
            mapped(lambda tensor: tensor[index], self.given),
        )


def _alike(one: Evidence, other: Evidence) -> tuple[Evidence, Evidence]:
    """Both pieces of evidence, expanded to the larger of their batches and in one dtype.

    Raises:
        ValueError: Their data differ in shape, dtype or device.
    """
    small, large = sorted((one, other), key=lambda part: part.values.ndim)
    shape, num = large.values.shape, small.values.ndim
    if shape[large.values.ndim - num :] != small.values.shape:
        raise ValueError(
            "expected evidence of the same shape, or for one query and a batch of them, got "
            f"{tuple(one.values.shape)} and {tuple(other.values.shape)}"
        )
    if one.values.device != other.values.device:
        raise ValueError(
            f"expected evidence on one device, got {one.values.device} and {other.values.device}"
        )
    one, other = one.in_dtype(other.values.dtype), other.in_dtype(one.values.dtype)
    if one.values.dtype != other.values.dtype:
        raise ValueError(
            f"expected evidence of one dtype, got {one.values.dtype} and {other.values.dtype}; "
            "convert the values with .to(...)"
        )
    return _expanded(one, shape), _expanded(other, shape)


def _expanded(evidence: Evidence, shape: torch.Size) -> Evidence:
    """The same evidence for each query of a larger batch."""
    if evidence.values.shape == shape:
        return evidence
    num_data_dims = evidence.values.ndim  # it is for one query
    for part in evidence.sums:
        num_data_dims = evidence.values.ndim - len(part.batch_shape)
    batch = shape[: len(shape) - num_data_dims]
    return Evidence._of_checked(
        evidence.values.expand(shape),
        evidence.mask.expand(shape),
        evidence.exact.expand(shape),
        evidence.uncertain and evidence.uncertain.expand(shape),
        tuple(part.expand(batch) for part in evidence.sums),
        mapped(lambda part: part.expand(*batch, *part.shape), evidence.given),
    )


def _combined(one: Evidence, other: Evidence) -> Evidence:
    """Two pieces of evidence on the same queries combined."""
    both = one.has_value & other.has_value
    twice = both & ~(one.exact & other.exact & (one.values == other.values))
    if twice.any():
        index = tuple(twice.nonzero()[0].tolist())
        raise ValueError(
            f"expected at most one value for each element, got {one.values[index]:.6g} and "
            f"{other.values[index]:.6g} at index {index}; give the mean of repeated measurements, "
            "weighted by 1 / noise²"
        )
    values = torch.where(one.has_value, one.values, other.values)
    exact, uncertain = one.exact | other.exact, one.uncertain or other.uncertain
    if one.uncertain is not None and other.uncertain is not None:
        uncertain = one.uncertain.combined(other.uncertain)
    if uncertain is not None:
        outside = exact & uncertain.excludes(values)
        if outside.any():
            index = tuple(outside.nonzero()[0].tolist())
            raise ValueError(
                "expected evidence that agrees, got a value outside the element's interval or set: "
                f"{values[index]:.6g} at index {index}"
            )
        uncertain = uncertain.without(exact)
    return Evidence._of_checked(
        values,
        one.mask | other.mask,
        exact,
        uncertain,
        one.sums + other.sums,
        agreed(one.given, other.given),
    )
