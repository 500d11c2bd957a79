"""Runs the checks of `crosscoding check` on data whose answers are mostly not trusted."""

import torch

from crosscoding.checks import check_data
from crosscoding.cli.answer_files import PURPOSE, Answers
from crosscoding.model.check_report import STATUSES
from crosscoding.priors import DiscretePrior

_MANY = 0.5  # share of answers that must fail before the data are suspected


def doubts(answers: Answers) -> list[dict[str, str]]:
    """The most severe findings of the data checks, if they are warnings or errors.

    The checks need complete data, so each datum is completed by one draw. Nothing is checked if
    most answers are trusted, or if latents are discrete, which the checks do not support. If less
    than half of the answers are unreliable, only the quick checks of units and counts are run.
    """
    if isinstance(answers.vae.prior, DiscretePrior):
        return []
    labels = [verdict.on(PURPOSE).label for verdict in answers.posterior.verdicts]
    if labels.count("trusted") > (1 - _MANY) * len(labels):
        return []
    whole = torch.where(answers.mask, answers.values, answers.completions[0])
    if not whole.isfinite().all():
        return []
    findings = check_data(
        answers.vae,
        whole.reshape(-1, *answers.vae.data_shape),
        quick=labels.count("unreliable") < _MANY * len(labels),
    )
    worst = max((finding.status for finding in findings), key=STATUSES.index)
    return [
        {"name": finding.name, "status": worst, "message": finding.message}
        for finding in findings
        if finding.status == worst and worst in ("warning", "error")
    ]
