"""How many particles, climbs and draws each stage may use, given the cost of a decode."""

import math

import torch
from torch import Tensor

# On mnist-20d, halving or doubling FEW_PARTICLES, MORE_PARTICLES, CHECK_STEPS or FEW_ROUNDS moves
# log p(x) by at most 0.08 nats, about as much as another seed, and decodes by 25 % or less.
# FAR_FROM_PRIOR = 5 triples the decodes (benchmarks/sensitivity.py, 12 queries).
NUM_ISLANDS = 8  # of particles: fewer estimate the error of log p(x) too roughly
FAR_FROM_PRIOR = 10.0  # temperatures, above which stages climb to p(z|x) instead of annealing
# Temperatures, above which no particles get there from the prior. Halving or doubling it changes
# nothing on mnist-20d, or on `far` and `exact` in benchmarks/sensitivity.py.
TOO_FAR_FROM_PRIOR = 25.0
FEW_PARTICLES, MORE_PARTICLES = 96, 384  # per query; more where few are not enough
# Steps of a climb, steps if only one climb is affordable, and steps per curvature. On digits with
# all pixels observed (`far` in benchmarks/sensitivity.py), half of CLIMB_STEPS leaves one of 6
# answers untrusted. Apart from that, half or double of it, of CLIMB_EVERY or of NUM_WEIGHED moves
# log p(x) by at most 0.03 nats, less than half as much as another seed, and decodes by at most 7 %.
# If only one climb is allowed, half or double of its steps changes no answer there.
CLIMB_STEPS, SINGLE_CLIMB_STEPS, CLIMB_EVERY = 20, 8, 2
# Climbs that count as a search for modes; if these cost too much, there is one climb. Of two equal
# modes, all 16 end in the same one once in 32,768 times; 8 do once in 128, which was seen (decision
# 0009).
LEAST_CLIMBS = 16
NUM_WEIGHED = 1000  # draws from a proposal that climbs found
# Draws from a Gaussian at the only mode. On a table model 8-64-30, 1,000 settle 88 % of the rows,
# and 1,200 settle 97 %; the others take 1,500 further decodes each.
NUM_AT_ONE_MODE = 1200
# Draws of each round from proposals fitted to annealed particles, few and more. Longer rounds draw
# more than is needed; shorter ones fit proposals more often.
FEW_ROUNDS = (1000, 1500, 2000, 2000, 2500, 3000)
MORE_ROUNDS = (2000, 3000, 4000, 5000, 6000)
# Draws of each round from an amortised cross-coder. On `amortised` in benchmarks/sensitivity.py,
# half of them take 4 % fewer decodes, and double 64 % more; log p(x) moves by at most 0.04 nats.
AMORTISED_ROUNDS = (1200, 400, 1000, 2000)
CHECK_STEPS = 8  # of a search's climbs; with 6, more of the narrow ends of funnels are missed
# Fewest climbs of a second look, and steps per curvature: half or double costs 23 or 13 % more
# decodes on mnist-20d, and moves log p(x) by at most 0.04 nats.
_NUM_CHECKS, _CHECK_EVERY = 16, 3
# Multiply-adds per query for more climbs of a second look than the fewest: 64 climbs of a table
# model 8-64-30, and 17 on mnist-20d. There, half of it and of _NUM_CHECKS takes 3 % fewer decodes,
# and double 23 % more; log p(x) moves by at most 0.05 nats, a third of what another seed does.
_CHECK_OPERATIONS = 1e9
_NUM_CLIMBS = MOST_CHECKS = 64  # most climbs, for cheap decoders
# Most climbs times latent dimensions, as each climb costs decodes in proportion. On `far`, half of
# it, 32 climbs in 20 dimensions, saves 18 % of the decodes and moves log p(x) by 0.014 nats.
_CLIMB_DIMENSIONS = 1280
# Multiply-adds per query for climbing, which allows 16 climbs in 20 dimensions up to 3e7 per
# decode; for a fit by gradients, or for further draws; and for a low-rank fit, which is the only
# stage. They bound the time of a query: with less, more queries on expensive decoders stay
# unsettled; with more, each takes longer. On `far`, half or double of the first changes nothing.
_CLIMB_OPERATIONS, _FIT_OPERATIONS, _LOW_RANK_OPERATIONS = 4e11, 2e11, 4e11
# Roughly, per query for a grid, by latent dimension; in three, 33,000 to 230,000 on table models.
_GRID_DECODES = {1: 1e3, 2: 1e4, 3: 6e4}
# Roughly, per query for annealing and weighing; and times a fit's operations, above which these are
# not affordable: for decoders of more than 1e8 multiply-adds, which would take minutes.
_ANNEAL_DECODES, _TIMES_THE_FIT = 2e4, 10
# However large a decoder is, steps of a fit, decodes of a low-rank fit and draws from it, with
# which it still is an answer; and the most decodes of a low-rank fit.
_FEWEST_STEPS, _FEWEST_FIT_DECODES, _FEWEST_DRAWN, _MOST_FIT_DECODES = 20, 240, 20, 20_000
_MOST_FULL_DIM = 512  # latent dimensions above which covariances have low rank
# Multiply-adds and decodes per query for a swarm, roughly, and particles of the smallest useful
# one. Half or double of the first two takes 0.65 or 1.6 times the decodes on blocks, and moves log
# p(x) by 0.014 nats. On `far`, where the smallest swarm is used, half of it leaves one of 6 answers
# untrusted, and double of it takes a third more decodes and moves log p(x) by 0.03 nats.
_SWARM_OPERATIONS, _SWARM_DECODES = 1.2e10, 2e5
_LEAST_SWARM, _SWARM_PER_DIMENSION = 512, 32
# Least latent dimension for `bridge`. If it were lower, more queries would pay for its gradients;
# if higher, they would be left to particles from the prior.
_FEWEST_BRIDGED = 32
# Multiply-adds of a decode: above the first `bridge` takes many minutes; from the second on it runs
# before other stages.
_MOST_BRIDGED_OPERATIONS, _EXPENSIVE = 3e8, 1e7
# Multiply-adds per query for particles from a Gaussian, a gradient counting as 3 decodes, and
# roughly their steps (10 temperatures of 5 steps each, and 16 moves of 8 at the last).
_BRIDGE_OPERATIONS, _BRIDGE_STEPS = 1.5e13, 180
# Particles from a Gaussian: on 100-d Gaussians, the root mean square error of log p(x) is 0.31 nats
# with 256, and 0.63 with 128 (decision 0010).
_FEWEST_IN_BRIDGE, _MOST_IN_BRIDGE = 128, 512
# At most 40 temperatures with 9 tries each, and 16 moves at the last, of 8 steps each.
_MOST_BRIDGE_STEPS = (40 * 9 + 16) * 8
_BRIDGE_SECONDS = 60.0  # for a decoder of 1e8 multiply-adds, on two cores with AMX


