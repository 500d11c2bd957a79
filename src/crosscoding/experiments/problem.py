"""A batch of queries, and a method's answer to it as a part of an experiment."""

import hashlib
import time
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
    """A batch of queries whose true completion is known.

    Args:
        name: Prefix of the names of the parts that hold its answers.
        vae: The model.
        truth: Complete data, shape (num_queries, *data).
        mask: True = observed, the same shape or broadcastable to it.
        settings: What determines the queries; part of the key of saved answers.
    """

    name: str
    vae: VAE
    truth: Tensor
    mask: Tensor
    settings: dict[str, Any]

    @property
    def evidence(self) -> Evidence:
        """The observed part of all queries."""
        return Evidence(self.truth, self.mask)


def answer(context: Context, problem: Problem, name: str, method: Method) -> Result:
    """Answer all queries of a problem with one method, in one call of `condition`.

    Args:
        context: Saves the answer as a part.
        problem: The queries.
        name: Label of the method.
        method: The method with its settings.
    Returns:
        Numbers: label, method, seconds, processor_seconds, device, bound, and lists over the
        queries: decodes if the method counts them, c_elbo, c_elbo_error, log_evidence,
        log_evidence_error and query_log_prob in nats, ess, pareto_k, verdict, and the method's own
        `stats`. Tensors: draws (num_draws, num_queries, latent) as the method keeps them; those of
        NG lack the weights with which its log p(y|x) is computed.
        If the method gave up, the numbers are label, method and `failed`, the reason.
    """
    settings = {"method": method, **problem.settings}

    def work() -> Result:
        start = time.process_time()
        try:
            posterior = condition(
                problem.vae, problem.evidence, method, seed=context.seed, report=context.report
            )
        except BudgetError as error:
            return Result({"label": name, "method": repr(method), "failed": str(error)})
        took = time.process_time() - start
        numbers = {
            "label": name,
            "method": repr(method),
            "seconds": posterior.seconds,
            "processor_seconds": took,
            "decodes": sum(stage.decodes for stage in posterior.trace) if posterior.trace else None,
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
    """A label in a form that suits file names."""
    return label.lower().replace(",", "").replace(" ", "-")


def column(numbers: dict[str, Any], name: str) -> NDArray[np.floating]:
    """A list of figures from JSON, with NaN for null."""
    return np.array([np.nan if value is None else value for value in numbers[name]], float)


def digest(vae: VAE) -> str:
    """Twelve hexadecimal digits that identify a model's weights, prior and likelihood."""
    content = hashlib.sha256(repr(vae.likelihood).encode())
    weights = sorted(vae.decoder.state_dict().items()) + sorted(vae.prior.state_dict().items())
    for name, tensor in weights:
        content.update(name.encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]
