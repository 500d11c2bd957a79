"""Why answers are not trusted, where that is the data's fault: what `crosscoding check` finds."""

import torch

from crosscoding.checks import check_data
from crosscoding.cli.answer_files import Answers
from crosscoding.model.check_report import STATUSES

_MANY = 0.5  # share of answers that fail, from which on the data are suspected


def doubts(answers: Answers) -> list[dict[str, str]]:
    """The worst that checks of the data find, if that is a warning or an error.

    Complete data can be checked: these are made so by a completion of each. Nothing is looked at where
    most answers are trusted, and only units and counts, which is quick, where most are usable.
    """
    labels = [verdict.label for verdict in answers.posterior.verdicts]
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
