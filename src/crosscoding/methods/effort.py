"""What the cascade's stages may cost: how many particles, climbs and looks a model's price buys."""

import math
import time

import torch
from torch import Tensor

NUM_ISLANDS = 8
LONG_WAY = 10.0  # temperatures from the prior, above which p(z|x) is climbed to, not annealed to
NUM_PARTICLES = 96
CLIMB_STEPS, DEAR_STEPS = 30, 8
LEAST_CLIMBS = 16  # to count as a search for modes; where they cost too much there is one
ROUNDS, NUM_ADAPT, NUM_REFINE = 3, 1000, 2500
NUM_WEIGHED = 4000  # draws of an answer, at first
CHECK_STEPS = 12
_NUM_CHECKS, _CHECK_EVERY = 16, 3  # climbs for a second look, at least
_CHECK_OPERATIONS = 1e9  # multiply-adds that buy more of them
_NUM_CLIMBS = 64
_CLIMB_OPERATIONS = 4e11  # multiply-adds that climbing may cost a query
_SWARM_OPERATIONS = 1.2e10  # multiply-adds for a query's swarm: as many particles as that buys
_SWARM_DECODES = 2e5  # and no more than take this many decodes, about


class Clock:
    """How late it is, of the seconds that a run may take; None: it is never late."""

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = self._fit_deadline = math.inf
        if max_seconds is not None:
            self._deadline = time.perf_counter() + max_seconds
            self._fit_deadline = self._deadline - 0.15 * max_seconds

    def is_over(self) -> bool:
        """Whether no further stage starts."""
        return time.perf_counter() > self._deadline

    def is_late(self) -> bool:
        """Whether work that can end at any time should, so that its result can be weighed."""
        return time.perf_counter() > self._fit_deadline


class Effort:
    """How much of everything, by what a decode of this model costs; the same for every query.

    Args:
        latent_dim: Size of z.
        operations: Multiply-adds of log p(x|z) at one z.
    """

    def __init__(self, latent_dim: int, operations: float) -> None:
        self._dim = latent_dim
        self._operations = operations

    @property
    def num_climbs(self) -> int:
        """How many climbs are worth their price: many, or where they cost too much one."""
        affordable = int(_CLIMB_OPERATIONS / (self._operations * self._dim * 40))
        if affordable < LEAST_CLIMBS:
            return 1
        return min(_NUM_CLIMBS, affordable, max(1280 // self._dim, LEAST_CLIMBS))

    @property
    def num_checks(self) -> tuple[int, int]:
        """Climbs of a second look, and the steps they take with one curvature."""
        each = self._operations * (6.0 * self._dim + 60)
        num = int(min(max(_CHECK_OPERATIONS / each, _NUM_CHECKS), _NUM_CLIMBS))
        return num, 1 if num == _NUM_CLIMBS else _CHECK_EVERY

    @property
    def swarm_size(self) -> int:
        """Particles of a swarm."""
        by_operations = _SWARM_OPERATIONS / (5 * LONG_WAY * self._operations)
        most = min(by_operations, _SWARM_DECODES / (5 * LONG_WAY))
        return int(max(self._least_swarm, most)) // NUM_ISLANDS * NUM_ISLANDS

    @property
    def _least_swarm(self) -> int:
        """Particles below which a swarm says little."""
        return 512 + 32 * self._dim

    def swarm_operations(self, way: Tensor) -> Tensor:
        """Multiply-adds of the smallest swarm that makes sense, at ways (B,) from the prior."""
        return self._least_swarm * 5 * way.clamp_min(1.0) * self._operations

    def planned_decodes(self, stage: str, way: Tensor) -> Tensor:
        """What a stage is reckoned to take of queries that are so far from the prior, amply: (B,).

        Args:
            stage: Its name.
            way: How many temperatures p(z|x) is from the prior, about, shape (B,).
        """
        way, dim, num = way.clamp_min(1.0), self._dim, self.num_climbs
        proposal = ROUNDS * NUM_ADAPT + NUM_WEIGHED
        steps = CLIMB_STEPS if num >= LEAST_CLIMBS else DEAR_STEPS
        checks, every = self.num_checks
        look = checks * (3 * CHECK_STEPS + (CHECK_STEPS / every + 1) * dim) + NUM_ADAPT
        decodes = {
            "bank": 0.0,
            "grid": 10_000.0,
            "anneal": 3 * 3 * NUM_PARTICLES * (way + 2) + proposal,
            "climb": num * steps * (dim + 3.0) + 10 * NUM_ADAPT,
            "look": look,
            "look again": look,
            "refine": ROUNDS * NUM_REFINE + NUM_WEIGHED,
            "swarm": 3 * 4 * self.swarm_size * (way + 2) + proposal,
        }[stage]
        return decodes + torch.zeros_like(way)
