"""Where a decoder's output holds the parameters of which element.

A likelihood sees one tensor of parameters, shape (*sample, E, *param_shape), with the E elements
of a datum flattened into one dimension. param_shape is () for one parameter per element, and (P,)
for P of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ElementGroup:
    """Variables of a flattened datum that share a likelihood.

    Args:
        likelihood: Their likelihood, for all elements of the group.
        elements: The elements of the datum that make up each variable, shape (n, k); k is 1 except
            for one-hot variables.
        outputs: Where the decoder's flattened output holds the parameters of each, (n, numbers).
    """

    likelihood: "ElementLayout"
    elements: Tensor
    outputs: Tensor


class ElementLayout:
    """How the parameters and settings of a likelihood are laid out over the elements of a datum.

    Attributes:
        param_shape: Shape of the parameters of one element: the decoder's output is (B, *data,
            *param_shape), or a tuple of P tensors (B, *data) where param_shape is (P,).
        by_rows: Whether only some rows of a decoder's last linear layer may be run, those of the
            elements that are observed. False for `Mixed`, whose elements differ in their rows, and
            for a pair of location and dispersion, which come from different layers.
        by_element: Whether all elements are of one kind. False for `Mixed`, whose elements may
            have different numbers of parameters.
        per_element: Settings that may be tensors which broadcast to the data's shape, and how many
            dimensions of their own follow it.
    """

    param_shape: tuple[int, ...] = ()
    by_rows: bool = True
    by_element: ClassVar[bool] = True
    per_element: ClassVar[dict[str, int]] = {}

    # ---- shapes of a decoder's output ------------------------------------------------------------

    def data_shape(self, output: Sequence[int]) -> torch.Size | None:
        """Shape of a datum whose parameters have shape `output`; None if there is none."""
        num = len(output) - len(self.param_shape)
        fits = num > 0 and tuple(output[num:]) == self.param_shape
        return torch.Size(output[:num]) if fits else None

    def flat_shape(self, output: Sequence[int]) -> torch.Size:
        """Shape of the parameters of a flattened datum: (E, *param_shape)."""
        data_shape = torch.Size(output[: len(output) - len(self.param_shape)])
        return torch.Size((data_shape.numel(), *self.param_shape))

    def output_shape(self) -> str:
        """The shape of a datum's parameters in words, for messages."""
        return ", ".join(["*data", *map(str, self.param_shape)])

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """The parameters as one tensor, from a decoder that outputs several.

        Args:
            outputs: One tensor (B, *data) for each parameter of an element; or a single tensor,
                which is returned as it is.
        Raises:
            ValueError: There is not one tensor for each parameter, or their shapes differ.
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
                "applies to several elements, expand it to the shape of the others"
            )
        return torch.stack(outputs, dim=-1)

    def _advice_on(self, num: int) -> str:
        """What to do about a decoder that outputs `num` tensors, which is too many or too few."""
        return (
            "use Mixed if each is for columns of its own, or wrap the decoder in a module that "
            f"outputs what {type(self).__name__} takes"
        )

    def groups(self, num: int, device: torch.device) -> "list[ElementGroup]":
        """The elements of a flattened datum by likelihood, of which `Mixed` has several.

        Args:
            num: The number of elements.
            device: Device of the indices.
        """
        elements = torch.arange(num, device=device)
        return [ElementGroup(self, elements[:, None], self.outputs_of(elements[:, None]))]

    # ---- settings of a flattened datum, and of some of its elements ------------------------------

    def for_data(self, data_shape: Sequence[int], like: Tensor) -> Self:
        """The same likelihood, its settings per element expanded and flattened like the data.

        Raises:
            ValueError: A setting differs from the decoder's output in dtype or device, or does not
                broadcast to the data's shape.
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
        """The indices of the elements of each query that are in mask, (B, E), in order: (B, E').

        E' is the largest number that a query has in its mask; queries with fewer are padded with
        elements outside it. If no query has any, all elements are returned, as nothing can be
        computed with none.
        """
        most = int(mask.sum(1).max()) if len(mask) else 0
        order = mask.to(torch.int8).sort(dim=1, descending=True, stable=True)[1]
        return order[:, :most] if most else order

    def outputs_of(self, elements: Tensor) -> Tensor:
        """Where a decoder's flattened output holds the parameters of elements (B, E')."""
        num = math.prod(self.param_shape)
        own = torch.arange(num, device=elements.device)
        return (elements[..., None] * num + own).flatten(-2)

    def of_elements(self, elements: Tensor) -> Self:
        """The same likelihood for some elements of each query, (B, E'), of flattened data."""
        return self._with({name: value[elements] for name, value in self._tensors().items()})

    def select(self, index: Tensor | slice) -> Self:
        """The result of `of_elements` for some of its queries."""
        return self._with({name: value[index] for name, value in self._tensors().items()})

    def trimmed(self, num: int) -> Self:
        """The result of `of_elements` for the first `num` of its elements."""
        return self._with({name: value[:, :num] for name, value in self._tensors().items()})

    def with_dimension(self) -> Self:
        """The same likelihood for several values or parameters of each element, (*shape, E, K)."""
        return self._with(
            {
                name: value.unsqueeze(value.ndim - self.per_element[name])
                for name, value in self._tensors().items()
            }
        )

    def _tensors(self) -> dict[str, Tensor]:
        """The settings that are tensors, by name."""
        settings = {name: getattr(self, name) for name in self.per_element}
        return {name: value for name, value in settings.items() if isinstance(value, Tensor)}

    def _with(self, settings: dict[str, Tensor]) -> Self:
        return replace(self, **settings) if settings else self  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue]
