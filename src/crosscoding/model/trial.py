"""Users' networks: copied, frozen, and tried on a few rows before anything relies on them."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError, first_line
from crosscoding.model.foreign_random import watched
from crosscoding.model.plain_copy import check_weights, plain_copy
from crosscoding.model.recognition import relative_difference

_CROWD = 8  # rows of a batch in which to look for noise and for the influence of other rows,
_CROWD_VALUES = 2**16  # or as many rows as have this many numbers
# Allowed differences in eps of the largest output,
_AGAIN = 4  # if the same rows are run again;
_BESIDE = 100  # beside other rows: vectorised sines depend on the largest of eight numbers;
_ON_GPU = 1000  # on a GPU, where sums have no fixed order.
_ALONE = 1e-3  # of the largest output in float32, as other kernels may run; 5e-7 in the zoo
_AT_MOST = 1e-5  # of an output in double, where another batch size changes 4e-15 in the zoo


def frozen_copy(network: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode with frozen weights; the module itself is not changed.

    Args:
        network: Any module.
        name: Its name in messages, such as "decoder".
    Raises:
        TypeError: network is not a module.
        ValueError: It cannot be copied, or some of its weights have no values yet.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected {name} to be a torch.nn.Module, got {type(network).__name__}; "
            "wrap a function in a module with a forward method"
        )
    check_weights(network, name)
    copied = plain_copy(network, name)
    for parameter in copied.parameters():  # a scripted module's own requires_grad_ raises
        parameter.requires_grad_(False)
    return copied


class OutputError(ValueError):
    """A network ran, but its output cannot be used; the message needs no hint added to it."""


class Trial:
    """The output of a network for a few rows: together, again, beside others, and one by one.

    Args:
        network: The frozen network.
        run: Gives the output of the network, or of a copy, for rows: (N, *row) -> (N, *output).
        rows: What it is tried on.
        others: Rows to put beside them, preferably unlike them: (M, *row).
        name: Its name in messages, such as "decoder".
        hint: What the user should check if it fails on the rows.

    Attributes:
        output: Its output for the rows together.

    Raises:
        ValueError: It fails, or changes its own weights.
        OutputError: `run` raised it.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        run: Callable[[nn.Module, Tensor], Tensor],
        rows: Tensor,
        others: Tensor,
        name: str,
        hint: str,
    ) -> None:
        self._network, self._name, self._rows = network, name, rows
        self._run_of = run
        state = {key: tensor.clone() for key, tensor in _state(network).items()}
        with watched(network) as drawn:
            self.output = self._first_output(hint)
            drawn()  # drawing once, in the first run, is not noise
            self._doubt = self._doubt_of_runs(others)
            if drawn():
                self._doubt = (
                    f"expected a deterministic {name}, got one that draws random numbers when it "
                    "runs; turn its dropout or noise off in eval mode, as with "
                    "F.dropout(..., training=self.training)"
                )
        now = _state(network)
        changed = [key for key, tensor in state.items() if not _same(now.get(key), tensor)]
        if changed:
            raise ValueError(
                f"expected {name} to keep its weights unchanged in eval mode, but running it "
                f"changed {changed[0]!r}; finish training first, and in forward update something "
                "only if self.training"
            )

    def check_finite(self, allowed: Tensor) -> None:
        """Raise NonFiniteError unless `allowed`, boolean and shaped as the output, is all True."""
        if not allowed.all():
            index = tuple((~allowed).nonzero()[0, 1:].tolist())
            raise NonFiniteError(
                f"expected finite output from the {self._name}, got NaN or infinity at a draw from "
                f"the prior: {self.output[~allowed][0]:.4g}, at index {index} of its "
                "output there; check the loaded weights"
            )

    def check(self, dtype: torch.dtype) -> None:
        """Raise ValueError unless the output has this dtype and its rows do not mix."""
        name, output = self._name, self.output
        if output.dtype != dtype:
            raise ValueError(
                f"expected the {name}'s output to have the weights' dtype {dtype}, "
                f"got {output.dtype}"
            )
        if self._doubt:
            raise ValueError(self._doubt)

    def _first_output(self, hint: str) -> Tensor:
        """The output for the rows; what the network raises becomes a ValueError with the hint."""
        try:
            return self._run(self._rows)
        except OutputError:
            raise
        except Exception as error:  # a user's module may raise anything
            if "cuda" in str(error).lower():
                hint = "remove .cuda() from its code and move the whole module instead"
            of_row, of_rows = tuple(self._rows.shape[1:]), tuple(self._rows.shape)
            raise ValueError(
                f"expected {self._name} to take rows of shape {of_row}, but it failed on "
                f"{of_rows}: {first_line(error)}; {hint}"
            ) from error

    def _run(self, rows: Tensor) -> Tensor:
        """The output for rows; the network may overwrite its input."""
        return self._run_of(self._network, rows.clone()).clone()

    def _doubt_of_runs(self, others: Tensor) -> str:
        """Why the network is not a function of one row; "" if it is."""
        name, run, rows, output = self._name, self._run, self._rows, self.output
        values = max(rows[0].numel(), output.numel() // len(rows), 1)
        size = max(min(_CROWD, _CROWD_VALUES // values), 2)
        crowd, far = _tiled(rows, size), _tiled(others, size)
        try:
            first = run(crowd)
            same = _same_within(_AGAIN, run(crowd), first)
            same = same and _same_within(_AGAIN, run(rows), output)
            half = torch.arange(size, device=rows.device) < size // 2
            kept = [half, ~half]  # the first rows may matter, or the last
            beside = []
            for own in kept:
                mixed = torch.where(own.reshape(-1, *[1] * (rows.ndim - 1)), crowd, far)
                beside.append(run(mixed)[own])
        except Exception as error:  # a user's module may raise anything
            return (
                f"expected {name} to take any number of rows, got one that takes {len(rows)} but "
                f"fails on {size}: {first_line(error)}; remove batch sizes from its code"
            )
        if not same:
            return (
                f"expected a deterministic {name}, got different outputs for the same input; "
                "turn its dropout or noise off in eval mode"
            )
        if doubt := self._doubt_of_one():
            return doubt
        unmoved = all(
            _same_within(_BESIDE, output, first[own])
            for own, output in zip(kept, beside, strict=True)
        )
        return "" if unmoved else _mixes(name)

    def _doubt_of_one(self) -> str:
        """The same, from batches of one row."""
        name, rows, output = self._name, self._rows, self.output
        try:
            alone = [self._run(row[None]) for row in rows]
        except Exception as error:  # such as batch norm without running statistics
            return f"{_mixes(name)}; on one row alone it failed: {first_line(error)}"
        wanted, got = (1, *output.shape[1:]), tuple(alone[0].shape)
        if len(got) < output.ndim:
            return (
                f"expected {name} output of shape {wanted} for one row, as {tuple(output.shape)} "
                f"for {len(rows)}, got {got}; a squeeze() in it drops the batch dimension: "
                "name the dimension to drop, as in squeeze(1), or use flatten(1)"
            )
        if got != wanted:
            return f"{_mixes(name)}; for one row alone it outputs shape {got}"
        if relative_difference(torch.cat(alone), output) <= _AT_MOST or self._is_rounding(alone):
            return ""
        return _mixes(name)

    def _is_rounding(self, alone: list[Tensor]) -> bool:
        """Whether rows alone differ from rows together only by rounding: in double, almost not."""
        try:
            double = copy.deepcopy(self._network).double()
            wide = [self._run_of(double, row[None].double()) for row in self._rows]
            together = self._run_of(double, self._rows.double())
        except Exception:  # float32 is hard-coded in it
            together, wide = self.output, alone
        if self.output.dtype != torch.double and together.dtype == torch.double:
            return relative_difference(torch.cat(wide), together) <= _AT_MOST
        largest = torch.where(self.output.isfinite(), self.output, 0.0).abs().max()
        return self.output.dtype != torch.double and bool(
            (torch.cat(alone) - self.output).abs().nan_to_num(0.0).max() <= _ALONE * largest
        )


def check_derivatives(run: Callable[[Tensor], Tensor], rows: Tensor, name: str) -> None:
    """Raise ValueError if a network overwrites numbers that its own derivatives need."""
    with torch.enable_grad():
        given = rows.clone().requires_grad_()
        try:
            output = run(given.clone())
            if output.requires_grad:
                torch.autograd.grad(output.sum(), given, allow_unused=True)
        except RuntimeError as error:
            if "inplace operation" in str(error):  # `VAE.check` reports other faults
                raise ValueError(
                    f"expected a {name} that torch can differentiate, got one that overwrites "
                    "numbers that its derivative needs; write z = z.clamp(...) for z.clamp_(...), "
                    "torch.cat(...) for z[:, 0] = ..., and inplace=False"
                ) from error


def _mixes(name: str) -> str:
    return (
        f"expected {name} output for one row that does not depend on the other rows of the "
        "batch; batch norm must use running statistics (track_running_stats=True), and nothing "
        "may be quantised by the range of the batch"
    )


def _tiled(rows: Tensor, num: int) -> Tensor:
    """`num` rows, starting over after the last."""
    return rows[torch.arange(num, device=rows.device) % len(rows)]


def _same_within(rounding: int, output: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs are equal up to rounding, in eps of the size of their numbers."""
    if output.shape != wanted.shape or not wanted.is_floating_point():
        return torch.equal(output, wanted)
    eps = (rounding if wanted.device.type == "cpu" else _ON_GPU) * torch.finfo(wanted.dtype).eps
    return relative_difference(output, wanted) <= eps


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, including those that a state_dict leaves out."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _same(now: Tensor | None, before: Tensor) -> bool:
    """Whether a tensor is unchanged; NaN equals NaN."""
    if now is None or now.shape != before.shape or now.layout != before.layout:
        return False
    now, before = now.to_dense(), before.to_dense()  # sparse ones cannot be compared
    return bool(((now == before) | (before != before)).all())
