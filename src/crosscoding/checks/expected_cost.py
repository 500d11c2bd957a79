"""Checks of what answers will cost, and which methods suit the model."""

import time

import torch
from torch import nn

from crosscoding.checks.subject import Subject
from crosscoding.errors import counted
from crosscoding.methods.numerics.enumeration import MAX_STATES
from crosscoding.model.bank import Bank
from crosscoding.model.bound import free, known
from crosscoding.model.check_report import CheckResult
from crosscoding.priors.discrete import DiscretePrior

_GRID_DIM = 3  # largest latent size for a grid
_FITTED_DIM = 32  # largest latent size at which importance weights of a fit mostly work
_MEGABYTE = 2**20


def cost(subject: Subject) -> CheckResult:
    """Seconds, multiply-adds and memory of decoding one z in a batch."""
    vae, num = subject.vae, len(subject.probes)
    start = time.perf_counter()
    subject.decoded(subject.probes)[-1:].cpu()  # on a GPU, this waits for the result
    seconds = (time.perf_counter() - start) / num
    row_bytes = vae.row_values * vae.dtype.itemsize
    figures = {"seconds": seconds, "operations": vae.operations, "row_bytes": float(row_bytes)}
    return CheckResult(
        "cost",
        "ok",
        f"decoding one z takes {_seconds(seconds)}, {vae.operations:.2g} multiply-adds and "
        f"{row_bytes / 1024:,.0f} KiB",
        figures,
    )


def bank(subject: Subject) -> CheckResult:
    """The bank: its size, and the time that making it and comparing data with it takes."""
    vae = subject.vae
    if vae.given is not None:  # each of the model's examples has a bank of its own
        vae = known(free(vae), 0)
    start = time.perf_counter()
    points = Bank.of(vae)
    to_make = time.perf_counter() - start
    values = subject.output.new_zeros(1, vae.data_size)
    start = time.perf_counter()
    points.log_likelihood(values, torch.ones_like(values, dtype=torch.bool))
    to_ask = time.perf_counter() - start
    size = points.num_bytes / _MEGABYTE
    figures = {"points": float(len(points.points)), "bytes": float(points.num_bytes)}
    return CheckResult(
        "bank",
        "ok",
        f"{len(points.points):,} decoded points of the prior are kept, in {size:,.0f} MiB, made in "
        f"{_seconds(to_make)}; comparing a complete datum with all takes {_seconds(to_ask)}",
        figures | {"seconds_to_ask": to_ask},
    )


def head(subject: Subject) -> CheckResult:
    """Whether the last linear layer was found, so that only observed rows need to run."""
    if not subject.vae.likelihood.by_rows:
        return CheckResult(
            "last layer",
            "note",
            "its rows cannot be separated if columns differ or a dispersion is decoded, so "
            "complete data are decoded for any evidence",
        )
    if isinstance(subject.vae.decoder, nn.Linear):
        return CheckResult("last layer", "ok", "the only layer: all of it is run, which is cheap")
    if subject.vae.head is not None:
        rows, width = subject.vae.head.weight.shape
        words = f"found, {width} to {rows}: only observed elements are decoded"
        return CheckResult("last layer", "ok", words)
    return CheckResult(
        "last layer",
        "note",
        "no linear one was found, as in convolutional decoders, so complete data are decoded for "
        "any evidence; if there is one, end forward() in it or in an elementwise function of it",
    )


def methods(subject: Subject) -> CheckResult:
    """What to expect from methods at this latent size."""
    if isinstance(subject.vae.prior, DiscretePrior):
        return _methods_for_states(subject.vae.prior)
    dim = subject.vae.latent_dim
    if dim <= _GRID_DIM:
        words = "Auto (the default) integrates over a grid, almost exactly; all methods work"
    elif dim <= _FITTED_DIM:
        words = "Auto (the default) fits and checks itself; too many for Grid and Rejection"
    else:
        words = "Auto (the default) gives the best Gaussian, seldom trusted; compare with HMC"
        return CheckResult("methods", "note", f"{counted(dim, 'latent dimension')}: {words}")
    return CheckResult("methods", "ok", f"{counted(dim, 'latent dimension')}: {words}")


def _methods_for_states(prior: DiscretePrior) -> CheckResult:
    """What to expect from methods at this number of discrete states."""
    size = f"{counted(prior.latent_dim, 'place')} of {counted(prior.num_values, 'value')}"
    if prior.num_states <= MAX_STATES:
        words = "Auto (the default) goes through all states, exactly"
    else:
        words = "Auto (the default) draws by annealing and checks itself"
    return CheckResult("methods", "ok", f"{size}: {words}")


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
