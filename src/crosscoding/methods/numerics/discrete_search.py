"""The stages of `methods.discrete` for states that are too many to enumerate."""

import math
import time
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import OutOfTime
from crosscoding.diagnostics import importance_ess, log_mean_exp, pareto_smooth
from crosscoding.methods.numerics.autoregressive_fit import AutoregressiveFit
from crosscoding.methods.numerics.discrete_annealing import DiscreteAnnealing, Particles
from crosscoding.methods.numerics.discrete_look import looked
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.progress import Report
from crosscoding.random import spawn, uniform
from crosscoding.result.findings import Findings, Stage
from crosscoding.target.discrete_target import DiscreteTarget

NUM_ISLANDS = 16
_MAX_PRIOR = 2**14
_MOST_OPERATIONS = 2e10  # multiply-adds for the draws of the prior: about a second
_ESS_SHARE = 0.5
_ANNEAL = DiscreteAnnealing(NUM_ISLANDS, num_chains=4, num_moves=32, ess_share=_ESS_SHARE)
_BRIDGE = DiscreteAnnealing(NUM_ISLANDS, num_chains=32, num_moves=16, ess_share=_ESS_SHARE)
_TEMPERATURES = 10  # that `anneal` usually takes, to plan by
_FIRST_DRAWS, _MOST_DRAWS = 2**13, 2**15  # of the fitted density
_WANTED_ESS = 800.0  # a little more than the verdict asks for
_MOST_FEATURES = 256  # of the fitted density, above which fitting it takes longer than particles
_CONTRADICTION = 3.0  # errors by which another stage's log p(x) may be higher
_MOST_DISAGREEMENT = 0.25  # nats between islands above which they count as no search for modes
_BEYOND = 1.0  # nats above the largest weight, where a point lies outside the answer
_STAGES = ("prior", "anneal", "look", "refine", "bridge")
_STREAMS = (*_STAGES, "refine again")


