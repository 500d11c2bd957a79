"""The main functions of the package: what is p(y|x), for this VAE and this evidence?"""

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.arrays import as_tensor
from crosscoding.clock import MAX_BYTES, Clock
from crosscoding.errors import and_more
from crosscoding.evidence import Evidence
from crosscoding.isolation import isolated
from crosscoding.methods import Auto, Method, Report, silent
from crosscoding.methods.blocks import BlockByBlock
from crosscoding.methods.second_looks import with_coverage, with_edges
from crosscoding.methods.steep_priors import warn_of_steep_priors
from crosscoding.model.matching import check_complete, check_matches
from crosscoding.model.tabular import evidence_of_frame, truth_of_frame
from crosscoding.model.vae import VAE
from crosscoding.progress import followed
from crosscoding.random import generator_from, spawn
from crosscoding.result.posterior import Posterior
from crosscoding.target.base import Target
from crosscoding.target.discrete_target import target_of
from crosscoding.target.partial_evidence import log_agreement
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    import pandas as pd

_SURE = 6.0  # standard errors beyond which two estimates contradict each other: 2e-9 if normal


@isolated
def condition(
    vae: VAE,
    evidence: "Evidence | pd.DataFrame",
    method: Method | None = None,
    *,
    seed: int | Generator | None = None,
    report: Report = silent,
    progress: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Posterior:
    """Condition a trained VAE on evidence: p(z|x), and through it p(y|x), for every query.

    Args:
        vae: The trained model.
        evidence: Values of shape (*batch, *data); each entry of the batch is a query. For a model
            with a table it may be a DataFrame: each row is a query for its missing cells.
        method: The inference method; by default `methods.Auto()`, which adapts to each query.
        seed: Int ≥ 0 or generator. The same seed gives the same bits on the same machine.
        report: Called about once a second in the caller's thread, with the share of the work done,
            which rises from 0 to 1, and a few words on the current step and the time left.
        progress: Whether to show progress when no `report` is given: on a terminal or in a
            notebook, once the call has taken two seconds.
        max_bytes: Approximate working memory, ≥ 1, not counting the model, its `Bank` (up to 256
            MiB, made at the first call and kept) and the answers; by default 1 GiB. It decides how
            much is decoded at once; queries that do not fit together are answered block by block.

    Returns:
        A posterior of batch shape (*batch,). Each entry is what its query would give alone.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.
        NonFiniteError: The decoder outputs NaN or infinity.
        BudgetError: The method found no answer within its limits.

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
        target_of(vae, evidence_of_frame(vae, evidence) if isinstance(vae, VAE) else evidence),
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
    truth: "Tensor | np.ndarray | pd.DataFrame",
    method: Method | None = None,
    *,
    seed: int | Generator | None = None,
    report: Report = silent,
    progress: bool = True,
) -> QueryLogProb:
    """log p(y|x) = log p(x, y) − log p(x) of the unobserved elements of truth, and its error.

    To estimate log p(x, y), it conditions on the complete truth as well. This stays right when few
    draws of p(z|x) predict y, as is common with large data, whereas an average over the draws
    (`Posterior.query_log_prob`, a tensor without an error) is then too low. The average replaces
    the difference in two cases: the draws are trusted and its standard error is the smaller one;
    or it is higher by more than both errors explain. In the second case log p(x, y) missed mass
    that the draws have, and the gap is reported as the error.

    Args:
        posterior: Of a VAE, by a method that estimates log p(x).
        truth: Complete data, shape (*batch, *data); observed elements as in the evidence, or NaN.
            For a model with a table it may be a DataFrame; the density is then that of the
            table's tensors.
        method: Used to condition on the complete data; by default `methods.Auto()`.
        seed, report, progress: As in `condition`.

    Returns:
        A tuple of log p(y|x) and its standard error, `log_prob` and `error`, in nats, both of
        shape (*batch,). Both are 0 where everything was observed, NaN where no estimate exists.

    Raises:
        TypeError: posterior is not a `Posterior`.
        ValueError: The posterior has no model, truth does not fit it, or truth contradicts the
            evidence.
        NonFiniteError: An unobserved element of truth is missing or infinite; the message names it.

    Example:
        >>> import crosscoding as cc
        >>> digits = cc.zoo.digits()[0][:2]
        >>> evidence = cc.Evidence(digits, cc.random_mask((28, 28), 0.1, seed=0))
        >>> posterior = cc.condition(cc.zoo.load("mnist-2d"), evidence, seed=0)
        >>> log_prob, error = cc.query_log_prob(posterior, digits, seed=0)
        >>> bool((error < 0.05).all())
        True
    """
    target = _target_of(posterior)
    truth = as_tensor(truth_of_frame(target.model, truth), "truth")
    check_matches(target.vae, truth, "truth", posterior.batch_shape)
    _check_agrees(target, truth)
    mask = target.evidence.exact
    check_complete(target.vae, truth, ~mask)
    complete = torch.where(mask, target.evidence.values, truth)
    agreement = _agreement(target, complete)
    whole = Evidence(complete, torch.ones_like(mask), given=target.evidence.given)
    both = condition(target.model, whole, method, seed=seed, report=report, progress=progress)
    difference = QueryLogProb(
        both.log_evidence + agreement - posterior.log_evidence,
        torch.hypot(both.log_evidence_error, posterior.log_evidence_error),
    )
    average = QueryLogProb(*posterior._averaged_query_log_prob(truth))
    log_prob, error = _combined(difference, average, posterior.trusted, both.trusted)
    everything = mask.flatten(len(posterior.batch_shape)).all(-1)
    return QueryLogProb(log_prob.masked_fill(everything, 0.0), error.masked_fill(everything, 0.0))


def _combined(
    difference: QueryLogProb, average: QueryLogProb, draws_trusted: Tensor, both_trusted: Tensor
) -> QueryLogProb:
    """The difference, or the average over draws where that is better or shows missed mass."""
    log_prob, error = difference
    gap = average.log_prob - log_prob
    better = draws_trusted & average.error.isfinite() & ~(average.error >= error)
    lacks = gap > torch.where(both_trusted, _SURE * (error + average.error), 2 * error)
    log_prob = torch.where(lacks | better, average.log_prob, log_prob)
    error = torch.where(better, average.error, error)
    return QueryLogProb(log_prob, torch.where(lacks, torch.maximum(gap, error), error))


def _agreement(target: VAETarget, complete: Tensor) -> Tensor:
    """log p(intervals, sets, noisy values, sums|t) of complete data, in nats, (*batch,).

    Raises:
        ValueError: The data contradict them.
    """
    if target.evidence.is_exact:
        return complete.new_zeros(())
    flat = target.evidence.flatten(len(target.vae.data_shape))
    found = log_agreement(flat, complete.reshape(flat.values.shape))
    wrong = found == -torch.inf
    if wrong.any():
        raise ValueError(
            "expected truth within the evidence's intervals and sets, and with its sums, got a "
            f"contradiction in query {int(wrong.nonzero()[0, 0])}{and_more(int(wrong.sum()) - 1)}"
        )
    return found.reshape(target.batch_shape).to(complete)


def _target_of(posterior: Posterior) -> VAETarget:
    """The target of a VAE's posterior.

    Raises:
        TypeError: posterior is not a `Posterior`.
        ValueError: It has no model.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"expected a posterior first, got {type(posterior).__name__}")
    target = posterior.target
    if isinstance(target, VAETarget):
        return target
    raise ValueError(
        "expected the posterior of a VAE, with its model, got one "
        + (
            "that was loaded without it; pass Posterior.load(path, vae=...)"
            if target is None
            else "of a bare density, which has no data to ask about; posterior.log_prob(z) is "
            "the density of z"
        )
    )


