"""The search for modes that draws of an amortised cross-coder may lack.

A network can miss a mode, and its draws cannot show that. So they become an answer only after the
search that the query would get without a network: 16 climbs, if `modes` would settle it with these,
and otherwise the particles of `anneal`, with as many climbs as are affordable where p(z|x) is far
from a Gaussian.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Gaussian
from crosscoding.diagnostics import log_mean_exp
from crosscoding.methods.cascade.budget import NUM_AT_ONE_MODE
from crosscoding.methods.cascade.climb_stages import ClimbStages
from crosscoding.methods.cascade.drawing import ENOUGH, Drawing
from crosscoding.methods.cascade.modes_found import ModesFound
from crosscoding.methods.numerics.annealing import Annealing
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.proposal_pool import merged

# ESS per draw of Laplace's Gaussian above which fits to particles would have even weights too, so
# that few climbs suffice beside the particles, as in `anneal`. On `amortised` in
# benchmarks/sensitivity.py, half takes 2 % fewer decodes, and double 5 % more, for the same
# answers.
_EVEN = 0.25


@dataclass(frozen=True)
class AmortisedCheck:
    """Looks for modes that draws may lack.

    Args:
        climbs: Climbs from the prior.
        annealing: Takes particles from the prior to p(z|x).
        clock: When to stop.
    """

    climbs: ClimbStages
    annealing: Annealing
    clock: Clock

    def searched(
        self,
        drawing: Drawing,
        place: Tensor,
        for_particles: Generator,
        for_climbs: Generator,
        decodes: Tensor,
    ) -> Iterator[tuple[Drawing, Tensor]]:
        """Yield the drawing with what the search finds, in parts with their places in `decodes`.

        Queries whose search is cut short are left out.
        """
        rows, found = drawing.rows, self.climbs.modes
        decodes[place] += self._climb(drawing, for_climbs, few=True)
        known = found.has(rows).nonzero()[:, 0]
        ess = torch.zeros_like(drawing.lacking)
        if len(known):
            ess[known] = _ess_of_laplace(drawing.select(known), found.of(rows[known]))
        at_one = ess >= ENOUGH / NUM_AT_ONE_MODE
        if len(some := at_one.nonzero()[:, 0]):
            own = drawing.select(some)
            yield own.with_modes(found.of(own.rows)), place[some]
        if len(some := (~at_one).nonzero()[:, 0]):
            drawing, place, plain = drawing.select(some), place[some], ess[some] >= _EVEN
            if len(more := (~(plain & drawing.is_plain)).nonzero()[:, 0]):
                decodes[place[more]] += self._climb(drawing.select(more), for_climbs, few=False)
            drawing, arrived = self._with_particles(drawing, place, for_particles, decodes)
            whole = arrived & found.has(drawing.rows)
            if len(some := whole.nonzero()[:, 0]):
                own = drawing.select(some)
                yield own.with_modes(found.of(own.rows)), place[some]

    def climbed(
        self, drawing: Drawing, place: Tensor, generator: Generator, decodes: Tensor
    ) -> tuple[Drawing, Tensor]:
        """The queries for which 16 climbs suffice, with the modes found, and their places."""
        decodes[place] += self._climb(drawing, generator, few=True)
        sure = self.climbs.modes.has(drawing.rows).nonzero()[:, 0]
        drawing, place = drawing.select(sure), place[sure]
        if not len(sure):
            return drawing, place
        return drawing.with_modes(self.climbs.modes.of(drawing.rows)), place

    def _climb(self, drawing: Drawing, generator: Generator, *, few: bool) -> Tensor:
        """Climb 16 times, or as often as is affordable; returns the decodes."""
        work = self.climbs.search if few else self.climbs.seek
        own = Generator().manual_seed(generator.initial_seed())
        return work(drawing.pool.target, drawing.rows, own, answers=False)

    def _with_particles(
        self, drawing: Drawing, place: Tensor, generator: Generator, decodes: Tensor
    ) -> tuple[Drawing, Tensor]:
        """The drawing with annealed particles, and where these reached p(z|x), boolean (B,)."""
        target = drawing.pool.target
        own = Generator().manual_seed(generator.initial_seed())
        swarm = self.annealing.run(target, generator=own, stop=self.clock.is_over)
        decodes[place] += swarm.decodes + len(swarm.z)
        particles = evaluated(target, target.log_joint, swarm.z)
        lacking = torch.where(swarm.stuck, math.nan, torch.zeros_like(drawing.lacking))
        return replace(drawing, particles=particles, lacking=lacking), swarm.reached


def _ess_of_laplace(drawing: Drawing, found: ModesFound) -> Tensor:
    """ESS per draw of Laplace's Gaussian N, (B,); 0 where climbs ended in several modes.

    It is p(x) / E_{p(z|x)}[p(z, x) / N(z)], and the draws estimate both.
    """
    pool, best = drawing.pool, found.heaviest
    gaussian = Gaussian.from_precision(best.z[0], best.precision[0])
    log_weights, log_joint = merged(pool.log_weights), merged(pool.log_joint)
    log_ratio = log_joint - gaussian.log_prob(merged(pool.z))
    expected = (log_weights.log_softmax(0) + log_ratio).logsumexp(0)
    ess = (log_mean_exp(log_weights)[0] - expected).exp()
    return torch.where(found.is_single, ess, 0.0)
