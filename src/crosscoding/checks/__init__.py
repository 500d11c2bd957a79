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
from crosscoding.isolation import isolated
from crosscoding.model.bound import for_first
from crosscoding.model.check_report import CheckReport, CheckResult
from crosscoding.model.in_noise import check_continuous, in_noise
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


@isolated
def check(
    vae: VAE,
    data: Tensor | np.ndarray | None = None,
    *,
    seed: int | Generator | None = 0,
) -> CheckReport:
    """The report of `VAE.check`, which documents the arguments."""
    check_continuous(vae, "VAE.check")
    generator = generator_from(seed)
    if data is not None:
        data = _some(_matching(vae, data), generator)
    subject = Subject(for_first(in_noise(vae)), generator, data, vae)
    with torch.enable_grad():  # whatever the caller has set
        findings = _run(subject, _OF_OUTPUT)
        if all(finding.status != "error" for finding in findings):
            findings += _run(subject, _OF_DECODER)
            findings += _run(subject, _OF_WORK)
            findings += _of_data(subject, _OF_DATA)
    return CheckReport(repr(vae), tuple(findings))


VAE.checker = check


def check_data(
    vae: VAE, data: Tensor, *, quick: bool = False, seed: int | Generator | None = 0
) -> tuple[CheckResult, ...]:
    """Run only the checks that compare a model with data.

    Args:
        vae: The model.
        data: Complete data, (N, *data), N ≥ 1.
        quick: Whether to check only support, units and counts, which takes a few decodes. This
            also happens if there are too few data for the other checks.
        seed: Determines the subset, if there are too many data, and the model's draws.
    """
    check_continuous(vae, "VAE.check")
    generator = generator_from(seed)
    own = _some(_matching(vae, data), generator)
    subject = Subject(for_first(in_noise(vae)), generator, own, vae)
    checks = _OF_DATA
    if quick or len(data) < FEWEST:
        checks = {name: checks[name] for name in ("units", "counts")}
    with torch.inference_mode(False), torch.enable_grad():
        return tuple(_of_data(subject, checks))


def _of_data(subject: Subject, checks: dict[str, Check]) -> list[CheckResult]:
    """Run checks of data, unless the likelihood cannot have such data at all."""
    if subject.data is None:
        return []
    findings = _run(subject, {"data": data_checks.support})
    return findings if findings[0].status == "error" else findings + _run(subject, checks)


def _run(subject: Subject, checks: dict[str, Check]) -> list[CheckResult]:
    """The results of the checks; a check that raises gives an error."""
    findings = []
    for name, look in checks.items():
        try:
            finding = look(subject)
        except Exception as error:  # a decoder may raise anything
            finding = CheckResult(name, "error", f"could not be checked: {error}")
        if finding is not None:
            findings.append(finding)
    return findings


def _matching(vae: VAE, data: Tensor | np.ndarray) -> Tensor:
    """The data as a tensor; raises what `VAE.check` raises."""
    if vae.examples is not None:
        raise ValueError(
            "expected no data for a decoder that takes covariates, as its checks do not cover "
            "them; without data, the model is checked for its first example"
        )
    return complete_data(vae, data).detach()


def _some(data: Tensor, generator: Generator) -> Tensor:
    """The data in random order, at most as many as the checks need."""
    order = torch.randperm(len(data), generator=generator, device=generator.device)
    return data[order[:_MOST_DATA].to(data.device)]
