"""Simulation-based calibration: checks how a method answers simulated twins of a query.

A twin is simulated from the model: z* ~ p(z), t* ~ p(t|z*), and the elements of t* in the mask are
observed, with noise where the query has noise. Then z* is an exact draw from p(z|x*), whatever the
model, so its rank among the draws of the answer is uniform if the method is right. Reports cover
queries that are typical of the model; they say nothing about data that do not fit it.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.arrays import as_tensor
from crosscoding.calibration.ranks import FEWEST, Ranks, randomised_ranks
from crosscoding.calibration.report import TwinReport
from crosscoding.calibration.sandwich import Sandwich
from crosscoding.clock import Clock
from crosscoding.conditioning import condition
from crosscoding.covariates import Covariates, tiled
from crosscoding.errors import check_count
from crosscoding.evidence import Evidence
from crosscoding.isolation import isolated
from crosscoding.methods import Auto, Method, Report, silent
from crosscoding.model.bound import bound, checked_rows, for_first
from crosscoding.model.in_noise import in_noise
from crosscoding.model.matching import check_matches
from crosscoding.model.model_print import ModelPrint
from crosscoding.model.vae import VAE
from crosscoding.progress import followed, part
from crosscoding.random import generator_from, normal, spawn
from crosscoding.result.posterior import Posterior
from crosscoding.result.predictions import Predictions
from crosscoding.result.purposes import PURPOSES
from crosscoding.result.vouching import Vouching
from crosscoding.target.vae_target import CHUNK_BYTES, VAETarget

_NUM_DRAWS = 1000  # per answer, among which the truth is ranked
_MOST_LATENTS, _MOST_ELEMENTS = 64, 16  # ranked; each further test makes all of them less sensitive
_SHARE_OF_ANSWERS = 0.8  # of the time, roughly, for the progress bar


@isolated
def calibrate(
    vae: VAE,
    mask: Tensor | np.ndarray | Evidence,
    method: Method | None = None,
    num: int = 200,
    seed: int | Generator | None = 0,
    *,
    report: Report = silent,
    progress: bool = True,
) -> TwinReport:
    """Simulate data from the model, observe them through a mask, and check a method's answers.

    Args:
        vae: The model.
        mask: True = observed, boolean, shape (*data,), or (M, *data) to use M masks in turn. If the
            decoder takes covariates, the model's examples are used in turn too. Or evidence of
            values: twins observe the same elements, with the same noise and covariates, taking its
            queries in turn; the values themselves do not matter.
        method: The method to check; by default `methods.Auto()`.
        num: Number of simulated data, ≥ 20. 200 reveal posteriors whose width is off by a third.
        seed, report, progress: As in `condition`.

    Returns:
        A report: see `print(report.summary())` and `report.plot()`. Pass it to
        `methods.Auto(calibration=report)` to use it for queries whose masks differ from the twins'
        in few elements, as long as neither have noise.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.
        NonFiniteError: p(t|z) does not exist at a draw from the prior.
        BudgetError: The method found no answer within its limits.

    Example:
        >>> import torch, crosscoding as cc
        >>> vae = cc.VAE(torch.nn.Linear(2, 6), 2, cc.likelihoods.Gaussian(0.3))
        >>> report = cc.calibrate(vae, torch.arange(6) < 3, num=50, seed=0)
        >>> report.p_value() > 0.01
        True
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}")
    check_count("num", num, FEWEST)
    kind = _kind_of_query(vae, mask)
    method = Auto() if method is None else method
    streams = spawn(generator_from(seed), 5)
    for_data, for_answers, for_ranks, for_bounds, for_noise = streams
    given = tiled(vae.examples if kind.given is None else kind.given, num)
    own = in_noise(vae) if given is None else bound(in_noise(vae), given)
    z, data = own.simulate(num, generator=for_data)
    twins = _Twins(z, data, _observed(kind, data, given, for_noise))
    with followed("calibrating", report, progress) as told:
        posterior = condition(
            vae,
            twins.evidence,
            method,
            seed=for_answers,
            report=part(told, 0.0, _SHARE_OF_ANSWERS),
            progress=False,
        )
        told(_SHARE_OF_ANSWERS, "ranks")
        draws = posterior._sample(_NUM_DRAWS, for_ranks)
        ranks = _ranks(twins, posterior, draws, for_ranks)
        told(_SHARE_OF_ANSWERS, "bounds on log p(x)")
        target = _target_of(posterior).flatten().timed(Clock(beat=told.beat))
        bounds = Sandwich.of(target, twins.z, draws, generator=for_bounds)
    return _report(method, posterior, ranks, bounds)


class _Twins(NamedTuple):
    """Simulated data: z as prior noise (N, latent), data (N, *data), and the evidence."""

    z: Tensor
    data: Tensor
    evidence: Evidence


def _kind_of_query(vae: VAE, mask: Tensor | np.ndarray | Evidence) -> Evidence:
    """The kinds of query as evidence (M, *data); only its mask, noise and covariates matter.

    Raises:
        TypeError, ValueError: It is neither a mask nor evidence of values, or does not fit.
    """
    if not isinstance(mask, Evidence):
        masks = _masks(vae, mask)
        return Evidence(torch.zeros_like(masks, dtype=vae.dtype), masks)
    uncertain = mask.uncertain
    if mask.sums or (uncertain is not None and (uncertain.is_bounded | uncertain.has_set).any()):
        got = "sums" if mask.sums else "intervals or sets"
        raise TypeError(
            f"expected evidence of values, exact or with noise, got {got} too, which have no "
            "simulated twins yet; leave them out, or pass evidence.exact as a mask"
        )
    check_matches(vae, mask.values, "evidence", None)
    kind = mask.flatten(len(vae.data_shape))
    if not len(kind.values):
        raise ValueError("expected evidence of at least one query, got none")
    if kind.given is not None:
        checked_rows(vae, kind.given, kind.values.shape[:1])
    return kind


