"""`Column`: what a column of a table contains, and its units: the user's and the model's.

| kind | values | in tensors | likelihood |
| --- | --- | --- | --- |
| number | any finite number | (value − shift) / scale | `Gaussian` |
| positive | numbers > 0 | value / scale | `LogNormal` |
| count | 0, 1, 2, … | itself | `Poisson`, or `NegativeBinomial` |
| class | one of several categories | its place among them | `Categorical` |
| ordinal | the same, in order | its place among them | `Ordinal` |
| boolean | one of two | 0 or 1 | `Bernoulli` |
| date | points in time | (seconds since 1970 − shift) / scale | `Gaussian` |

Dates and durations are counted in seconds; the kind of a duration is number.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.errors import ModelFormatError, NonFiniteError, unknown_name
from crosscoding.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LogNormal,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
)

KINDS = ("number", "positive", "count", "class", "ordinal", "boolean", "date")
LISTED = ("class", "ordinal", "boolean")  # kinds with categories
Limits = Mapping[str | int, tuple[np.ndarray, np.ndarray]]
"""Low and high bounds of columns, in their units, each of shape (N,), by the column's name."""

_DTYPES = {
    "count": "int64",
    "class": "object",
    "ordinal": "object",
    "boolean": "bool",
    "date": "datetime64[us]",
}
_CUT_DISTANCE = 4.0  # between an ordinal's cut points: a class between two can reach tanh(1) = 0.76


