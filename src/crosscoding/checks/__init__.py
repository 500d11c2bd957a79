"""Checks of a model before it is used: does it fit its likelihood, its data and the methods?

`VAE.check` calls `check`, which is registered below. A check is a function from a `Subject` to a
`CheckResult`, or to None if it does not apply. Each has a test with a model that has exactly that
fault.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.checks import data as data_checks
from crosscoding.checks import decoder, expected_cost, latent_space, own_likelihood, units
from crosscoding.checks.column_baseline import FEWEST
from crosscoding.checks.subject import Subject
from crosscoding.covariates import Covariates, mapped, places_among
from crosscoding.isolation import isolated
from crosscoding.model.bound import bound, bound_for, try_rows
from crosscoding.model.check_report import CheckReport, CheckResult
from crosscoding.model.in_noise import in_noise
from crosscoding.model.matching import complete_data
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from

__all__ = ["check", "check_data"]

Check = Callable[[Subject], CheckResult | None]

_MOST_DATA = 2000
_OF_OUTPUT: dict[str, Check] = {"output": decoder.output, "repeatability": decoder.repeatability}
_OF_DECODER: dict[str, Check] = {
    "batch norm": decoder.batch_norm,
    "far out": decoder.far_out,
    "likelihood": own_likelihood.likelihood,
    "gradients": decoder.gradients,
    "latent": latent_space.use,
}
_OF_DATA: dict[str, Check] = {
    "units": units.units,
    "counts": units.counts,
    "explanation": data_checks.explanation,
    "scale": data_checks.scale,
    "prior": latent_space.prior,
    "encoder": latent_space.encoder,
}
_OF_WORK: dict[str, Check] = {
    "cost": expected_cost.cost,
    "bank": expected_cost.bank,
    "last layer": expected_cost.head,
    "methods": expected_cost.methods,
}

# checks that need derivatives in z, or points between its draws
_NEED_CONTINUOUS = {"far out", "gradients", "latent", "bank", "explanation", "scale", "prior"}


@isolated
def check(
    vae: VAE,
    data: Tensor | np.ndarray | None = None,
    *,
    given: Covariates = None,
    seed: int | Generator | None = 0,
) -> CheckReport:
    """The report of `VAE.check`, which documents the arguments."""
    generator = generator_from(seed)
    if data is None and given is not None:
        raise ValueError("expected data for these covariates, check(data, given=...), got none")
    subject = beside = _subject(vae, generator)
    if data is not None:
        beside = _with_data(vae, data, given, generator)
        if vae.examples is None:
            subject = beside  # which shares the probes
    with torch.enable_grad():  # whatever the caller has set
        findings = _run(subject, _OF_OUTPUT)
        if all(finding.status != "error" for finding in findings):
            findings += _run(subject, _OF_DECODER)
            findings += _run(subject, _OF_WORK)
            findings += _of_data(beside, _OF_DATA)
    return CheckReport(repr(vae), tuple(findings))


VAE.checker = check


def check_data(
    vae: VAE,
    data: Tensor,
    *,
    given: Covariates = None,
    quick: bool = False,
    seed: int | Generator | None = 0,
) -> tuple[CheckResult, ...]:
    """Run only the checks that compare a model with data.

    Args:
        vae: The model.
        data: Complete data, (N, *data), N ≥ 1.
        given: Their covariates, if the decoder takes any.
        quick: Whether to check only support, units and counts, which takes a few decodes. This
            also happens if there are too few data for the other checks.
        seed: Determines the subset, if there are too many data, and the model's draws.
    """
    subject = _with_data(vae, data, given, generator_from(seed))
    checks = _OF_DATA
    if quick or len(data) < FEWEST:
        checks = {name: checks[name] for name in ("units", "counts")}
    with torch.inference_mode(False), torch.enable_grad():
        return tuple(_of_data(subject, checks))


def _of_data(subject: Subject, checks: dict[str, Check]) -> list[CheckResult]:
    """Run checks of data, but only the first if the likelihood cannot have such data at all."""
    if subject.data is None:
        return []
    findings = _run(subject, {"data": data_checks.support})
    return findings if findings[0].status == "error" else findings + _run(subject, checks)


def _run(subject: Subject, checks: dict[str, Check]) -> list[CheckResult]:
    """The results of the checks; a check that raises gives an error."""
    findings = []
    if subject.is_discrete:
        checks = {name: look for name, look in checks.items() if name not in _NEED_CONTINUOUS}
    for name, look in checks.items():
        try:
            finding = look(subject)
        except Exception as error:  # a decoder may raise anything
            finding = CheckResult(name, "error", f"could not be checked: {error}")
        if finding is not None:
            findings.append(finding)
    return findings


def _subject(vae: VAE, generator: Generator) -> Subject:
    """The subject of the checks without data; probes take the examples of covariates in turn."""
    model = in_noise(vae)
    if vae.examples is not None:
        model = bound(model, vae.examples)
    return Subject(model, generator, None, vae)


def _with_data(
    vae: VAE, data: Tensor | np.ndarray, given: Covariates, generator: Generator
) -> Subject:
    """The subject of the checks of data: a random subset if there are too many, in random order.

    Raises:
        TypeError, ValueError: As `VAE.check`.
    """
    data = complete_data(vae, data).detach()
    rows = bound_for(vae, given, data.shape[:1]).given
    order = torch.randperm(len(data), generator=generator, device=generator.device)
    order = order[:_MOST_DATA].to(data.device)
    model = in_noise(vae)
    if rows is not None:
        model = bound(model, mapped(lambda tensor: tensor[order], rows))
        try_rows(model, places_among(model.given, vae.examples))
    return Subject(model, generator, data[order], vae)