def _check_serves(method: Method, target: Target) -> None:
    """Raise ValueError if a method is not for the target's latents."""
    name = type(method).__name__
    if target.is_discrete and not method.takes_discrete:
        raise ValueError(
            f"expected a method for discrete latents, got {name}, which needs continuous ones; use "
            "Auto() or Discrete()"
        )
    if not target.is_discrete and not method.takes_continuous:
        raise ValueError(
            f"expected a method for continuous latents, got {name}, which needs discrete ones; use "
            "Auto()"
        )


def _check_agrees(target: VAETarget, truth: Tensor) -> None:
    """Raise ValueError where truth (*batch, *data) contradicts the evidence; NaN never does."""
    values, mask = target.evidence.values, target.evidence.exact
    wrong = (mask & (truth != values) & ~truth.isnan()).reshape(-1, target.vae.data_size)
    if not wrong.any():
        return
    query, element = wrong.nonzero()[0].tolist()
    found, seen = (float(data.reshape(wrong.shape)[query, element]) for data in (truth, values))
    raise ValueError(
        "expected truth to have the evidence's values for observed elements, or NaN, got "
        f"{found:.6g} for {target.vae.element_name(element)} of query {query}, observed as "
        f"{seen:.6g}{and_more(int(wrong.sum()) - 1)}; condition on the values in truth, or put "
        "the observed values into truth"
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
    """Like `condition`, for a target you already have, such as a `DensityTarget` without a VAE.

    Arguments, errors and result are those of `condition`. Methods of the result that need a decoder
    raise ValueError if the target has none.
    """
    if not isinstance(target, Target):
        raise TypeError(f"expected a crosscoding target, got {type(target).__name__}")
    if method is None:
        method = Auto()
    if not isinstance(method, Method):
        raise TypeError(
            f"expected method to be one of crosscoding.methods, such as HMC(), got {method!r}"
        )
    _check_serves(method, target)
    for_method, for_draws = spawn(generator_from(seed), 2)
    start = time.perf_counter()
    with torch.enable_grad():  # whatever the caller's setting is
        flat = target.flatten()
        with followed("conditioning", report, progress) as told:
            clock = Clock(beat=told.beat, max_bytes=max_bytes)
            run = BlockByBlock(method, max_bytes, start)
            findings = run.find(flat.timed(clock), generator=for_method, report=told)
            findings = with_coverage(flat, findings, run.clock_of_rest(clock))
    warn_of_steep_priors(flat, findings, stacklevel=3)
    findings = with_edges(flat, findings, stacklevel=3)
    return Posterior(
        findings,
        target=target,
        batch_shape=target.batch_shape,
        method=type(method).__name__,
        generator=for_draws,
        seconds=time.perf_counter() - start,
    )
