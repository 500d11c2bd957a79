"""Climbs to modes of p(z|x) by gradients alone, where latent × latent matrices are too large.

    z ← z + t H ∇ log p(z, x),   H ≈ (−∇²)⁻¹ from the last moves s and changes of gradient y

Each step reuses what earlier steps learned about the curvature. Gauss–Newton by conjugate gradients
would need new products with the curvature at every step, which cost more than they gain.

Source: Nocedal & Wright (2006), algorithms 7.4 and 3.1. Differs in: a step that is too long is
shortened by interpolation, and counts as a step; pairs with sᵀ y ≤ 0 are left out; all queries run
at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.target.base import Target

# Remembered moves: Nocedal & Wright (2006), section 7.2, find 3 to 20 enough. A further one costs
# two vectors, little beside a decode.
_MEMORY = 30
_LEAST_GAIN = 0.01  # nats that a step must promise, or the climb ends: 1/4 of a trusted error
_ENOUGH = 1e-4  # share of the gain promised by the slope: Nocedal & Wright (2006), section 3.1
_SHORTEST = 1e-6  # of a full step, below which the climb ends


@torch.no_grad()
def ascend(
    target: Target, z: Tensor, steps: int, *, stop: Callable[[], bool] = lambda: False
) -> tuple[Tensor, Tensor]:
    """Climb from z (B, latent): where each climb ends, and the steps it took, (B,).

    Args:
        target: A flat target.
        z: Where to climb from.
        steps: Most steps.
        stop: Called before each step; if it returns True, the climbs end as they are.
    """
    ends, taken = z.clone(), torch.ones_like(z[:, 0])
    index = torch.arange(len(z), device=z.device)
    state = _Ascents(target, z)
    for _ in range(steps - 1):
        going = ~state.over
        if not going.all():
            index = index[going]
            state.keep(going.nonzero()[:, 0])
        if not len(index) or stop():
            break
        state.step()
        ends[index] = state.z
        taken[index] += 1
    return ends, taken


class _Ascents:
    """State and memory of the climbs that are still running."""

    def __init__(self, target: Target, z: Tensor) -> None:
        self._target, self.z = target, z
        self._value, self._gradient = self._at(z)
        size = self._gradient.norm(dim=-1).clamp_min(1e-30)
        # H before there are any moves.
        self._gain = (target.prior_scale / size).clamp_max(target.prior_scale**2)
        self._moves = z.new_zeros(_MEMORY, *z.shape)
        self._changes = torch.zeros_like(self._moves)
        self._inverse = z.new_zeros(_MEMORY, len(z))  # 1 / sᵀ y, 0 where there is none
        self._length = torch.ones_like(self._value)
        self._turn()

    @property
    def over(self) -> Tensor:
        """Which climbs have ended, (B,): steps are too short, or promise no more than rounding."""
        rounding = 4 * torch.finfo(self.z.dtype).eps * self._value.abs()
        promised = 0.5 * (self._gradient * self._direction).sum(-1)
        return (promised < rounding.clamp_min(_LEAST_GAIN)) | (self._length < _SHORTEST)

    def step(self) -> None:
        """Evaluate one step: take it where it gains enough, and shorten it elsewhere."""
        move = self._length.unsqueeze(-1) * self._direction
        z = self.z + move
        value, gradient = self._at(z)
        slope = (self._gradient * move).sum(-1)
        gain = (value - self._value).nan_to_num(nan=-torch.inf)
        rounding = 4 * torch.finfo(z.dtype).eps * self._value.abs()
        better = gain >= _ENOUGH * slope - rounding
        change = self._gradient - gradient
        curved = (move * change).sum(-1)
        informative = better & (curved > 1e-8 * move.norm(dim=-1) * change.norm(dim=-1))
        self._remember(informative, move, change, curved)
        self._gain = torch.where(better & ~informative, 2 * self._gain, self._gain)
        shorter = (0.5 * slope / (slope - gain).clamp_min(1e-30)).clamp(0.1, 0.5)
        self._length = torch.where(better, 1.0, shorter * self._length)
        self.z = torch.where(better[:, None], z, self.z)
        self._value = torch.where(better, value, self._value)
        self._gradient = torch.where(better[:, None], gradient, self._gradient)
        self._turn()

    def keep(self, which: Tensor) -> None:
        """Continue with these climbs only."""
        for name in ("z", "_value", "_gradient", "_gain", "_direction", "_length"):
            setattr(self, name, getattr(self, name)[which])
        for name in ("_moves", "_changes", "_inverse"):
            setattr(self, name, getattr(self, name)[:, which])
        self._target = self._target.select(which)

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        here = evaluated(self._target, self._target.log_joint, z[None])
        return here.log_density[0], here.gradient[0]

    def _remember(self, informative: Tensor, move: Tensor, change: Tensor, curved: Tensor) -> None:
        """Store the new pairs of the climbs in `informative`, (B,), in place of the oldest."""
        some = informative.nonzero()[:, 0]
        for name, new in (("_moves", move), ("_changes", change), ("_inverse", 1 / curved)):
            memory = getattr(self, name)
            memory[:, some] = torch.cat([memory[1:, some], new[some][None]])
        self._gain[some] = curved[some] / change[some].square().sum(-1)

    def _turn(self) -> None:
        """Set the next direction, H ∇, by the two-loop recursion."""
        direction, shares = self._gradient, []
        pairs = list(zip(self._moves, self._changes, self._inverse, strict=True))
        for move, change, inverse in reversed(pairs):
            shares.append(inverse * (move * direction).sum(-1))
            direction = direction - shares[-1][:, None] * change
        direction = self._gain[:, None] * direction
        for (move, change, inverse), share in zip(pairs, reversed(shares), strict=True):
            rest = share - inverse * (change * direction).sum(-1)
            direction = direction + rest[:, None] * move
        self._direction = direction
