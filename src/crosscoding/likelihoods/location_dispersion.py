"""Likelihoods with a location and a positive dispersion, which is a setting or decoded.

The dispersion is the `scale` of a Gaussian, the `total_count` of a negative binomial, or the
`concentration` of a beta-binomial. As a setting it is a number, or a tensor that broadcasts to the
data's shape. None means that the decoder outputs it after the location: the number itself, not its
logarithm.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from crosscoding.isolation import isolated
from crosscoding.likelihoods.base import Likelihood

# In scales: a rounding error this large moves log p by 0.05 nats at 100 scales from the location.
_FEW_DIGITS = 5e-4


class LocationDispersion(Likelihood):
    """A likelihood with parameters (location, dispersion).

    Attributes:
        dispersion: The name of the setting for the second parameter, which is None if decoded.
        advice_on_output: What to do about a decoder whose dispersion is not positive.
        coupled: Whether the Fisher matrix has an off-diagonal entry. It is then an expensive sum.
    """

    dispersion: ClassVar[str] = "scale"
    advice_on_output: ClassVar[str] = "output the scale itself, not its logarithm"
    per_element: ClassVar[dict[str, int]] = {"scale": 0}
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, self.dispersion, or_none=True)
        if self.decoded:
            object.__setattr__(self, "param_shape", (2,))
            object.__setattr__(self, "by_rows", False)
            if self.positive:
                object.__setattr__(self, "takes", f"finite parameters and a {self.dispersion} > 0")

    @property
    def decoded(self) -> bool:
        """Whether the decoder outputs the dispersion too."""
        return getattr(self, self.dispersion) is None

    @property
    def positive(self) -> bool:
        """Whether a decoded dispersion must be > 0. It need not if it is a logarithm."""
        return True

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Location and dispersion of each element, shapes that broadcast to (*sample, E).

        A decoded dispersion that is not > 0 becomes NaN, which raises if the element is observed.
        """
        if self.decoded:
            dispersion = params[..., 1]
            return params[..., 0], torch.where(dispersion > 0, dispersion, torch.nan)
        return params, setting(getattr(self, self.dispersion), params)

    def valid(self, params: Tensor) -> Tensor:
        found = super().valid(params)
        return found & (params[..., 1] > 0) if self.decoded and self.positive else found

    def may_be_lost(self, values: Tensor) -> Tensor:
        """For all values if the dispersion is decoded; else those too large for their digits."""
        if self.decoded:
            return super().may_be_lost(values)
        info = torch.finfo(values.dtype)
        return info.eps * self._size(values) > _FEW_DIGITS

    def _size(self, values: Tensor) -> Tensor:
        """The size of values relative to the differences that matter to log p(t|z)."""
        return (values / setting(getattr(self, self.dispersion), values)).abs()

    def check_params(self, params: Tensor) -> None:
        if self.decoded and self.positive and not (params[..., 1] > 0).all():
            raise ValueError(
                f"expected a decoder whose {self.dispersion} is > 0, got "
                f"{params[..., 1].min():.4g}; {self.advice_on_output}"
            )

    def is_coarse(self, params: Tensor) -> Tensor:
        """Whether one unit in a location's last place exceeds a third of the scale."""
        location, scale = self.split(params)
        return torch.finfo(params.dtype).eps * location.abs() > scale / 3

    @abstractmethod
    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        """The entries of the Fisher matrix of (location, dispersion), each of shape (*sample, E).

        Returns:
            The entry of the location, of the dispersion and, if `coupled`, off the diagonal. If the
            dispersion is a setting, all but the first may be left out.
        """

    def fisher(self, params: Tensor) -> Tensor:
        entries = self.information(params)
        return torch.stack(entries[:2], -1) if self.decoded else entries[0]

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        if not self.coupled:
            return super().fisher_product(params, tangents, mask)
        entries = self._information_where(params, mask)
        if not self.decoded:
            return tangents * entries[0]
        first, second = tangents.unbind(-1)
        location, dispersion, off = entries
        product = [location * first + off * second, off * first + dispersion * second]
        return torch.stack(product, -1)

    def _information_where(self, params: Tensor, mask: Tensor) -> list[Tensor]:
        """`information` of the elements in mask, computed only for these, and 0 elsewhere."""
        num = len(self.param_shape)
        shape = params.shape[: params.ndim - num]
        mask = mask.expand(shape[-2:])
        settings = {name: value.expand(mask.shape)[mask] for name, value in self._tensors().items()}
        chosen = params[..., mask, :] if num else params[..., mask]
        entries = []
        for entry in self._with(settings).information(chosen):
            entries.append(params.new_zeros(shape))
            entries[-1][..., mask] = entry
        return entries

    def _advice_on(self, num: int) -> str:
        if self.decoded or num != 2:
            return super()._advice_on(num)
        return f"use {self.dispersion}=None if the second is the {self.dispersion}"


def setting(value: float | Tensor, like: Tensor) -> Tensor:
    """A setting as a tensor of the dtype and on the device of `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def to_check(value: float | Tensor) -> Tensor:
    """A setting as a tensor; a float becomes float32."""
    return torch.as_tensor(value, dtype=torch.float32 if isinstance(value, float) else None)


@isolated
def check_positive(likelihood: Likelihood, name: str, *, or_none: bool = False) -> None:
    """Check that a setting is finite and > 0; replace a tensor by a copy.

    Raises:
        TypeError: It is neither a number nor a tensor (nor None).
        ValueError: It is not finite, or not > 0.
    """
    value = getattr(likelihood, name)
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        wanted = "a number, a tensor or None" if or_none else "a number or a tensor"
        raise TypeError(f"expected {name} to be {wanted}, got {type(value).__name__}")
    if isinstance(value, Tensor):
        object.__setattr__(likelihood, name, value.detach().clone())
    values = to_check(value)
    if not (values.isfinite() & (values > 0)).all():
        raise ValueError(f"expected a finite {name} > 0, got {value}")
