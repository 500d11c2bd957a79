"""Natural gradient: the Gaussian with the best C-ELBO, in tens of steps instead of thousands.

    P ← (1 − ρ) P + ρ H(z),   b ← b + ρ' P⁻¹ E_q[∇ log p(z, x)],   q = N(b, P⁻¹),  z ~ q

H is the Gauss–Newton curvature at a draw. It costs one pass per latent dimension and changes
slowly, so it is computed only every few steps.

Source: Khan & Rue (2023), section 4.1, with the curvature of Khan et al. (2018, VOGN). Differs in:
draws come in mirrored pairs, so there is no noise at all on a linear-Gaussian model; a step is at
most 3 standard deviations of q long; rates are halved when the bound stops rising.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Gaussian
from crosscoding.crosscoders.precision_factors import precision_root
from crosscoding.errors import counted
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.importance import weigh
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.numerics.gauss_newton import climb, positive
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.random import normal, spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# On 12 queries of mnist-20d, the median ESS is 56 to 96 with four seeds. Half or twice any of these
# leaves it at 42 to 97, so they matter less than the seed does.
_BLOCK = 20  # steps between checks of whether the bound still rises
_NUM_HALVINGS = 3  # of the rates, to an eighth, after which a fit is done
_STEPS_A_CURVATURE = 4  # as each costs several gradients: with 2, fits take 1.5 times as long
_CURVATURE_RATE, _MEAN_RATE = 0.3, 0.5  # below 1, as both come from few draws
_LONGEST = 3.0  # longest step of the mean, in standard deviations of the fit


@dataclass(frozen=True)
class NaturalGradient(Method):
    """A Gaussian with full covariance, fitted by natural gradients from a Laplace approximation.

    Args:
        steps: Most steps per query, ≥ 1; a fit stops when its C-ELBO stops rising.
        num_draws: Draws per step, even, ≥ 2.
        num_starts: Climbs beforehand, ≥ 1; the fit starts from the best one.
        climb_steps: Most steps of a climb, ≥ 1. It need not reach the mode.
        num_fresh: Fresh draws of the fit, weighted and stored, ≥ 2.
    """

    steps: int = 400
    num_draws: int = 16
    num_starts: int = 2
    climb_steps: int = 10
    num_fresh: int = 1000

    def __post_init__(self) -> None:
        if min(self.steps, self.num_starts, self.climb_steps, self.num_fresh - 1) < 1:
            raise ValueError(f"expected counts >= 1 and num_fresh >= 2, got {self}")
        if self.num_draws < 2 or self.num_draws % 2:
            raise ValueError(f"expected an even num_draws >= 2, got {self.num_draws}")

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_starts, for_fit, for_check = spawn(generator, 3)
        starts = spread_starts(target, self.num_starts, generator=for_starts)
        modes = climb(target, starts, self.climb_steps)
        best = modes.log_weights()[0].argmax(0)
        query = torch.arange(target.num_queries, device=best.device)
        mean, precision, steps = self.fit(
            target, modes.z[best, query], modes.precision[best, query], for_fit, report
        )
        fitted = Gaussian.from_precision(mean, precision)
        found = weigh(target, fitted, self.num_fresh, generator=for_check)
        found.stats |= {"steps": steps}
        return found

    @torch.no_grad()
    def fit(
        self,
        target: Target,
        mean: Tensor,
        precision: Tensor,
        generator: Generator,
        report: Report = silent,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fit all queries: mean (B, latent), precision (B, latent, latent) and steps taken (B,).

        Args:
            target: A flat target.
            mean, precision: Where the fits start; the precision in double.
            generator: For the draws.
            report: Receives progress.
            out_of_time: Called after each step; if it returns True, the fits end as they are.
        """
        final_mean, final_precision = mean.clone(), precision.clone()
        steps = torch.zeros_like(mean[:, 0])
        state = _OngoingFits(target, mean, precision)
        for step in range(1, self.steps + 1):
            if not len(state.index):
                break
            noise = normal(
                (self.num_draws // 2, 1, target.latent_dim), generator=generator, like=mean
            )
            state.step(torch.cat([noise, -noise]), curved=step % _STEPS_A_CURVATURE == 0)
            last = step == self.steps or out_of_time()
            if step % _BLOCK == 0 or last:
                report(step / self.steps, counted(len(state.index), "fit"))
                done = state.end_block() | last
                rows = state.index[done]
                final_mean[rows], final_precision[rows] = state.average[done], state.precision[done]
                steps[rows] = float(step)
                state.keep(~done)
        return final_mean, final_precision, steps


class _OngoingFits:
    """State of the fits that are still running."""

    def __init__(self, target: Target, mean: Tensor, precision: Tensor) -> None:
        self.index = torch.arange(len(mean), device=mean.device)
        self.average = mean
        self.precision = precision
        self._target, self._mean = target, mean
        self._rate = torch.ones_like(mean[:, :1])
        self._halvings = torch.zeros_like(self.index)
        self._last = torch.full_like(mean[:, 0], -math.inf)
        self._objectives: list[Tensor] = []
        self._means: list[Tensor] = []

    def step(self, noise: Tensor, *, curved: bool) -> None:
        """One step with draws from noise (S, 1, latent); `curved` updates the precision too."""
        factor = precision_root(self.precision)
        z = self._mean + _noise_of_precision(factor, noise)
        here = evaluated(self._target, self._target.log_joint, z)
        if curved:
            bend = positive(self._target.curvature(z[:1])[0], self._target.prior_scale)
            share = (_CURVATURE_RATE * self._rate)[..., None]
            self.precision = (1 - share) * self.precision + share * bend
            factor = precision_root(self.precision)
        gradient = here.gradient.mean(0)
        direction = torch.cholesky_solve(gradient[..., None].to(factor), factor)[..., 0].to(
            gradient
        )
        length = (direction * gradient).sum(-1, keepdim=True).clamp_min(1e-30).sqrt()
        shortened = (_LONGEST / length).clamp_max(1.0)
        self._mean = self._mean + _MEAN_RATE * self._rate * shortened * direction
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._objectives.append(here.log_density.mean(0) - half_log_det.to(gradient))
        self._means.append(self._mean)

    def end_block(self) -> Tensor:
        """Halve the rates of stalled fits; returns which are done, boolean (B,)."""
        objectives = torch.stack(self._objectives)
        mean, count = objectives.mean(0), len(objectives)
        error = objectives.std(0, correction=min(1, count - 1)) / math.sqrt(count)
        stalled = ~(mean > self._last + error)
        self._rate = torch.where(stalled[:, None], 0.5 * self._rate, self._rate)
        self._halvings = self._halvings + stalled
        self.average = torch.stack(self._means).mean(0)
        self._last, self._objectives, self._means = mean, [], []
        return self._halvings >= _NUM_HALVINGS

    def keep(self, which: Tensor) -> None:
        """Continue with these fits only."""
        for name in ("index", "precision", "_mean", "_rate", "_halvings", "_last"):
            setattr(self, name, getattr(self, name)[which])
        self._target = self._target.select(which.nonzero()[:, 0])


def _noise_of_precision(factor: Tensor, noise: Tensor) -> Tensor:
    """L⁻ᵀ ε for precision P = L Lᵀ, with covariance P⁻¹: (S, 1, latent) -> (S, B, latent)."""
    wide = noise.transpose(0, 1).expand(len(factor), -1, -1).mT.to(factor)
    z = torch.linalg.solve_triangular(factor.mT, wide, upper=True).mT.transpose(0, 1)
    return z.to(noise)
