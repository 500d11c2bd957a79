"""A claim of the paper: a sentence, the experiment that decides it, and the rule that does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscoding.experiments.claims.rules import Judgement
from crosscoding.experiments.problem import column

Numbers = dict[str, Any]
Judge = Callable[[Numbers], dict[str, Judgement]]
"""Maps the numbers of an experiment to one judgement per subject, such as a model."""

BOUNDS = "mean difference in C-ELBO over evidence sets, compared with 0"
"""The rule of several claims."""

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Args:
        text: The claim, in our words.
        experiment: Name of the experiment whose numbers decide it.
        rule: How the numbers decide it, in words.
        judge: The same as a function.
    """

    text: str
    experiment: str
    rule: str
    judge: Judge


def bound_difference(methods: Numbers, name: str, other: str) -> NDArray[np.floating]:
    """C-ELBO of one method minus that of another in nats, one per evidence set."""
    return column(methods[name], "c_elbo") - column(methods[other], "c_elbo")


def query(methods: Numbers, name: str) -> NDArray[np.floating]:
    """log p(y|x) in nats, one per evidence set; all NaN if the method gave up."""
    if "failed" in methods[name]:
        others = next(each for each in methods.values() if "failed" not in each)
        return np.full(len(others["query_log_prob"]), np.nan)
    return column(methods[name], "query_log_prob")
