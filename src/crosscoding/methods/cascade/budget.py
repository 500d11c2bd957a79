"""What the cascade's stages may cost: how many particles, climbs and looks a model's price buys."""

import math

import torch
from torch import Tensor

from crosscoding.methods.numerics.resampling import next_temperature

NUM_ISLANDS = 8  # of particles: fewer tell the error of log p(x) too roughly
FAR_FROM_PRIOR = (
    10.0  # temperatures from the prior, above which p(z|x) is climbed to, not annealed to
)
TOO_FAR_FROM_PRIOR = 25.0  # above which no particles get there from the prior
NUM_PARTICLES = 96  # of a query, 12 an island
# Steps of a climb, of one where climbs cost too much to be many, and how many with one curvature.
CLIMB_STEPS, SINGLE_CLIMB_STEPS, CLIMB_EVERY = 20, 8, 2
LEAST_CLIMBS = 16  # to count as a search for modes; where they cost too much there is one
ROUNDS, NUM_ADAPT, NUM_REFINE = 3, 1000, 2500  # of adapting, and draws of one, first and last
NUM_WEIGHED = 4000  # draws of an answer, at first
CHECK_STEPS = 8  # of a second look's climbs, which only have to reach a mode's surroundings
_NUM_CHECKS, _CHECK_EVERY = 16, 3  # climbs for a second look, at least
_CHECK_OPERATIONS = 1e9  # multiply-adds that buy more of them
_NUM_CLIMBS = 64  # at most, where they cost next to nothing
_CLIMB_OPERATIONS = 4e11  # multiply-adds that climbing may cost a query
_FIT_OPERATIONS = 2e11  # multiply-adds that a fit by gradients, or further draws, may cost a query
_LOW_RANK_OPERATIONS = 4e11  # and a fit of low rank, which is all that a query has
_ANNEAL_DECODES = 2e4  # that annealing and weighing take of a query, about
_MOST_FULL_DIM = 512  # latent dimensions above which covariances are of low rank
_SWARM_OPERATIONS = 1.2e10  # multiply-adds for a query's swarm: as many particles as that buys
_SWARM_DECODES = 2e5  # and no more than take this many decodes, about


class Budget:
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
    def low_rank(self) -> bool:
        """Whether all is too dear but a fit of low rank: many dimensions, or a large decoder."""
        return self._dim > _MOST_FULL_DIM or (
            _ANNEAL_DECODES * self._operations > 10 * _FIT_OPERATIONS
        )

    def fit_steps(self, decodes_of_a_step: float, most: int) -> int:
        """Steps of a fit by gradients."""
        affordable = _FIT_OPERATIONS / (self._operations * decodes_of_a_step)
        return int(min(max(affordable, 20), most))

    @property
    def fit_decodes(self) -> int:
        """Decodes of a fit of low rank."""
        return int(min(max(_LOW_RANK_OPERATIONS / self._operations, 240), 20_000))

    @property
    def num_drawn(self) -> int:
        """Draws of a fit of low rank."""
        return int(min(max(_FIT_OPERATIONS / self._operations / 2, 20), NUM_ADAPT))

    @property
    def most_times(self) -> int:
        """How many times as many draws as at first an answer may take."""
        return int(min(max(2 * _FIT_OPERATIONS / (NUM_WEIGHED * self._operations), 1), 6))

    @property
    def num_checks(self) -> tuple[int, int]:
        """Climbs of a second look, and the steps they take with one curvature."""
        each = self._operations * (6.0 * self._dim + 60)
        num = int(min(max(_CHECK_OPERATIONS / each, _NUM_CHECKS), _NUM_CLIMBS))
        return num, 1 if num == _NUM_CLIMBS else _CHECK_EVERY

    @property
    def swarm_size(self) -> int:
        """Particles of a swarm."""
        by_operations = _SWARM_OPERATIONS / (5 * FAR_FROM_PRIOR * self._operations)
        most = min(by_operations, _SWARM_DECODES / (5 * FAR_FROM_PRIOR))
        return int(max(self._least_swarm, most)) // NUM_ISLANDS * NUM_ISLANDS

    @property
    def _least_swarm(self) -> int:
        """Particles below which a swarm says little."""
        return 512 + 32 * self._dim

    def swarm_operations(self, distance: Tensor) -> Tensor:
        """Multiply-adds of the smallest swarm that makes sense, at ways (B,) from the prior."""
        return self._least_swarm * 5 * distance.clamp(1.0, TOO_FAR_FROM_PRIOR) * self._operations

    def planned_decodes(self, stage: str, distance: Tensor) -> Tensor:
        """What a stage is reckoned to take of queries that are so far from the prior, amply: (B,).

        Args:
            stage: Its name.
            distance: How many temperatures p(z|x) is from the prior, about, shape (B,).
        """
        distance, dim, num = distance.clamp_min(1.0), self._dim, self.num_climbs
        proposal = ROUNDS * NUM_ADAPT + NUM_WEIGHED
        steps = CLIMB_STEPS if num >= LEAST_CLIMBS else SINGLE_CLIMB_STEPS
        checks, every = self.num_checks
        look = checks * (7 * CHECK_STEPS + (CHECK_STEPS / every + 2) * dim) + NUM_ADAPT
        decodes = {
            "bank": 0.0,
            "fit": float(self.fit_decodes + self.num_drawn),
            "grid": 10_000.0,
            "anneal": 3 * 3 * NUM_PARTICLES * (distance + 2) + proposal,
            "climb": num * (steps * (dim / CLIMB_EVERY + 7.0) + dim) + 10 * NUM_ADAPT,
            "look": look,
            "look again": look,
            "refine": ROUNDS * NUM_REFINE + NUM_WEIGHED,
            "swarm": 3 * 4 * self.swarm_size * (distance.clamp_max(TOO_FAR_FROM_PRIOR) + 2)
            + proposal,
        }[stage]
        return decodes + torch.zeros_like(distance)


def distance_from_prior(log_likelihood: Tensor, latent_dim: int) -> Tensor:
    """How many temperatures p(z|x) is from the prior, about, (B,): √(latent / 2) log(1 / t).

    t is the temperature that the bank, (N, B), reaches with `NUM_PARTICLES` effective points.
    """
    cold = torch.zeros_like(log_likelihood[0])
    reached = next_temperature(log_likelihood, cold, float(NUM_PARTICLES))
    return -math.sqrt(latent_dim / 2) * reached.clamp_min(1e-30).log()