@dataclass(frozen=True)
class Column:
    """What one column of a table contains.

    Args:
        name: The column's name, text or a whole number.
        kind: One of "number", "positive", "count", "class", "ordinal", "boolean" and "date".
        categories: The values of a class, an ordinal (in order) or a boolean (false, true): text,
            numbers or booleans. By default a boolean has False and True.
        dtype: The pandas dtype of the column in a new DataFrame, such as "Int64" or
            "datetime64[us, UTC]"; by default the usual one for the kind.
        shift, scale: A number t in tensors means the value shift + scale · t, scale > 0, in the
            column's units (seconds for dates and durations). Only for numbers and dates; a
            positive number has a scale only, and all other kinds have neither.
        step: Values are rounded to multiples of it: 1 for whole numbers; None if not rounded.
        total_count: For a count, the r > 0 of its negative binomial; None for a Poisson variable.

    Raises:
        ValueError: A setting is not possible, or does not suit the kind.

    Example:
        >>> Column("age", "number", shift=40.0, scale=12.0, step=1.0).to_tensor(np.array([52.0]))
        array([1.])
    """

    name: str | int
    kind: str
    categories: tuple[Any, ...] = ()
    dtype: str = ""
    shift: float = 0.0
    scale: float = 1.0
    step: float | None = None
    total_count: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _plain(self.name))
        if isinstance(self.name, bool) or not isinstance(self.name, (str, int)):
            raise ValueError(
                f"expected column names that are text or whole numbers, got {self.name!r}; rename "
                "the columns first"
            )
        if self.kind not in KINDS:
            raise ValueError(f"{self.where}: {unknown_name('kind', self.kind, KINDS)}")
        object.__setattr__(self, "dtype", self.dtype or _DTYPES.get(self.kind, "float64"))
        self._check_categories()
        self._check_numbers()

    def _check_categories(self) -> None:
        categories = tuple(map(_plain, self.categories))
        if self.kind == "boolean" and not categories:
            categories = (False, True)
        object.__setattr__(self, "categories", categories)
        if self.kind not in LISTED:
            if categories:
                raise ValueError(f"{self.where}: expected no categories for a {self.kind}")
            return
        if not categories or (self.kind == "boolean" and len(categories) != 2):
            wanted = "two categories" if self.kind == "boolean" else "categories"
            raise ValueError(f"{self.where}: expected {wanted}, got {list(categories)}")
        if len(set(categories)) < len(categories):
            raise ValueError(f"{self.where}: expected distinct categories, got {list(categories)}")
        for category in categories:
            if not isinstance(category, (str, bool, int, float)) or category != category:
                raise ValueError(
                    f"{self.where}: expected categories that are text, numbers or booleans, got "
                    f"{category!r}; convert them with .astype(str)"
                )

    def _check_numbers(self) -> None:
        """Raise ValueError unless shift, scale, step and total count are possible."""
        for name, least in (("shift", -math.inf), ("scale", 0.0), ("total_count", 0.0)):
            value = getattr(self, name)
            if value is not None and not least < value < math.inf:
                raise ValueError(f"{self.where}: expected a finite {name} > {least}, got {value}")
        if self.step is not None and not 0 < self.step < math.inf:
            raise ValueError(f"{self.where}: expected a step > 0 or None, got {self.step}")
        fixed = self.kind not in ("number", "date")
        if fixed and (self.shift or (self.scale != 1 and self.kind != "positive")):
            raise ValueError(f"{self.where}: expected no shift or scale for a {self.kind}")

    @property
    def where(self) -> str:
        """The column, at the start of messages."""
        return f"column {self.name!r}"

    @property
    def is_listed(self) -> bool:
        """Whether values are categories."""
        return self.kind in LISTED

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the column's numbers in tensors."""
        num = max(len(self.categories), 2)
        middle, total = 0.5 * (num - 2), self.total_count
        return {
            "number": lambda: Gaussian(None, log_variance=True),
            "date": lambda: Gaussian(None, log_variance=True),
            "positive": lambda: LogNormal(None, log_variance=True),
            "count": lambda: Poisson() if total is None else NegativeBinomial(total),
            "class": lambda: Categorical(num),
            "ordinal": lambda: Ordinal([_CUT_DISTANCE * (k - middle) for k in range(num - 1)]),
            "boolean": Bernoulli,
        }[self.kind]()

    def to_tensor(self, values: np.ndarray) -> np.ndarray:
        """Numbers of tensors, float64, from values in the column's units; NaN stays NaN."""
        return (values - self.shift) / self.scale

    def in_dtype(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        """`to_tensor` of values, as a tensor.

        Raises:
            NonFiniteError: A number is too large for the dtype, or too small if it is positive.
        """
        numbers = torch.from_numpy(self.to_tensor(values)).to(dtype)
        lost = numbers.isinf() | (numbers == 0) if self.kind == "positive" else numbers.isinf()
        if lost.any():
            raise NonFiniteError(
                f"{self.where}: expected numbers that {dtype} can represent in units of "
                f"{self.scale:.6g}, got {values[int(lost.to(torch.int8).argmax())]:.6g}"
            )
        return numbers

    def from_tensor(self, numbers: np.ndarray) -> np.ndarray:
        """Values in the column's units, float64, from numbers of tensors; NaN stays NaN.

        A category's number is rounded to the place of the nearest category.
        """
        values = self.shift + self.scale * np.asarray(numbers, dtype="float64")
        if self.is_listed:  # the likelihood of a single category has a second, unused class
            values = np.clip(np.rint(values), 0, len(self.categories) - 1)
        return values

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values in the column's units, rounded to multiples of its step."""
        step = 1.0 if self.kind == "count" else self.step
        if step is None:
            return values
        if step < 1:  # divide by 10 instead of multiplying by 0.1, which is not exact in binary
            return np.rint(values / step) / np.rint(1 / step)
        return np.rint(values / step) * step

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} ({self.words}), {self.dtype}"

    @property
    def words(self) -> str:
        """Its centre and scale, or its categories."""
        words = {
            "number": f"mean {self.shift:.6g}, standard deviation {self.scale:.6g}",
            "positive": f"geometric mean {self.scale:.6g}",
            "date": f"around {self._date()}, standard deviation {self.scale / 86400:.6g} days",
            "count": "Poisson"
            if self.total_count is None
            else f"total count {self.total_count:.3g}",
        }.get(self.kind) or ", ".join(map(str, self.categories[:6]))
        more = ", …" if len(self.categories) > 6 else ""
        step = "" if self.step is None or self.kind == "date" else f", in steps of {self.step:g}"
        return f"{words}{more}{step}"

    def _date(self) -> str:
        try:
            return str(np.datetime64(round(self.shift), "s"))[:10]
        except (OverflowError, ValueError):
            return f"{self.shift:.6g} s"

    # ---- JSON ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The column as JSON."""
        return {**vars(self), "categories": list(self.categories)}

    @staticmethod
    def from_json(description: Any) -> "Column":
        """The column that `to_json` described.

        Raises:
            ModelFormatError: It does not describe a column.
        """
        try:
            return Column(**{**description, "categories": tuple(description["categories"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ModelFormatError(
                f"expected the description of a column, got {description!r:.80}: {error}"
            ) from error


def mixed_of(likelihoods: Iterable[Likelihood]) -> Mixed:
    """The likelihood of several columns; adjacent ones with equal likelihoods are one part of it.

    Each part is a separate step in every computation, so nine numbers in nine parts take several
    times as long as in one.
    """
    runs = [list(run) for _, run in groupby(likelihoods, key=repr)]
    return Mixed([(run[0], len(run)) for run in runs])


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value
