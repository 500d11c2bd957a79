"""What answers will cost, and which methods suit the model."""

import time

import torch
from torch import nn

from crosscoding.checks.subject import Subject
from crosscoding.errors import counted
from crosscoding.model.bank import Bank
from crosscoding.model.check_report import CheckResult

_GRID_DIM = 3  # up to which a grid integrates
_FITTED_DIM = 32  # up to which importance weights of a fit mostly hold
_MEGABYTE = 2**20


def cost(subject: Subject) -> CheckResult:
    """Seconds, multiply-adds and memory of decoding one z, among as many as fit a batch."""
    vae, num = subject.vae, len(subject.probes)
    start = time.perf_counter()
    subject.decoded(subject.probes)[-1:].cpu()  # which waits for it, on a GPU
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
    """The decoded points of the prior that every query is held against first."""
    vae = subject.vae
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
        f"{len(points.points):,} points of the prior are kept decoded, in {size:,.0f} MiB; made in "
        f"{_seconds(to_make)}, one complete datum against all takes {_seconds(to_ask)}",
        figures | {"seconds_to_ask": to_ask},
    )


def head(subject: Subject) -> CheckResult:
    """Whether the decoder's last linear layer was found, so that it can be run in part."""
    if not subject.vae.likelihood.by_rows:
        return CheckResult(
            "last layer",
            "note",
            "its rows are not told apart where columns differ or a dispersion is decoded, so whole "
            "data are decoded for any evidence",
        )
    if isinstance(subject.vae.decoder, nn.Linear):
        return CheckResult("last layer", "ok", "the only one: it is run as a whole, which is cheap")
    if subject.vae.head is not None:
        rows, width = subject.vae.head.weight.shape
        words = f"found, {width} to {rows}: only what the evidence observes is decoded"
        return CheckResult("last layer", "ok", words)
    return CheckResult(
        "last layer",
        "note",
        "no linear one was found, as in convolutional decoders, so complete data are decoded for any "
        "evidence; where there is one, end forward() in it or an elementwise function of it",
    )


def methods(subject: Subject) -> CheckResult:
    """What to expect of methods at this latent size."""
    dim = subject.vae.latent_dim
    if dim <= _GRID_DIM:
        words = "Auto (the default) integrates over a grid, next to exactly; all methods work"
    elif dim <= _FITTED_DIM:
        words = "Auto (the default) fits and checks itself; Grid and Rejection are not for so many"
    else:
        words = "Auto (the default) gives the best Gaussian, seldom trusted; HMC to compare with"
        return CheckResult("methods", "note", f"{counted(dim, 'latent dimension')}: {words}")
    return CheckResult("methods", "ok", f"{counted(dim, 'latent dimension')}: {words}")


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