class Budget:
    """How much each stage may do, given the cost of a decode; the same for every query.

    Args:
        latent_dim: Size of z.
        operations: Multiply-adds for log p(x|z) at one z.
    """

    def __init__(self, latent_dim: int, operations: float) -> None:
        self._dim = latent_dim
        self._operations = operations

    @property
    def num_climbs(self) -> int:
        """Number of climbs: many, or one if they cost too much."""
        affordable = int(_CLIMB_OPERATIONS / (self._operations * self._dim * 40))
        if affordable < LEAST_CLIMBS:
            return 1
        return min(_NUM_CLIMBS, affordable, max(_CLIMB_DIMENSIONS // self._dim, LEAST_CLIMBS))

    @property
    def low_rank(self) -> bool:
        """Whether only a low-rank fit is affordable: many dimensions, or a large decoder."""
        return self._dim > _MOST_FULL_DIM or (
            _ANNEAL_DECODES * self._operations > _TIMES_THE_FIT * _FIT_OPERATIONS
        )

    def fit_steps(self, decodes_of_a_step: float, most: int) -> int:
        """Steps of a fit by gradients."""
        affordable = _FIT_OPERATIONS / (self._operations * decodes_of_a_step)
        return int(min(max(affordable, _FEWEST_STEPS), most))

    @property
    def fit_decodes(self) -> int:
        """Decodes for a low-rank fit."""
        affordable = _LOW_RANK_OPERATIONS / self._operations
        return int(min(max(affordable, _FEWEST_FIT_DECODES), _MOST_FIT_DECODES))

    @property
    def num_drawn(self) -> int:
        """Draws from a low-rank fit."""
        return int(min(max(_FIT_OPERATIONS / self._operations / 2, _FEWEST_DRAWN), NUM_WEIGHED))

    @property
    def bridges(self) -> bool:
        """Whether to take particles from a fitted Gaussian: in many dimensions, if affordable."""
        return _FEWEST_BRIDGED <= self._dim <= _MOST_FULL_DIM and (
            self._operations <= _MOST_BRIDGED_OPERATIONS
        )

    @property
    def bridges_first(self) -> bool:
        """Whether these particles are cheaper than all stages that would otherwise run before."""
        return self.bridges and self._operations >= _EXPENSIVE

    @property
    def bridge_size(self) -> int:
        """Number of particles from a fitted Gaussian, a multiple of `NUM_ISLANDS`."""
        affordable = int(_BRIDGE_OPERATIONS / (3 * _BRIDGE_STEPS * self._operations))
        return min(max(affordable, _FEWEST_IN_BRIDGE), _MOST_IN_BRIDGE) // NUM_ISLANDS * NUM_ISLANDS

    @property
    def bridge_seconds(self) -> float:
        """Seconds that `bridge` takes on two cores, roughly; with less time left, it is skipped."""
        return max(_BRIDGE_SECONDS * self._operations / 1e8, 1.0)

    @property
    def num_checks(self) -> tuple[int, int]:
        """Climbs of a second look, and their steps per curvature."""
        each = self._operations * (6.0 * self._dim + 60)
        num = int(min(max(_CHECK_OPERATIONS / each, _NUM_CHECKS), _NUM_CLIMBS))
        return num, 1 if num == _NUM_CLIMBS else _CHECK_EVERY

    @property
    def swarm_size(self) -> int:
        """Number of particles in a swarm."""
        by_operations = _SWARM_OPERATIONS / (5 * FAR_FROM_PRIOR * self._operations)
        most = min(by_operations, _SWARM_DECODES / (5 * FAR_FROM_PRIOR))
        return int(max(self._least_swarm, most)) // NUM_ISLANDS * NUM_ISLANDS

    @property
    def _least_swarm(self) -> int:
        """Least number of particles for a useful swarm."""
        return _LEAST_SWARM + _SWARM_PER_DIMENSION * self._dim

    def swarm_operations(self, distance: Tensor) -> Tensor:
        """Multiply-adds for the smallest useful swarm, given distances (B,) from the prior."""
        return self._least_swarm * 5 * distance.clamp(1.0, TOO_FAR_FROM_PRIOR) * self._operations

    def planned_decodes(self, stage: str, distance: Tensor) -> Tensor:
        """Generous estimate of a stage's decodes per query, (B,).

        Args:
            stage: Name of the stage; "vouched": `amortised` where twins stand in for particles.
            distance: Approximate number of temperatures from the prior to p(z|x), shape (B,).
        """
        distance, dim, num = distance.clamp_min(1.0), self._dim, self.num_climbs
        steps = CLIMB_STEPS if num >= LEAST_CLIMBS else SINGLE_CLIMB_STEPS
        checks, every = self.num_checks
        look = checks * (7 * CHECK_STEPS + (CHECK_STEPS / every + 2) * dim) + NUM_AT_ONE_MODE
        few_climbs = LEAST_CLIMBS * (7.0 * CHECK_STEPS + (CHECK_STEPS + 2) * dim)
        few, more = sum(FEW_ROUNDS) + look, sum(MORE_ROUNDS) + look
        decodes = {
            "bank": 0.0,
            "locate": 0.0,
            "fit": float(self.fit_decodes + self.num_drawn),
            "grid": _GRID_DECODES.get(dim, 0.0),
            "amortised": 3 * FEW_PARTICLES * (3 * (distance + 2) + 1)
            + sum(AMORTISED_ROUNDS)
            + look,
            "vouched": sum(AMORTISED_ROUNDS) + few_climbs,
            "anneal": 3 * 3 * FEW_PARTICLES * (distance + 2) + few,
            "climb": num * (steps * (dim / CLIMB_EVERY + 7.0) + dim) + 10 * NUM_WEIGHED,
            "anneal more": 3 * 3 * MORE_PARTICLES * (distance + 2) + more,
            "bridge": 3.0 * _MOST_BRIDGE_STEPS * self.bridge_size
            + 3 * 16 * 200
            + 100 * (48 + dim / 4),
            "swarm": 3 * 4 * self.swarm_size * (distance.clamp_max(TOO_FAR_FROM_PRIOR) + 2) + more,
            "look": look,
            # its fit and first round; further rounds are made as far as they are affordable
            "narrow": 16 * (5 * CHECK_STEPS + 4 * dim) + 1200 * 6.0 * (min(dim / 8, 16) + 7),
            "modes": few_climbs + NUM_AT_ONE_MODE,
        }[stage]
        return decodes + torch.zeros_like(distance)


def distance_from_prior(temperature: Tensor, latent_dim: int) -> Tensor:
    """Approximate number of temperatures from the prior to p(z|x), (B,): √(latent / 2) log(1 / t).

    t is the temperature that the bank reaches with an ESS of `FEW_PARTICLES`, shape (B,).
    """
    return -math.sqrt(latent_dim / 2) * temperature.clamp_min(1e-30).log()
