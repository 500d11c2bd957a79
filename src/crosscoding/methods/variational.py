"""Algorithm 1: fit a cross-coder to p(z|x) by stochastic gradients of the C-ELBO.

    C-ELBO = E_{q(ε)}[ log p(XCoder(ε), x) + log |det ∇XCoder(ε)| ] + H[q(ε)]          (Theorem 2)

For a mixture it is Σ_k π_k times such expectations, each with the q of the whole mixture.

Source: the paper, Algorithm 1. Differs in: fits start near weighted prior draws
(`numerics.variational_starts`), ε comes in pairs ε, −ε, and the learning rate needs no tuning
(`_Schedule`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Crosscoder, Fitted, Gaussian
from crosscoding.crosscoders.base import base_log_prob, pack, unpack
from crosscoding.diagnostics import importance_ess, log_mean_exp, mean_error, pareto_smooth
from crosscoding.errors import NonFiniteError
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.variational_starts import starting_params
from crosscoding.random import normal, spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# With a Gaussian on 12 queries of mnist-20d, the median ESS is 142 and 202 with two seeds. Halving
# or doubling either leaves it at 127 to 141 with the first seed.
_BLOCK = 50  # steps between checks of whether the C-ELBO still rises
_NUM_HALVINGS = 8  # of the rate, to 1/256, after which a query is done
_BETA_1, _BETA_2 = 0.9, 0.99  # of Adam; the second is below the usual 0.999, as fits are short


@dataclass(frozen=True)
class Variational(Method):
    """Algorithm 1 with any cross-coder: Adam on fresh draws, for all queries at once.

    The C-ELBO, log p(x) by importance sampling, the ESS and Pareto k come from `num_fresh` draws
    made after the fit.

    Args:
        crosscoder: The family to fit, any of `crosscoding.crosscoders`.
        steps: Most steps per query; a fit stops earlier when its C-ELBO stops rising.
        num_draws: Draws of ε per step and query, even, ≥ 2, and at least one for each component of
            a mixture. None: 32 for a Gaussian, 128 for others.
        learning_rate: Adam's initial rate. None: 0.03 for a Gaussian, 0.01 for others, which start
            with the posterior's modes and can lose them.
        num_fresh: Draws made after the fit, stored as the posterior's draws, ≥ 2.
    """

    crosscoder: Crosscoder = field(default_factory=Gaussian)
    steps: int = 5000
    num_draws: int | None = None
    learning_rate: float | None = None
    num_fresh: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.crosscoder, Crosscoder):
            raise TypeError(
                "expected crosscoder to be one of crosscoding.crosscoders, such as Gaussian(), "
                f"got {self.crosscoder!r}"
            )
        num_draws, learning_rate = self._tuning
        if self.steps < 1 or self.num_fresh < 2 or not learning_rate > 0:
            raise ValueError(
                "expected steps >= 1, num_fresh >= 2 and learning_rate > 0, got "
                f"{self.steps}, {self.num_fresh} and {learning_rate}"
            )
        if num_draws < 2 or num_draws % 2:
            raise ValueError(f"expected an even num_draws >= 2, got {num_draws}")

    @property
    def _tuning(self) -> tuple[int, float]:
        """Draws per step, and initial learning rate."""
        family = self.crosscoder
        return (
            family.usual_num_draws if self.num_draws is None else self.num_draws,
            family.usual_learning_rate if self.learning_rate is None else self.learning_rate,
        )

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_start, for_fit, for_check = spawn(generator, 3)
        params = starting_params(target, self.crosscoder, generator=for_start)
        fitted, steps = self.fit(target, params, generator=for_fit, report=report)
        return self._check(target, fitted, steps, generator=for_check)

    def fit(
        self,
        target: Target,
        params: dict[str, Tensor],
        *,
        generator: Generator,
        report: Report = silent,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[Fitted, Tensor]:
        """Fit all queries: the fitted cross-coders, and the steps taken, (B,).

        Args:
            target: A flat target.
            params: Where the fits start.
            generator: For the draws.
            report: Receives progress.
            out_of_time: Called after each step; if it returns True, the fits end as they are.
        """
        packed, layout = pack(params)
        answer, steps = packed.clone(), packed.new_zeros(len(packed))
        state = _Schedule(packed, self._tuning[1])
        active = target
        for step in range(1, self.steps + 1):
            if not len(state.params):
                break
            eps = self._noise(active, generator)
            psi = state.params.requires_grad_()
            z, log_q, log_weights = self.crosscoder.weighted_draws(unpack(psi, layout), eps)
            fall = base_log_prob(eps) - log_q  # log q(ε) − log q(z|x); for a map, its ladj
            objective = (log_weights.exp() * (active.log_joint(z) + fall)).sum(0)
            (gradient,) = torch.autograd.grad(objective.sum(), psi)
            state.ascend(objective.detach(), gradient)
            last = step == self.steps or out_of_time()
            if step % _BLOCK == 0 or last:
                finished = state.end_block() | last
                rows = state.index[finished]
                answer[rows], steps[rows] = state.average[finished], float(step)
                if finished.any():
                    state.keep(~finished)
                    active = target.select(state.index)
                if not state.params.isfinite().all():
                    raise NonFiniteError(
                        "expected finite gradients of log p(z, x), got NaN or infinity; "
                        "the decoder may not be differentiable everywhere"
                    )
                report(1 - len(state.index) / max(len(packed), 1), f"step {step}")
        return Fitted(self.crosscoder, unpack(answer, layout), target.latent_dim), steps

    def _noise(self, target: Target, generator: Generator) -> Tensor:
        shape = (self._tuning[0] // 2, 1, target.latent_dim)
        eps = normal(shape, generator=generator, like=target.like)
        pairs = torch.stack([eps, -eps], dim=1).flatten(0, 1)  # adjacent, so in the same component
        return pairs.expand(-1, target.num_queries, -1)

    @torch.no_grad()
    def _check(
        self, target: Target, fitted: Fitted, steps: Tensor, *, generator: Generator
    ) -> Findings:
        z, log_q = fitted.rsample_and_log_prob(self.num_fresh, generator=generator)
        log_weights = target.log_joint(z) - log_q
        log_evidence, log_evidence_error = log_mean_exp(log_weights)
        return Findings(
            draws=z,
            fitted=fitted,
            c_elbo=log_weights.mean(0),
            c_elbo_error=mean_error(log_weights),
            log_evidence=log_evidence,
            log_evidence_error=log_evidence_error,
            ess=importance_ess(log_weights),
            pareto_k=pareto_smooth(log_weights)[1],
            stats={"steps": steps},
        )


class _Schedule:
    """Adam with a learning rate for each query, halved when its C-ELBO stops rising.

    Steps come in blocks. If the mean objective of a block does not exceed the last block's by more
    than its standard error, noise hides any progress, and the rate is halved. After
    `_NUM_HALVINGS` halvings the query is done; its answer is the mean of ψ over the last block.
    """

    def __init__(self, params: Tensor, learning_rate: float) -> None:
        self.params = params
        self.index = torch.arange(len(params), device=params.device)
        self.average = torch.zeros_like(params)
        self._momentum = torch.zeros_like(params)
        self._squares = torch.zeros_like(params)
        self._rate = torch.full_like(params[:, :1], learning_rate)
        self._halvings = torch.zeros_like(self.index)
        self._last = params.new_full((len(params),), -math.inf)
        self._objectives: list[Tensor] = []
        self._num_steps = 0

    def ascend(self, objective: Tensor, gradient: Tensor) -> None:
        """One step of Adam (Kingma & Ba 2015, Algorithm 1)."""
        if not self._objectives:
            self.average = torch.zeros_like(self.params)
        self._num_steps += 1
        self._momentum.lerp_(gradient, 1 - _BETA_1)
        self._squares.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        unbiased = self._momentum / (1 - _BETA_1**self._num_steps)
        scale = (self._squares / (1 - _BETA_2**self._num_steps)).sqrt() + 1e-8
        self.params = self.params.detach() + self._rate * unbiased / scale
        self._objectives.append(objective)
        self.average += self.params

    def end_block(self) -> Tensor:
        """Halve the rates of stalled queries; returns which queries are done, boolean (B,)."""
        objectives = torch.stack(self._objectives)
        mean, count = objectives.mean(0), len(self._objectives)
        error = objectives.std(0, correction=min(1, count - 1)) / math.sqrt(count)
        stalled = ~(mean > self._last + error)
        self._last, self._objectives = mean, []
        self._rate = torch.where(stalled[:, None], 0.5 * self._rate, self._rate)
        self._halvings = self._halvings + stalled
        self.average = self.average / count
        return self._halvings >= _NUM_HALVINGS

    def keep(self, which: Tensor) -> None:
        """Continue with these queries only."""
        for name in ("params", "index", "average", "_momentum", "_squares", "_rate"):
            setattr(self, name, getattr(self, name)[which])
        self._halvings, self._last = self._halvings[which], self._last[which]
