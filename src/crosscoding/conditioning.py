"""The front door: what is p(y|x), for this VAE and this evidence?"""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.clock import MAX_BYTES, Clock
from crosscoding.errors import NonFiniteError, and_more
from crosscoding.evidence import Evidence, as_tensor
from crosscoding.isolation import isolated
from crosscoding.methods import Auto, Method, Report, silent
from crosscoding.methods.second_looks import (
    impossible_evidence,
    with_clamps,
    with_coverage,
    with_edges,
    with_losses,
)
from crosscoding.model.matching import check_matches
from crosscoding.model.vae import VAE
from crosscoding.progress import followed
from crosscoding.random import generator_from, spawn
from crosscoding.result.findings import Findings
from crosscoding.result.posterior import Posterior
from crosscoding.target.base import Target
from crosscoding.target.vae_target import VAETarget

_SURE = 6.0  # standard errors, beyond which two estimates contradict each other
_JOINING = 1e-5  # seconds that the blocks' draws take to be put together, for each query and dim
_LOOKING, _LOOKING_FOR_LOSSES = 0.04, 0.1  # shares of a method's seconds, for second looks


@isolated
def condition(
    vae: VAE,
    evidence: Evidence,
    method: Method | None = None,
    *,
    seed: int | Generator | None = None,
    report: Report = silent,
    progress: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Posterior:
    """Condition a trained VAE on evidence: p(z|x), and through it p(y|x), of every query.

    Args:
        vae: The trained model.
        evidence: Values of shape (*batch, *data); each entry of the batch is a query.
        method: How; by default `methods.Auto()`, which chooses by what it finds.
        seed: Int ≥ 0 or generator. The same seed gives the same bits on the same machine.
        report: Called with the share of the work done, which rises from 0 to 1, and a word on what
            goes on and how long the rest takes; every second or so, in the caller's thread.
        progress: Whether progress is shown where there is no `report`: on a terminal or in a
            notebook, once work has taken two seconds.
        max_bytes: Memory to work in, about, beside the model, its `Bank` (up to 256 MiB, made at
            the first call and kept) and the answers: more queries than fit are worked on one block
            after the other.

    Returns:
        A posterior of batch shape (*batch,). Entry b is what the query gives alone.

    Raises:
        TypeError, ValueError: An argument is not what it must be.
        NonFiniteError: The decoder outputs NaN or infinity.
        BudgetError: The method has no answer within its limits.

    Example:
        >>> import torch, crosscoding as cc
        >>> vae = cc.zoo.load("mnist-2d")
        >>> digits, labels = cc.zoo.digits()
        >>> upper_half = cc.rectangle_mask((28, 28), rows=(0, 13))
        >>> posterior = cc.condition(vae, cc.Evidence(digits[:3], upper_half), seed=0)
        >>> posterior.predict(64).shape
        torch.Size([64, 3, 28, 28])
    """
    return infer(
        VAETarget(vae, evidence),
        method,
        seed=seed,
        report=report,
        progress=progress,
        max_bytes=max_bytes,
    )


class QueryLogProb(NamedTuple):
    """log p(y|x) and its standard error in nats, both of shape (*batch,)."""

    log_prob: Tensor
    error: Tensor


@isolated
def query_log_prob(
    posterior: Posterior,
    truth: Tensor | np.ndarray,
    method: Method | None = None,
    *,
    seed: int | Generator | None = None,
    report: Report = silent,
    progress: bool = True,
) -> QueryLogProb:
    """log p(y|x) = log p(x, y) − log p(x) of the unobserved elements of truth, and its error.

    It conditions on the whole of truth as well. That is right where few draws of p(z|x) predict y,
    as of large data, and an average over them (`Posterior.query_log_prob`, a tensor without an
    error) comes out too low. The average is taken instead where the draws are trusted, enough of
    them count, and its own standard error is the smaller one; or where it is higher by more than
    the errors of both explain. Then log p(x, y) lacks what the draws have, and the error is the
    difference.

    Args:
        posterior: Of a VAE, and of a method that estimates log p(x).
        truth: Complete data, shape (*batch, *data); observed elements as in the evidence, or NaN.
        method: To condition on the whole; by default `methods.Auto()`.
        seed, report, progress: As in `condition`.

    Returns:
        A tuple of log p(y|x) and its standard error, `log_prob` and `error`, in nats, both of
        shape (*batch,); 0 where there is no query. NaN where neither can be estimated.

    Raises:
        TypeError: posterior is none.
        ValueError: The posterior has no model, or truth does not fit it or contradicts the
            evidence.

    Example:
        >>> import crosscoding as cc
        >>> digits = cc.zoo.digits()[0][:2]
        >>> evidence = cc.Evidence(digits, cc.random_mask((28, 28), 0.1, seed=0))
        >>> posterior = cc.condition(cc.zoo.load("mnist-2d"), evidence, seed=0)
        >>> log_prob, error = cc.query_log_prob(posterior, digits, seed=0)
        >>> bool((error < 0.05).all())
        True
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"expected a posterior first, got {type(posterior).__name__}")
    target = posterior.target
    if not isinstance(target, VAETarget):
        raise ValueError(
            "expected the posterior of a VAE, with its model, got one "
            + (
                "that was loaded without it; pass Posterior.load(path, vae=...)"
                if target is None
                else "of a bare density, which has no data to ask about; posterior.log_prob(z) is "
                "the density of z"
            )
        )
    truth = as_tensor(truth, "truth")
    check_matches(target.vae, truth, "truth", posterior.batch_shape)
    _check_agrees(target, truth)
    mask = target.evidence.mask
    whole = Evidence(torch.where(mask, target.evidence.values, truth), torch.ones_like(mask))
    both = condition(target.vae, whole, method, seed=seed, report=report, progress=progress)
    log_prob = both.log_evidence - posterior.log_evidence
    error = torch.hypot(both.log_evidence_error, posterior.log_evidence_error)
    average, its_error = posterior._averaged_query_log_prob(truth)
    gap = average - log_prob
    better = posterior.trusted & its_error.isfinite() & ~(its_error >= error)
    lacks = gap > torch.where(both.trusted, _SURE * (error + its_error), 2 * error)
    log_prob = torch.where(lacks | better, average, log_prob)
    error = torch.where(better, its_error, error)
    error = torch.where(lacks, torch.maximum(gap, error), error)
    everything = mask.flatten(len(posterior.batch_shape)).all(-1)
    log_prob, error = log_prob.masked_fill(everything, 0.0), error.masked_fill(everything, 0.0)
    return QueryLogProb(log_prob, error)


def _check_agrees(target: VAETarget, truth: Tensor) -> None:
    """Raise ValueError where truth (*batch, *data) contradicts the evidence; NaN says nothing."""
    values, mask = target.evidence.values, target.evidence.mask
    wrong = (mask & (truth != values) & ~truth.isnan()).reshape(-1, target.vae.data_size)
    if not wrong.any():
        return
    query, element = wrong.nonzero()[0].tolist()
    found, seen = (float(data.reshape(wrong.shape)[query, element]) for data in (truth, values))
    raise ValueError(
        "expected truth whose observed elements are as in the evidence, or NaN, got "
        f"{found:.6g} for {target.vae.element_name(element)} of query {query}, observed as "
        f"{seen:.6g}{and_more(int(wrong.sum()) - 1)}; condition on the values that truth has, or "
        "give them as they were observed"
    )


@isolated
def infer(
    target: Target,
    method: Method | None = None,
    *,
    seed: int | Generator | None = None,
    report: Report = silent,
    progress: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Posterior:
    """The same for a target that is there already, such as a `DensityTarget` without a VAE.

    Arguments, errors and result are those of `condition`; of the result, what needs a decoder
    raises ValueError where there is none.
    """
    if not isinstance(target, Target):
        raise TypeError(f"expected a crosscoding target, got {type(target).__name__}")
    if method is None:
        method = Auto()
    if not isinstance(method, Method):
        raise TypeError(
            f"expected method to be one of crosscoding.methods, such as HMC(), got {method!r}"
        )
    for_method, for_draws = spawn(generator_from(seed), 2)
    start = time.perf_counter()
    with torch.enable_grad():  # wherever the caller stands
        flat = target.flatten()
        with followed("conditioning", report, progress) as told:
            clock = Clock(beat=told.beat, max_bytes=max_bytes)
            timed = flat.timed(clock)
            findings = _in_blocks(method, timed, for_method, told, max_bytes, start)
            findings = with_coverage(flat, findings, _limited(clock, method, start))
    findings = with_edges(flat, findings, stacklevel=3)
    return Posterior(
        findings,
        target=target,
        batch_shape=target.batch_shape,
        method=type(method).__name__,
        generator=for_draws,
        seconds=time.perf_counter() - start,
    )


def _in_blocks(
    method: Method,
    target: Target,
    generator: Generator,
    report: Report,
    max_bytes: int,
    start: float,
) -> Findings:
    """Run a method on blocks of queries that fit in memory, like ones together.

    Every block has the same random numbers, so that a query's answer is that of its own. Whoever
    interrupts a method that can end at any time gets what there is, and of the blocks to come what
    takes next to no time.
    """
    if max_bytes < 1:
        raise ValueError(f"expected max_bytes >= 1, got {max_bytes}")
    order = target.sizes.argsort(stable=True)
    point_bytes = target.like.element_size() * (4 * target.latent_dim + 4)
    size = max(max_bytes // (method.points_at_once * point_bytes + target.query_bytes), 1)
    blocks = order.split(int(size))
    state, parts = generator.get_state(), []
    joining = 0.0 if len(blocks) == 1 else _JOINING * target.num_queries * target.latent_dim
    look_for_losses = bool(target.may_be_lost().any())
    looking = _LOOKING_FOR_LOSSES if look_for_losses else _LOOKING
    joining += looking * (getattr(method, "max_seconds", None) or 0.0)
    for number, block in enumerate(blocks):

        def report_block(share: float, what: str, done: int = number) -> None:
            report((done + share) / len(blocks), what)

        generator.set_state(state)
        chosen = target.select(block).prepare()
        interrupted = bool(parts) and parts[-1].interrupted
        left, seconds = len(blocks) - number, time.perf_counter() - start + joining
        runner = method.of_block(left, seconds, interrupted=interrupted)
        try:
            found = runner.find(chosen, generator=generator, report=report_block)
        except KeyboardInterrupt:
            hurried = method.of_block(left, seconds, interrupted=True)
            if not parts or interrupted or hurried is method:
                raise
            generator.set_state(state)
            found = hurried.find(chosen, generator=generator, report=report_block)
            found = replace(found, interrupted=True)
        except ValueError as error:
            if impossible := impossible_evidence(chosen):
                raise NonFiniteError(impossible) from error
            raise
        if look_for_losses:
            found = with_losses(chosen, found, _limited(target.clock, method, start))
        found = with_clamps(chosen, found, _limited(target.clock, method, start))
        parts.append(found)
    together = Findings.joined(parts)
    in_order = bool((order[1:] > order[:-1]).all())
    return together if in_order else together.select(_inverse(order))


def _inverse(order: Tensor) -> Tensor:
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back


def _limited(clock: Clock, method: Method, start: float) -> Clock:
    """By the time that is left of a method's own limit, if it has one."""
    limit = getattr(method, "max_seconds", None)
    left = None if limit is None else max(limit - (time.perf_counter() - start), 0.0)
    return clock.limited(left)