class DiscreteSearch:
    """One run.

    Args:
        target: The target, flat.
        num_draws: Draws to store for each query.
        purpose: What queries have to be settled for.
        max_decodes: Most evaluations per query; None: no limit.
        report: Receives progress.
    """

    def __init__(
        self,
        target: DiscreteTarget,
        num_draws: int,
        purpose: str,
        max_decodes: int | None,
        report: Report,
    ) -> None:
        self._target, self._num_draws, self._purpose = target, num_draws, purpose
        self._most = math.inf if max_decodes is None else max_decodes
        self._report = report
        nothing = target.like.new_zeros(target.num_queries)
        self._trace = {name: Stage(name, nothing.clone(), nothing.clone()) for name in _STAGES}
        self._best: Findings | None = None
        self._highest = torch.full_like(nothing, -math.inf)  # log p(x) less three errors, of any
        self._finished = nothing == 0

    def run(self, generator: Generator) -> Findings:
        """Findings for all queries."""
        streams = dict(zip(_STREAMS, spawn(generator, len(_STREAMS)), strict=True))
        rows = torch.arange(self._target.num_queries, device=self._target.like.device)
        self._prior_draws(rows, streams["prior"])
        try:
            open_rows = rows[self._grades() > 0]
            if len(open_rows):
                self._particles(open_rows, streams)
        except OutOfTime:
            self._finished &= self._grades() == 0
        assert self._best is not None
        trace = tuple(stage for stage in self._trace.values() if bool((stage.seconds > 0).any()))
        return replace(self._best, finished=self._finished, trace=trace)

    # ---- stages ----------------------------------------------------------------------------------

    def _prior_draws(self, rows: Tensor, generator: Generator) -> None:
        """Weight as many draws of the prior as cost about a second, or a quarter of the time."""
        start, target = time.perf_counter(), self._target
        most = int(min(_MOST_OPERATIONS / max(target.operations, 1.0), _MAX_PRIOR))
        num = max(most // NUM_ISLANDS, 4) * NUM_ISLANDS
        draws = target.draw_prior(num, generator=generator)
        pieces, stop = [], target.clock.within(0.25)
        size = num // 16 if target.clock.is_limited else num
        for piece in draws.split(max(size // NUM_ISLANDS, 1) * NUM_ISLANDS):
            if pieces and stop():
                break
            pieces.append(target.pairwise_log_likelihood(piece))
        self._prior_log_likelihood = torch.cat(pieces)
        self._draws_of_prior = draws[: len(self._prior_log_likelihood)]
        z = self._draws_of_prior[:, None].expand(-1, len(rows), -1)
        found = self._weighted(z, self._prior_log_likelihood, generator)
        self._offer(rows, replace(found, missed=torch.zeros_like(found.ess)))
        self._record("prior", rows, start, 0.0)

    def _particles(self, rows: Tensor, streams: dict[str, Generator]) -> None:
        planned = _TEMPERATURES * _ANNEAL.num_states
        if planned > self._most:
            self._finished[rows] = False
            return
        target = self._target.select(rows)
        particles = self._anneal(target, rows, streams["anneal"])
        ends = self._look(target, rows, streams["look"])
        if target.latent_dim * (target.prior.num_values - 1) > _MOST_FEATURES:
            return
        fit = AutoregressiveFit.to(*particles.weighted(), target.prior.num_values)
        self._refine(target, rows, fit, ends, particles, streams["refine"])
        left = self._grades()[rows] > 0
        if not left.any():
            return
        spent = sum(stage.decodes[rows] for stage in self._trace.values())
        affordable = spent + 4 * _BRIDGE.num_states + _MOST_DRAWS <= self._most
        self._finished[rows[left & ~affordable]] = False
        if not (left & affordable).any():
            return
        some = (left & affordable).nonzero()[:, 0]
        bridged = self._bridge(target.select(some), rows[some], fit.select(some), streams["bridge"])
        again = AutoregressiveFit.to(*bridged.weighted(), target.prior.num_values)
        ends = ends[0][:, some], ends[1][:, some]
        self._refine(target.select(some), rows[some], again, ends, bridged, streams["refine again"])

    def _anneal(self, target: DiscreteTarget, rows: Tensor, generator: Generator) -> Particles:
        start = time.perf_counter()
        z = self._draws_of_prior[:, None].expand(-1, len(rows), -1)
        particles = _ANNEAL.run(
            target, z, self._prior_log_likelihood[:, rows], generator=generator, report=self._report
        )
        self._offer(rows, self._of_particles(particles, target, generator))
        self._record("anneal", rows, start, particles.decodes)
        return particles

    def _look(
        self, target: DiscreteTarget, rows: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        z, log_weights, decodes = looked(target, generator=generator)
        self._record("look", rows, start, decodes)
        return z, log_weights

    def _refine(
        self,
        target: DiscreteTarget,
        rows: Tensor,
        fit: AutoregressiveFit,
        ends: tuple[Tensor, Tensor],
        particles: Particles,
        generator: Generator,
    ) -> None:
        """Weight draws of a fit: a few, and as many more as promise to be enough."""
        start = time.perf_counter()
        for_first, for_more, for_choice = spawn(generator, 3)
        z, log_weights = _drawn(target, fit, _FIRST_DRAWS, for_first)
        ess = importance_ess(log_weights)
        promising = ess * (_MOST_DRAWS / _FIRST_DRAWS) >= _WANTED_ESS
        enough = ess >= _WANTED_ESS
        self._record("refine", rows, start, float(_FIRST_DRAWS))
        for which, num in ((enough, 0), (promising & ~enough, _MOST_DRAWS - _FIRST_DRAWS)):
            own = which.nonzero()[:, 0]
            if not len(own):
                continue
            start = time.perf_counter()
            some, some_z, some_weights = target.select(own), z[:, own], log_weights[:, own]
            if num:
                more_z, more_weights = _drawn(some, fit.select(own), num, for_more)
                some_z = torch.cat([some_z, more_z])
                some_weights = torch.cat([some_weights, more_weights])
            state = for_choice.get_state()  # the same for all queries
            found = self._weighted(some_z, some_weights, for_choice)
            for_choice.set_state(state)
            missed = _outside(
                some, fit.select(own), some_weights, (ends[0][:, own], ends[1][:, own])
            )
            also = _left_out(some, fit.select(own), some_weights, particles.select(own))
            self._offer(rows[own], replace(found, missed=torch.maximum(missed, also)))
            self._record("refine", rows[own], start, float(num))

    def _bridge(
        self, target: DiscreteTarget, rows: Tensor, fit: AutoregressiveFit, generator: Generator
    ) -> Particles:
        start = time.perf_counter()
        z, log_ratio = _drawn(target, fit, _FIRST_DRAWS, generator)
        order = torch.randperm(len(z), generator=generator, device=generator.device).to(z.device)
        particles = _BRIDGE.run(
            target, z[order], log_ratio[order], fit, generator=generator, report=self._report
        )
        self._offer(rows, self._of_particles(particles, target, generator))
        self._record("bridge", rows, start, particles.decodes + _FIRST_DRAWS)
        return particles

    # ---- answers ---------------------------------------------------------------------------------

    def _weighted(self, z: Tensor, log_weights: Tensor, generator: Generator) -> Findings:
        """Findings from weighted draws, (S, B, D) and (S, B)."""
        log_evidence, error = log_mean_exp(log_weights)
        smoothed, pareto_k = pareto_smooth(log_weights)
        ess = importance_ess(log_weights)
        num = torch.full_like(ess, len(z))
        return self._findings(z, smoothed, log_evidence, error, ess, pareto_k, num, generator)

    def _of_particles(
        self, particles: Particles, target: DiscreteTarget, generator: Generator
    ) -> Findings:
        z, log_weights = particles.weighted()
        log_evidence, error = particles.log_evidence
        ess, unknown = particles.ess(target.prior.inputs_of), torch.full_like(error, math.nan)
        num = torch.full_like(ess, len(z))
        found = self._findings(z, log_weights, log_evidence, error, ess, unknown, num, generator)
        failed = particles.stuck | ~particles.reached | ~(error <= _MOST_DISAGREEMENT)
        return replace(found, missed=torch.where(failed, math.nan, torch.zeros_like(ess)))

    def _findings(
        self,
        z: Tensor,
        log_weights: Tensor,
        log_evidence: Tensor,
        error: Tensor,
        ess: Tensor,
        pareto_k: Tensor,
        num_weighed: Tensor,
        generator: Generator,
    ) -> Findings:
        offset = uniform((1,), generator=generator, like=z)
        draws = taken(z, systematic(log_weights, offset, self._num_draws))
        unknown = torch.full_like(log_evidence, math.nan)
        error = torch.hypot(error, torch.full_like(error, self._target.prior.log_normaliser_error))
        return Findings(
            draws=draws,
            log_evidence=log_evidence,
            log_evidence_error=error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=ess,
            pareto_k=pareto_k,
            exact_density=True,
            missed=unknown,
            num_weighed=num_weighed,
        )

    def _offer(self, rows: Tensor, found: Findings) -> None:
        """Keep the better of an answer and the best so far, for each query.

        If another stage found a log p(x) that is higher by more than the errors explain, the gap
        becomes the error.
        """
        surely = found.log_evidence - _CONTRADICTION * found.log_evidence_error
        surely = torch.where(found.ess >= 10, surely, -math.inf)  # else the error is unknown
        self._highest[rows] = torch.maximum(self._highest[rows], surely)
        if self._best is None:
            self._best = found
            return
        before = self._best.select(rows)
        old, new = (self._doubted(each, rows) for each in (before, found))
        grades = [each.figures.grades_for(self._purpose) for each in (old, new)]
        better = grades[1] < grades[0]
        better |= (grades[1] == grades[0]) & (new.log_evidence_error < old.log_evidence_error)
        chosen = Findings.joined([new, old]).select(
            torch.where(better, 0, len(rows)) + torch.arange(len(rows), device=rows.device)
        )
        place = torch.arange(self._target.num_queries, device=rows.device)
        place[rows] = len(place) + torch.arange(len(rows), device=rows.device)
        self._best = Findings.joined([self._best, chosen]).select(place)

    def _doubted(self, found: Findings, rows: Tensor) -> Findings:
        gap = self._highest[rows] - found.log_evidence
        error = found.log_evidence_error
        return replace(
            found, log_evidence_error=torch.where(gap > _CONTRADICTION * error, gap, error)
        )

    def _grades(self) -> Tensor:
        assert self._best is not None
        return self._best.figures.grades_for(self._purpose)

    def _record(self, name: str, rows: Tensor, start: float, decodes: Tensor | float) -> None:
        stage = self._trace[name]
        stage.decodes[rows] += decodes
        stage.seconds[rows] += (time.perf_counter() - start) / max(len(rows), 1)


def _drawn(
    target: DiscreteTarget, fit: AutoregressiveFit, num: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draws of a fit (num, B, D), and log p(z, x) / q(z) there, (num, B)."""
    z = fit.sample(num, generator=generator)
    return z, target.log_joint(z) - fit.log_density(target.prior.inputs_of(z))


def _outside(
    target: DiscreteTarget,
    fit: AutoregressiveFit,
    log_weights: Tensor,
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """The share of p(z|x), by the chains' weights, at ends where the fit has too little, (B,).

    Args:
        target: The target.
        fit: What the answer was drawn from.
        log_weights: Log-weights of these draws, (S, B).
        ends: Ends of the chains (C, B, D), and their log-weights, (C, B).
    """
    z, own = ends
    beyond = _is_beyond(target, fit, log_weights, z)
    log_evidence = log_weights.logsumexp(0) - math.log(len(log_weights))
    share = (own - log_evidence).clamp_max(0.0).exp() * beyond
    return share.mean(0)


def _left_out(
    target: DiscreteTarget, fit: AutoregressiveFit, log_weights: Tensor, particles: Particles
) -> Tensor:
    """The share of particles at which the fit has too little, (B,)."""
    z, own = particles.weighted()
    step = max(len(z) // 256, 1)
    z, own = z[::step], own[::step].log_softmax(0)
    return (_is_beyond(target, fit, log_weights, z) * own.exp()).sum(0)


def _is_beyond(
    target: DiscreteTarget, fit: AutoregressiveFit, log_weights: Tensor, z: Tensor
) -> Tensor:
    """Where a draw of the fit would have outweighed all others: z (C, B, D) -> boolean (C, B)."""
    weights = target.log_joint(z) - fit.log_density(target.prior.inputs_of(z))
    return weights > log_weights.amax(0) + _BEYOND
