"""What a claim of the paper is: a sentence, whose numbers decide it, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscoding.experiments.claims.rules import Judgement
from crosscoding.experiments.problem import column

Numbers = dict[str, Any]
Judge = Callable[[Numbers], dict[str, Judgement]]
"""From the numbers of an experiment, a judgement for each subject, such as a model."""

BOUNDS = "mean difference of C-ELBO over evidence sets, against 0"
"""The rule of several claims."""

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Args:
        text: In our words.
        experiment: Whose numbers decide it.
        rule: How they do, in words.
        judge: Does it.
    """

    text: str
    experiment: str
    rule: str
    judge: Judge


def bound_difference(methods: Numbers, name: str, other: str) -> NDArray[np.floating]:
    """C-ELBO of one method less that of another in nats, by evidence set."""
    return column(methods[name], "c_elbo") - column(methods[other], "c_elbo")


def query(methods: Numbers, name: str) -> NDArray[np.floating]:
    """log p(y|x) in nats by evidence set; all NaN where the method gave up."""
    if "failed" in methods[name]:
        others = next(each for each in methods.values() if "failed" not in each)
        return np.full(len(others["query_log_prob"]), np.nan)
    return column(methods[name], "query_log_prob")
