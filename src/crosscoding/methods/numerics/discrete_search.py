"""The stages of `methods.discrete`, for priors with too many states to enumerate."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import UNLIMITED, OutOfTime
from crosscoding.diagnostics import importance_ess, log_mean_exp, pareto_smooth
from crosscoding.methods.numerics.autoregressive_fit import AutoregressiveFit
from crosscoding.methods.numerics.discrete_annealing import DiscreteAnnealing, Particles
from crosscoding.methods.numerics.discrete_look import LOOK_DECODES, explored, looked
from crosscoding.methods.numerics.discrete_strays import STRAY_DECODES, fitted
from crosscoding.methods.numerics.known_states import KnownStates, Stratified
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.progress import Report
from crosscoding.random import spawn, uniform
from crosscoding.result.findings import Findings
from crosscoding.result.joining import joined
from crosscoding.result.trace import Stage
from crosscoding.target.discrete_target import DiscreteTarget

NUM_ISLANDS = 16  # of particles: fewer estimate the error of log p(x) too roughly
# Draws of the prior. Half or double moves log p(x) by 0.06 nats on 26 queries of small models, as
# another seed does, and takes 20 % more or 27 % fewer decodes; shared draws are not counted.
_MAX_PRIOR = 2**14
_FIRST_PRIOR = 2**8  # of these, weighted at once if time is limited
_MOST_OPERATIONS = 2e10  # multiply-adds for the draws of the prior: about a second
_ESS_SHARE = 0.5  # share of the particles that stays effective up to the next temperature
_ANNEAL = DiscreteAnnealing(NUM_ISLANDS, num_chains=4, num_moves=32, ess_share=_ESS_SHARE)
_BRIDGE = DiscreteAnnealing(NUM_ISLANDS, num_chains=32, num_moves=16, ess_share=_ESS_SHARE)
_MORE = DiscreteAnnealing(NUM_ISLANDS, num_chains=16, num_moves=64, ess_share=_ESS_SHARE)
_TEMPERATURES = 10  # that `anneal` usually takes, to plan by
# Halving or doubling the next two, or the number of known states below and their candidates, moves
# log p(x) by at most 0.008 nats, and changes no verdict, on 26 queries of small models whose log
# p(x) is known (`discrete` and `wells` in benchmarks/sensitivity.py).
_FIRST_DRAWS, _MOST_DRAWS = 2**13, 2**15  # of the fitted density
_WANTED_ESS = 800.0  # a little more than the verdict asks for
_MOST_FEATURES = 256  # of the fitted density, above which fitting it takes longer than particles
# Half of the next three leaves one of these 26 answers untrusted, and double changes nothing.
_CONTRADICTION = 3.0  # errors by which another stage's log p(x) may be higher: by chance, 0.1 % are
_CLAIM_ESS = 10.0  # below which an error is unknown, so that log p(x) contradicts no other stage
_MOST_DISAGREEMENT = 0.25  # nats of error by islands, above which they are no search: see `swarm`
_OF_PRIOR = 512  # likeliest draws of the prior that S may be chosen from
_MOST_KNOWN = 1024  # states in S
_STAGES = ("prior", "anneal", "look", "refine", "bridge")
_STREAMS = (*_STAGES, "refine again", "strays")


_States = tuple[Tensor, Tensor]
"""Points, (S, B, D), and log p(z, x) there, (S, B)."""


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
        self._highest = torch.full_like(nothing, -math.inf)  # of any stage's log p(x) − 3 errors
        self._finished = nothing == 0

    def run(self, generator: Generator) -> Findings:
        """Findings for all queries."""
        names: Sequence[str] = _STREAMS
        streams: dict[str, Generator] = dict(zip(names, spawn(generator, len(names)), strict=True))
        rows = torch.arange(self._target.num_queries, device=self._target.like.device)
        self._prior_draws(rows, streams["prior"])
        interrupted = False
        try:
            open_rows = rows[self._grades() > 0]
            if len(open_rows):
                self._particles(open_rows, streams)
        except (KeyboardInterrupt, OutOfTime) as cut:
            interrupted = isinstance(cut, KeyboardInterrupt)
            self._finished &= self._grades() == 0
        assert self._best is not None
        trace = tuple(stage for stage in self._trace.values() if bool((stage.seconds > 0).any()))
        return replace(self._best, finished=self._finished, trace=trace, interrupted=interrupted)

    # ---- stages ----------------------------------------------------------------------------------

    def _prior_draws(self, rows: Tensor, generator: Generator) -> None:
        """Weight as many draws of the prior as cost about a second, or a quarter of the time."""
        start, target = time.perf_counter(), self._target
        most = int(min(_MOST_OPERATIONS / max(target.operations, 1.0), _MAX_PRIOR))
        num = max(most // NUM_ISLANDS, 4) * NUM_ISLANDS
        draws = target.draw_prior(num, generator=generator)
        pieces, stop = [], target.clock.within(0.25)
        size = _FIRST_PRIOR if target.clock.is_limited else num
        unlimited = target.timed(UNLIMITED)  # so that there always is an answer
        for piece in draws.split(size):
            if pieces and stop():
                break
            pieces.append(unlimited.pairwise_log_likelihood(piece))
        self._prior_log_likelihood = torch.cat(pieces)
        self._draws_of_prior = draws[: len(self._prior_log_likelihood)]
        z = self._draws_of_prior[:, None].expand(-1, len(rows), -1)
        found = self._weighted(z, self._prior_log_likelihood, generator)
        self._offer(rows, replace(found, missed=torch.zeros_like(found.ess)))
        self._record("prior", rows, start, 0.0)

    def _particles(self, rows: Tensor, streams: dict[str, Generator]) -> None:
        if _TEMPERATURES * _ANNEAL.num_states > self._most:
            self._finished[rows] = False
            return
        particles = self._anneal(self._target.select(rows), rows, streams["anneal"])
        fits = self._target.latent_dim * (self._target.prior.num_values - 1) <= _MOST_FEATURES
        planned = LOOK_DECODES + (STRAY_DECODES + _FIRST_DRAWS if fits else 0)
        some = (planned <= self._left(rows)).nonzero()[:, 0]
        self._finished[rows] = False
        rows, particles = rows[some], particles.select(some)
        if not len(rows):
            return
        self._finished[rows] = True
        target = self._target.select(rows)
        found = [self._likeliest_prior_draws(rows), _states(particles)]
        found.append(self._look(target, rows, streams["look"]))
        if not fits:
            self._anneal_more(target, rows, streams["bridge"])
            return
        fit, strays = self._fitted(target, rows, particles, streams["strays"])
        found.append(strays)
        found.append(self._refine(target, rows, fit, _together(found), streams["refine"]))
        some = self._affordable(rows, 4 * _BRIDGE.num_states + _MOST_DRAWS)
        if not len(some):
            return
        target, rows = target.select(some), rows[some]
        bridged = self._bridge(target, rows, fit.select(some), streams["bridge"])
        found = [(z[:, some], log_joint[:, some]) for z, log_joint in found]
        again = AutoregressiveFit.to(*bridged.weighted(), target.prior.num_values)
        known = _together([*found, _states(bridged)])
        self._refine(target, rows, again, known, streams["refine again"])

    def _anneal_more(self, target: DiscreteTarget, rows: Tensor, generator: Generator) -> None:
        """Anneal with more particles, where no density can be fitted to them."""
        some = self._affordable(rows, _TEMPERATURES * _MORE.num_states)
        if not len(some):
            return
        target, rows = target.select(some), rows[some]
        self._anneal(target, rows, generator, _MORE, "bridge")

    def _affordable(self, rows: Tensor, decodes: int) -> Tensor:
        """Places of unsettled rows that can afford the decodes; marks others as not finished."""
        left = self._grades()[rows] > 0
        affordable = decodes <= self._left(rows)
        self._finished[rows[left & ~affordable]] = False
        return (left & affordable).nonzero()[:, 0]

    def _left(self, rows: Tensor) -> Tensor:
        """Evaluations that queries may still take, (B,)."""
        spent = torch.stack([stage.decodes[rows] for stage in self._trace.values()]).sum(0)
        return self._most - spent

    def _likeliest_prior_draws(self, rows: Tensor) -> _States:
        draws, log_likelihood = self._draws_of_prior, self._prior_log_likelihood[:, rows]
        log_joint = self._target.prior.log_prob(draws)[:, None] + log_likelihood
        most, place = log_joint.topk(min(_OF_PRIOR, len(draws)), dim=0)
        return draws[place], most

    def _anneal(
        self,
        target: DiscreteTarget,
        rows: Tensor,
        generator: Generator,
        settings: DiscreteAnnealing = _ANNEAL,
        name: str = "anneal",
    ) -> Particles:
        start = time.perf_counter()
        z = self._draws_of_prior[:, None].expand(-1, len(rows), -1)
        particles = settings.run(
            target,
            z,
            self._prior_log_likelihood[:, rows],
            most_decodes=self._left(rows),
            generator=generator,
            report=self._report,
        )
        self._offer(rows, self._of_particles(particles, target, generator))
        self._record(name, rows, start, particles.decodes)
        return particles

    def _look(self, target: DiscreteTarget, rows: Tensor, generator: Generator) -> _States:
        start = time.perf_counter()
        z, log_joint = looked(target, generator=generator)
        self._record("look", rows, start, LOOK_DECODES)
        return z, log_joint

    def _fitted(
        self, target: DiscreteTarget, rows: Tensor, particles: Particles, generator: Generator
    ) -> tuple[AutoregressiveFit, _States]:
        """A fit to particles and to strays, if there are any, and the states that were found."""
        start = time.perf_counter()
        draws = self._draws_of_prior, self._prior_log_likelihood[:, rows]
        log_evidence, _ = particles.log_evidence
        result = fitted(target, particles.weighted(), log_evidence, draws, generator=generator)
        self._record("look", rows, start, STRAY_DECODES)
        return result

    def _refine(
        self,
        target: DiscreteTarget,
        rows: Tensor,
        fit: AutoregressiveFit,
        found: _States,
        generator: Generator,
    ) -> _States:
        """Weight draws of a fit: a few, and more if these promise to be enough.

        Args:
            target: The target of these queries.
            rows: Their indices.
            fit: What to draw from.
            found: States found so far.
            generator: For the draws.
        Returns:
            The first draws, and the states that are known now.
        """
        start = time.perf_counter()
        for_first, for_more, for_choice = spawn(generator, 3)
        known = KnownStates.among(*found, _MOST_KNOWN)
        z, log_joint, log_weights = _drawn(target, fit, _FIRST_DRAWS, for_first)
        rough = Stratified.of(known, z, log_weights).log_evidence
        known, missed = explored(target, fit, known, rough)
        answer = Stratified.of(known, z, log_weights)
        enough = answer.ess >= _WANTED_ESS
        promising = answer.ess * (_MOST_DRAWS / _FIRST_DRAWS) >= _WANTED_ESS
        self._offer(rows, self._of_draws(answer, missed, for_choice))
        self._record("refine", rows, start, float(_FIRST_DRAWS))
        own = (promising & ~enough).nonzero()[:, 0]
        if len(own):
            start = time.perf_counter()
            num = _MOST_DRAWS - _FIRST_DRAWS
            more, _, more_weights = _drawn(target.select(own), fit.select(own), num, for_more)
            together = torch.cat([z[:, own], more]), torch.cat([log_weights[:, own], more_weights])
            stratified = Stratified.of(known.select(own), *together)
            found_more = self._of_draws(stratified, missed[own], for_choice)
            self._offer(rows[own], found_more)
            self._record("refine", rows[own], start, float(len(more)))
        return torch.cat([z, known.z]), torch.cat([log_joint, known.log_joint])

    def _bridge(
        self, target: DiscreteTarget, rows: Tensor, fit: AutoregressiveFit, generator: Generator
    ) -> Particles:
        start = time.perf_counter()
        z, _, log_ratio = _drawn(target, fit, _FIRST_DRAWS, generator)
        order = torch.randperm(len(z), generator=generator, device=generator.device).to(z.device)
        particles = _BRIDGE.run(
            target,
            z[order],
            log_ratio[order],
            fit,
            most_decodes=self._left(rows) - _FIRST_DRAWS,
            generator=generator,
            report=self._report,
        )
        self._offer(rows, self._of_particles(particles, target, generator))
        self._record("bridge", rows, start, particles.decodes + _FIRST_DRAWS)
        return particles

    # ---- answers ---------------------------------------------------------------------------------

    def _weighted(self, z: Tensor, log_weights: Tensor, generator: Generator) -> Findings:
        """Findings from weighted draws, (S, B, D) and (S, B).

        The weights are not smoothed: draws of one state have the same weight, and which of them got
        which smoothed one would depend on rounding.
        """
        log_evidence, error = log_mean_exp(log_weights)
        _, pareto_k = pareto_smooth(log_weights)
        ess = importance_ess(log_weights)
        num = torch.full_like(ess, len(z))
        return self._findings(z, log_weights, log_evidence, error, ess, pareto_k, num, generator)

    def _of_draws(self, answer: Stratified, missed: Tensor, generator: Generator) -> Findings:
        num = torch.full_like(answer.ess, float(len(answer.z)))
        state = generator.get_state()
        found = self._findings(
            answer.z,
            answer.log_weights,
            answer.log_evidence,
            answer.error,
            answer.ess,
            answer.pareto_k,
            num,
            generator,
        )
        generator.set_state(state)  # the same choice for all queries
        return replace(found, missed=missed)

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
        surely = torch.where(found.ess >= _CLAIM_ESS, surely, -math.inf)
        self._highest[rows] = torch.maximum(self._highest[rows], surely)
        if self._best is None:
            self._best = found
            return
        before = self._best.select(rows)
        old, new = (self._doubted(each, rows) for each in (before, found))
        grades = [each.figures.grades_for(self._purpose) for each in (old, new)]
        better = grades[1] < grades[0]
        better |= (grades[1] == grades[0]) & (new.log_evidence_error < old.log_evidence_error)
        chosen = joined([new, old]).select(
            torch.where(better, 0, len(rows)) + torch.arange(len(rows), device=rows.device)
        )
        place = torch.arange(self._target.num_queries, device=rows.device)
        place[rows] = len(place) + torch.arange(len(rows), device=rows.device)
        self._best = joined([self._best, chosen]).select(place)

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


def _states(particles: Particles) -> _States:
    return particles.z.flatten(0, 1), particles.log_joint.flatten(0, 1)


def _together(found: Sequence[_States]) -> _States:
    return torch.cat([z for z, _ in found]), torch.cat([log_joint for _, log_joint in found])


def _drawn(
    target: DiscreteTarget, fit: AutoregressiveFit, num: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of a fit (num, B, D), and log p(z, x) and log p(z, x) / q(z) there, (num, B)."""
    z = fit.sample(num, generator=generator)
    log_joint = target.log_joint(z)
    return z, log_joint, log_joint - fit.log_density(target.prior.inputs_of(z))
