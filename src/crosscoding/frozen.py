"""Networks that others wrote: copied, frozen, and tried on a few rows before they are relied on."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError, first_line


def frozen_copy(network: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode, cut off from gradients to its weights; the module is left as it was.

    Args:
        network: Any module.
        name: What messages call it, such as "decoder".
    Raises:
        TypeError: network is no module.
        ValueError: It cannot be copied.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected {name} to be a torch.nn.Module, got {type(network).__name__}; "
            "wrap a function in a module with a forward method"
        )
    if any(tensor.is_meta for tensor in _state(network).values()):
        raise ValueError(
            f"expected {name} with its weights, got some on the meta device, which holds no "
            "numbers; make the module outside of torch.device('meta') and load its weights"
        )
    try:
        return copy.deepcopy(network).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected {name} to be a module that can be copied, got {error}; remove old-style "
            "weight or spectral norm first, with torch.nn.utils.remove_weight_norm"
        ) from error


class Trial:
    """What a network puts out for a few rows: together, once more, and each row alone.

    Args:
        network: The network, frozen.
        run: Its output for rows, (N, *row) -> (N, *output).
        rows: What it is tried on.
        name: What messages call it, such as "decoder".
        hint: What to check where it fails on them.

    Attributes:
        output: What it puts out for the rows together.

    Raises:
        ValueError: It fails, changes its own weights, or writes over its input.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        run: Callable[[Tensor], Tensor],
        rows: Tensor,
        name: str,
        hint: str,
    ) -> None:
        self._name = name
        state = {key: tensor.clone() for key, tensor in _state(network).items()}
        given = rows.clone()
        try:
            self.output = run(given)
        except Exception as error:  # whatever may happen in a module of the user's
            if "cuda" in str(error).lower():
                hint = "take .cuda() out of its code and move the whole module instead"
            raise ValueError(
                f"expected {name} to take rows of shape {tuple(rows.shape[1:])}, and it failed on "
                f"{tuple(rows.shape)}: {first_line(error)}; {hint}"
            ) from error
        if not torch.equal(given, rows):
            raise ValueError(
                f"expected {name} to leave its input as it is, and it wrote over it; "
                "give its first layer inplace=False"
            )
        self._again = run(rows.clone())
        try:
            self._alone = torch.cat([run(row[None].clone()) for row in rows])
        except (RuntimeError, ValueError):  # as batch norm without running statistics, of one
            self._alone = None
        now = _state(network)
        changed = [key for key, tensor in state.items() if not _same(now.get(key), tensor)]
        if changed:
            raise ValueError(
                f"expected {name} to leave its weights as they are in eval mode, and running it "
                f"changed {changed[0]!r}; train it to the end first, and update nothing in forward "
                "unless self.training"
            )

    def check(self, dtype: torch.dtype) -> None:
        """Raise unless the output is finite, of this dtype, and each row's a function of that row.

        Raises:
            NonFiniteError: There is NaN or infinity in it.
            ValueError: It has another dtype, changes from call to call, or mixes rows.
        """
        name, output = self._name, self.output
        if not output.isfinite().all():
            raise NonFiniteError(
                f"expected finite output from the {name}, got NaN or infinity at a draw from the "
                "prior; check the weights that were loaded"
            )
        if output.dtype != dtype:
            raise ValueError(
                f"expected the {name}'s output to have the weights' dtype {dtype}, "
                f"got {output.dtype}"
            )
        if not self._close(self._again):
            raise ValueError(
                f"expected a deterministic {name}, got different outputs for the same input; "
                "turn its dropout or noise off in eval mode"
            )
        if self._alone is None or not self._close(self._alone):
            raise ValueError(
                f"expected a {name} whose output for one row does not depend on the other rows of "
                "the batch; batch norm must use running statistics (track_running_stats=True)"
            )

    def _close(self, other: Tensor) -> bool:
        tolerance = 1e-3 * self.output.abs().max().clamp_min(1e-6)
        same_shape = other.shape == self.output.shape
        return same_shape and bool((other - self.output).abs().max() <= tolerance)


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those too that a state_dict leaves out."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _same(now: Tensor | None, before: Tensor) -> bool:
    """Whether a tensor is what it was; NaN counts as equal to NaN."""
    if now is None or now.shape != before.shape:
        return False
    return bool(((now == before) | (before != before)).all())
