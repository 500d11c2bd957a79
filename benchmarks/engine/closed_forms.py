"""Measures `Auto` on targets with exact answers: linear-Gaussian models, products of blocks."""

import time

import torch
from queries import problems
from table import Row, Section, Setup

import crosscoding as cc
from crosscoding.crosscoders import Mixture
from crosscoding.errors import counted
from crosscoding.methods import Auto, Laplace

_LINEAR_DIMS = (2, 8, 32, 64, 128, 256)
_BLOCK_DIMS = (2, 16, 64)
_TOLERANCE = 1e-3


def linear(setup: Setup) -> Section:
    """Linear-Gaussian models: log p(x), and the KL of fits, in closed form."""
    rows, figures = [], {}
    for dim in _LINEAR_DIMS[: setup.num(6, 3)]:
        num = setup.num(8, 2)
        problem = problems().linear_gaussian_problem(dim, 2 * dim, batch=num)
        cc.Bank.of(problem.vae)
        exact = problem.exact_log_evidence()
        start = time.perf_counter()
        posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
        seconds = (time.perf_counter() - start) / num
        errors = (posterior.log_evidence - exact).abs()
        gap = exact - posterior.c_elbo
        laplace = cc.condition(problem.vae, problem.evidence, Laplace(), seed=0)
        kl = _gaussian_kl(laplace, *problem.exact_posterior())
        labels = [verdict.label for verdict in posterior.verdicts]
        figures[dim] = {
            "errors": errors,
            "gap": gap,
            "gap_error": posterior.c_elbo_error,
            "kl_of_laplace": kl,
            "labels": labels,
            "seconds_per_query": seconds,
        }
        trusted = labels.count("trusted")
        rows.append(
            Row(
                f"linear-Gaussian, D = {dim}",
                f"KL ≤ {_TOLERANCE:g} nats",
                f"|log p(x) error| largest {errors.max():.2g}; log p(x) − C-ELBO "
                f"{_largest(gap)}; KL of Laplace {kl.max():.2g}",
                errors.max().item() <= _TOLERANCE,
                f"Auto on {num} queries of {2 * dim} elements, half of them observed: "
                f"{1e3 * seconds:.3g} ms per query, {trusted} trusted. The target is checked on "
                "log p(x), as Auto returns draws without a density whose KL could be computed. "
                "log p(x) − C-ELBO is KL(q || p) of the fit behind its best proposal (none where "
                "the bank or a grid answered). The KL of `Laplace()`, with one mode, is in closed "
                "form",
            )
        )
    return Section(rows, figures)


def _largest(values: torch.Tensor) -> str:
    known = values[values.isfinite()]
    return f"largest {known.max():.2g}" if len(known) else "none"


def _gaussian_kl(posterior: cc.Posterior, mean: torch.Tensor, covariance: torch.Tensor):
    """KL(q || p(z|x)) in nats, (B,), q the heaviest component of a fitted mixture."""
    fitted = posterior._findings.fitted
    assert isinstance(fitted.crosscoder, Mixture)
    weights, means, factors = _heaviest(fitted)
    mean, covariance = mean.double(), covariance.double()
    precision = torch.linalg.inv(covariance)
    ours = factors @ factors.mT
    gap = means - mean
    trace = (precision @ ours).diagonal(dim1=-2, dim2=-1).sum(-1)
    squares = torch.einsum("bi,bij,bj->b", gap, precision, gap)
    log_dets = torch.logdet(covariance) - torch.logdet(ours)
    return 0.5 * (trace - mean.shape[-1] + squares + log_dets) - weights.log()


def _heaviest(fitted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight (B,), mean (B, D) and Cholesky factor (B, D, D) of the heaviest component."""
    params = {name: tensor.double() for name, tensor in fitted.params.items()}
    weights, best = params["logits"].softmax(-1).max(-1)
    query = torch.arange(len(best))
    mean, log_diagonal, lower = (
        params[name][query, best] for name in ("shift", "log_diagonal", "lower")
    )
    return weights, mean, lower.tril(-1) + torch.diag_embed(log_diagonal.exp())


def blocks(setup: Setup) -> Section:
    """Products of blocks, 2^(D / 2) modes of known mass: wrong answers must not be trusted."""
    rows, figures = [], {}
    num = setup.num(10, 2)
    for dim in _BLOCK_DIMS[: setup.num(3, 2)]:
        target = problems().blocks(dim)
        answers = [cc.infer(target, Auto(), seed=seed) for seed in range(num)]
        error = torch.stack([(a.log_evidence - target.log_evidence).abs() for a in answers])
        masses = torch.stack([(target.masses(a.draws) - 0.65).abs().amax(-1) for a in answers])
        labels = [answer.verdicts[0].label for answer in answers]
        seconds = sum(answer.seconds for answer in answers) / num
        right = (error <= 0.1) & (masses <= 0.05)
        warned = torch.tensor([label != "trusted" for label in labels])
        figures[dim] = {
            "source": "blocks",
            "errors": error,
            "mass_errors": masses,
            "labels": labels,
            "seconds_per_query": seconds,
        }
        rows.append(
            Row(
                f"product of bimodal blocks, D = {dim}",
                "within 0.1 nats and masses within 0.05, or not trusted",
                f"{int((right | warned).sum())} of {num} ({int(right.sum())} right, "
                f"{labels.count('trusted')} trusted); largest error {error.max():.2g} nats, "
                f"of a mass {masses.max():.2g}",
                bool((right | warned).all()),
                f"Auto, {num} seeds, {seconds:.2g} s each. A block's mass is known exactly (0.65); "
                f"the largest error over {counted(dim // 2, 'block')} counts, including the noise "
                "of the kept draws",
            )
        )
    return Section(rows, figures)
