"""Likelihoods made of another one, whose settings and kind of data they share."""

import dataclasses
import math
from typing import Any, Self

from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.categories import Categorical
from crosscoding.likelihoods.mixed import Mixed
from crosscoding.likelihoods.samplers import uniforms
from crosscoding.persistence.folder import Contents, prefixed, under

_STREAM = 1_000_003  # of the streams that a number of noise seeds, one that no sampler uses


@dataclasses.dataclass(frozen=True, eq=False)
class OfOther(Likelihood):
    """A likelihood with a field `other`, a likelihood of the same elements.

    Args:
        other: The other likelihood; neither `Mixed` nor a one-hot `Categorical`.
    """

    other: Likelihood

    by_rows = False

    def __post_init__(self) -> None:
        other = self.other
        if not isinstance(other, Likelihood):
            raise TypeError(
                f"expected one of crosscoding.likelihoods in {type(self).__name__}, got {other!r}"
            )
        if isinstance(other, Mixed) or (isinstance(other, Categorical) and other.one_hot):
            raise TypeError(
                f"expected a likelihood of single elements in {type(self).__name__}, got "
                f"{other!r}; use Mixed with a {type(self).__name__} for each group of columns"
            )
        shared = ("support", "placeholder", "kind", "uncertain", "has_cheap_fisher")
        for name in (*shared, "_advice_on_values"):
            object.__setattr__(self, name, getattr(other, name))

    @property
    def num_other(self) -> int:
        """How many parameters the other likelihood has."""
        return math.prod(self.other.param_shape)

    @property
    def per_element(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.other.per_element

    @property
    def width(self) -> float | None:
        return self.other.width

    def other_reading(self) -> Self | None:
        reading = self.other.other_reading()
        return None if reading is None else dataclasses.replace(self, other=reading)

    def in_support(self, values: Tensor) -> Tensor:
        return self.other.in_support(values)

    def _tensors(self) -> dict[str, Tensor]:
        return self.other._tensors()

    def _with(self, settings: dict[str, Tensor]) -> Self:
        return dataclasses.replace(self, other=self.other._with(settings)) if settings else self

    # ---- saving ----------------------------------------------------------------------------------

    def to_parts(self) -> Contents:
        tensors, description = self.other.to_parts()
        names = [f.name for f in dataclasses.fields(self) if f.name != "other"]
        settings = {"other": description, **{name: getattr(self, name) for name in names}}
        return prefixed(tensors, "other"), {"name": type(self).__name__, "settings": settings}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Likelihood:
        other = Likelihood.from_parts((under(tensors, "other"), settings["other"]))
        return cls(**{**settings, "other": other})


def choice_noise(noise: Tensor) -> Tensor:
    """One more uniform number in (0, 1) for each number of base noise, of any family.

    They are hashes of the noise's digits, so that a draw still needs one number per element.
    """
    return uniforms(noise, _STREAM)
