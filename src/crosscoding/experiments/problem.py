"""One method's answer to a batch of queries as a part of an experiment: figures, draws, seconds."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crosscoding.conditioning import condition
from crosscoding.errors import BudgetError
from crosscoding.evidence import Evidence
from crosscoding.experiments.experiment import Context, Result
from crosscoding.methods import Method
from crosscoding.model.vae import VAE


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch of queries with their truth.

    Args:
        name: Of the part that an answer is, before the method's.
        vae: The model.
        truth: Complete data, shape (num_queries, *data).
        mask: What is observed of them, the same shape or broadcastable to it.
        settings: What decides the queries, for the part's key.
    """

    name: str
    vae: VAE
    truth: Tensor
    mask: Tensor
    settings: dict[str, Any]

    @property
    def evidence(self) -> Evidence:
        """The queries, all in one batch."""
        return Evidence(self.truth, self.mask)


def answer(context: Context, problem: Problem, name: str, method: Method) -> Result:
    """All queries of a problem by one method, in one call of `condition`.

    The result's numbers: label, method, seconds and on what device, and lists over the queries:
    c_elbo, c_elbo_error, log_evidence, log_evidence_error and query_log_prob in nats, ess,
    pareto_k, verdict, and those of the method's own. Its tensors: draws (num_draws, num_queries,
    latent), as the method keeps them: NG's are those of its fit, without the weights that its
    log p(y|x) is made with.
    Where the method gave up: label, method and `failed`, which says why.

    Args:
        context: Keeps the answer.
        problem: The queries.
        name: Label of the method.
        method: With its settings.
    """
    settings = {"method": method, **problem.settings}

    def work() -> Result:
        try:
            posterior = condition(
                problem.vae, problem.evidence, method, seed=context.seed, report=context.report
            )
        except BudgetError as error:
            return Result({"label": name, "method": repr(method), "failed": str(error)})
        numbers = {
            "label": name,
            "method": repr(method),
            "seconds": posterior.seconds,
            "device": problem.vae.device.type,
            "bound": posterior.bound,
            "c_elbo": posterior.c_elbo,
            "c_elbo_error": posterior.c_elbo_error,
            "log_evidence": posterior.log_evidence,
            "log_evidence_error": posterior.log_evidence_error,
            "query_log_prob": posterior.query_log_prob(problem.truth),
            "ess": posterior.ess,
            "pareto_k": posterior.pareto_k,
            "verdict": [verdict.label for verdict in posterior.verdicts],
            "stats": posterior.stats,
        }
        return Result(numbers, {"draws": posterior.draws.cpu()})

    device = problem.vae.device.type
    return context.part(f"{problem.name}-{slug(name)}", settings, work, device=device)


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return label.lower().replace(",", "").replace(" ", "-")


def column(numbers: dict[str, Any], name: str) -> NDArray[np.floating]:
    """A list of figures from JSON, its nulls as NaN."""
    return np.array([np.nan if value is None else value for value in numbers[name]], float)


def digest(vae: VAE) -> str:
    """What a model's weights and likelihood are, in twelve hexadecimal digits."""
    content = hashlib.sha256(repr(vae.likelihood).encode())
    for name, tensor in sorted(vae.decoder.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]
