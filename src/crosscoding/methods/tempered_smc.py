"""Tempered SMC: particles go from the prior to p(z|x) through the densities p(z) p(x|z)^t.

    Ẑ = Π_k mean_s p(x|z_s)^{t_k − t_{k−1}},   0 = t_0 < t_1 < … = 1

Each temperature is the farthest from the last at which half of the particles are still effective.
Particles are then resampled by weight and moved by HMC, in coordinates of their own covariance. The
particles of a query form islands that share only temperatures and covariance. The spread of the
islands' Ẑ and means gives the error of the answer, including the error from lost modes.

Source: Del Moral, Doucet & Jasra (2006), section 3.3.2, with the temperatures of Jasra et al.
(2011) and the HMC moves of Buchholz, Chopin & Jacob (2021). Differs in: the first temperature is
reached by weighting the bank; covariance and step size come from the particles being moved.
"""

from dataclasses import dataclass

from torch import Generator

from crosscoding.errors import BudgetError
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.annealing import MAX_TEMPERATURES, Annealing
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target


@dataclass(frozen=True)
class TemperedSMC(Method):
    """Sequential Monte Carlo from the prior to p(z|x) over rising temperatures.

    Args:
        num_particles: Particles per query, over all islands; None: 1,000, plus 64 for each latent
            dimension.
        num_islands: Number of islands they are divided into, which give the errors, ≥ 2.
        num_moves: HMC moves at each temperature, ≥ 1.
        num_leapfrog: Leapfrog steps per move, ≥ 1.
        ess_share: Share of the particles that remains effective from one temperature to the next.
    """

    num_particles: int | None = None
    num_islands: int = 8
    num_moves: int = 2
    num_leapfrog: int = 4
    ess_share: float = 0.5

    def __post_init__(self) -> None:
        if min(self.num_moves, self.num_leapfrog, self.num_islands - 1) < 1:
            raise ValueError(
                f"expected num_moves, num_leapfrog >= 1 and num_islands >= 2, got {self}"
            )
        if self.num_particles is not None and self.num_particles < 4 * self.num_islands:
            raise ValueError(f"expected num_particles >= {4 * self.num_islands}, got {self}")
        if not 0 < self.ess_share < 1:
            raise ValueError(f"expected ess_share between 0 and 1, got {self.ess_share}")

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        target = covered(target, generator)
        num = self.num_particles or 1000 + 64 * target.latent_dim
        annealing = Annealing(
            num_particles=-(-num // self.num_islands) * self.num_islands,
            num_islands=self.num_islands,
            num_moves=self.num_moves,
            num_leapfrog=self.num_leapfrog,
            ess_share=self.ess_share,
            max_temperatures=MAX_TEMPERATURES,
        )
        swarm = annealing.run(target, generator=generator, report=report)
        if not swarm.reached.all():
            query = target.name((~swarm.reached).nonzero()[0, 0])
            raise BudgetError(
                f"expected particles to reach p(z|x) within {MAX_TEMPERATURES} temperatures, but "
                f"they did not for query {query}; p(z|x) is too narrow for TemperedSMC, use "
                "Laplace() or Auto()"
            )
        return swarm.findings()