def _observed(kind: Evidence, data: Tensor, given: Covariates, generator: Generator) -> Evidence:
    """The evidence of twins (N, *data): of the kinds of query in turn, with fresh noise."""
    index = torch.arange(len(data), device=data.device) % len(kind.values)
    mask = kind.mask[index]
    if kind.uncertain is None:
        return Evidence(data, mask, given=given)
    noise = kind.uncertain.noise[index]
    values = data + noise * normal(data.shape, generator=generator, like=data)
    return Evidence(values, mask, noise=noise, given=given)


def _masks(vae: VAE, mask: Tensor | np.ndarray) -> Tensor:
    """The masks, (M, *data).

    Raises:
        TypeError, ValueError: It is not a boolean mask, or has the wrong shape.
    """
    mask = as_tensor(mask, "mask", "bool")
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask (True = observed), got {mask.dtype}")
    shape = tuple(vae.data_shape)
    one = tuple(mask.shape) == shape
    if not one and (tuple(mask.shape[1:]) != shape or not len(mask)):
        several = ", ".join(["M", *map(str, shape)])
        raise ValueError(
            f"expected a mask of shape {shape}, or several, ({several}), got {tuple(mask.shape)}"
        )
    return (mask[None] if one else mask).to(vae.device)


def _target_of(posterior: Posterior) -> VAETarget:
    assert isinstance(posterior.target, VAETarget)  # `condition` made it
    return posterior.target


def _ranks(twins: _Twins, posterior: Posterior, z: Tensor, generator: Generator) -> Ranks:
    """Ranks of z*, log p(z*, x) and missing elements among the answers' draws z (S, N, latent).

    All z are given as prior noise, but the model's own z is ranked.
    """
    target = _target_of(posterior)
    vae, num, dim = target.vae, len(twins.z), target.latent_dim
    latents = _spread(torch.arange(dim), _MOST_LATENTS)
    mask = twins.evidence.exact.reshape(num, -1)
    elements = _spread((~mask).any(0).nonzero()[:, 0], _MOST_ELEMENTS)
    truth = [target.latents(twins.z)[:, latents], target.log_joint(twins.z)[:, None]]
    draws = [target.latents(z)[..., latents], target.log_joint(z)[..., None]]
    if len(elements):
        truth.append(twins.data.reshape(num, -1)[:, elements])
        draws.append(_predicted(posterior, z, elements, generator))
    values = randomised_ranks(torch.cat(truth, -1), torch.cat(draws, -1), generator=generator)
    num_others = len(latents) + 1
    values[:, num_others:][mask[:, elements]] = torch.nan
    names = [f"z[{index}]" for index in latents.tolist()]
    names += ["log p(z, x)", *(vae.element_name(int(element)) for element in elements)]
    findings = posterior._findings
    stored = len(z) if findings.fitted is not None else min(len(findings.draws), len(z))
    num_draws = posterior.ess.double().nan_to_num(nan=float(stored)).clamp(1.0, stored)
    is_element = torch.arange(len(names)) >= num_others
    return Ranks(tuple(names), values.mT.cpu(), is_element, num_draws.cpu())


def _predicted(posterior: Posterior, z: Tensor, elements: Tensor, generator: Generator) -> Tensor:
    """Draws of some elements at z (S, N, latent), (S, N, elements)."""
    target = _target_of(posterior)
    predictions = Predictions(target, posterior._findings)
    row_bytes = z.shape[1] * target.vae.data_size * z.element_size()
    pieces = z.split(max(CHUNK_BYTES // row_bytes, 1))
    return torch.cat(
        [predictions.draws(piece, generator).flatten(2)[..., elements] for piece in pieces]
    )


def _spread(indices: Tensor, most: int) -> Tensor:
    """At most `most` of the indices, evenly spaced."""
    if len(indices) <= most:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, most).round().long()]


def _report(method: Method, posterior: Posterior, ranks: Ranks, bounds: Sandwich) -> TwinReport:
    figures = posterior._findings.figures
    # Answers that nothing searched for lost modes, but whose other checks are good.
    searched = replace(figures, missed=torch.zeros_like(figures.missed))
    others = figures.missed.isnan() & (searched.grades_for("interval") == 0)
    like_it = ranks.select(others.cpu())
    target = _target_of(posterior)
    masks = target.evidence.mask.reshape(target.num_queries, -1).unique(dim=0)
    if not target.evidence.is_exact:  # twins with noise say nothing about exact values
        masks = masks[:0]
    vouching = Vouching(
        repr(replace(method, calibration=None) if isinstance(method, Auto) else method),
        ModelPrint.of(for_first(in_noise(target.model))),
        masks,
        int(others.sum()),
        like_it.p_value(),
        *like_it.coverage(0.9),
    )
    purpose = getattr(method, "purpose", "density")
    verdicts = posterior.verdicts
    counts = {name: [verdict.purposes[name] for verdict in verdicts] for name in PURPOSES}
    return TwinReport(
        method=posterior.method,
        labels=tuple(verdict.label for verdict in verdicts),
        purposes={
            name: {label: own.count(label) for label in sorted(set(own))}
            for name, own in counts.items()
        },
        trusted=(figures.grades_for(purpose) == 0).cpu(),
        ranks=ranks,
        log_evidence=posterior.log_evidence.cpu(),
        log_evidence_error=posterior.log_evidence_error.cpu(),
        sandwich=Sandwich(*(part.cpu() for part in vars(bounds).values())),
        vouching=vouching,
    )
