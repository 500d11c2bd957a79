"""Checks of a model against data: are they what it can have had in training?"""

import torch
from torch import Tensor

from crosscoding.checks.column_baseline import FEWEST, KINDS, log_prob_of_columns
from crosscoding.checks.likelihood_parts import Part, parts_of, worst
from crosscoding.checks.subject import Subject
from crosscoding.errors import counted
from crosscoding.likelihoods import Gaussian, Likelihood, Mixed
from crosscoding.model.check_report import CheckResult
from crosscoding.target.jacobian import with_jacobian

_SCALE_FACTOR = 1.5
_LEAST_FACTOR = 1e-3  # where the search for it ends
_TELLING = 2.0  # in 2 log p of all data together, what tells one factor from another
_MUCH_LESS = 120  # steps of the search, of which 100 are √10


def support(subject: Subject) -> CheckResult:
    """Whether data are finite and values that the likelihood can have."""
    data, likelihood = subject.whole, subject.vae.likelihood
    finite = data.isfinite()
    if not finite.all():
        return CheckResult(
            "data",
            "error",
            f"{int((~finite).sum())} of {data.numel()} values are NaN or infinite; give complete data "
            "(in evidence NaN may stand for what is missing)",
        )
    low, high = data.min().item(), data.max().item()
    figures = {"count": float(len(data)), "lowest": low, "highest": high}
    try:
        likelihood.check_values(data, torch.ones_like(data, dtype=torch.bool), "data")
    except ValueError as error:
        return CheckResult("data", "error", str(error), figures)
    words = f"{len(data):,} of them, values from {low:.4g} to {high:.4g}"
    between = ((data > 0) & (data < 1)).double().mean().item()
    if likelihood.kind == "binary" and between:
        return CheckResult(
            "data",
            "note",
            f"{words}, {between:.0%} of them between 0 and 1: their log p is a cross-entropy, no "
            "density, and draws are 0 or 1; ContinuousBernoulli is the law of such values",
            figures,
        )
    return CheckResult("data", "ok", words, figures)


def explanation(subject: Subject) -> CheckResult:
    """Whether complete data are likelier under the model than by their columns alone."""
    data, fits, likelihood = subject.whole, subject.fits, subject.vae.flat_likelihood
    ours = fits.log_prob.mean().item()
    figures = {"log_prob": ours}
    num = counted(len(fits.data), "datum", "data")
    words = f"log p of {num} is about {ours:.4g} nats on average"
    if len(data) < FEWEST:
        words += f"; give {FEWEST} or more to compare"
        return CheckResult("explanation", "note", words, figures)
    if name := _without_kind(subject.vae.likelihood):
        words += f"; to compare, set kind of {name} to what its values are, one of "
        words += ", ".join(KINDS)
        return CheckResult("explanation", "note", words, figures)
    noise = likelihood.variance(subject.params).mean(0).nan_to_num(0.0, 0.0)
    floor = noise.clamp_min(1e-12).reshape(subject.vae.data_shape)
    columns = log_prob_of_columns(subject.vae.likelihood, data, floor)
    gains = fits.log_prob - columns[: len(fits.data)].to(fits.log_prob)
    gain, error = gains.mean().item(), (gains.std() / len(gains) ** 0.5).item()
    figures |= {"log_prob_of_columns": ours - gain, "gain": gain, "gain_error": error}
    words += f", and {ours - gain:.4g} where each element has a law of its own"
    if gain < -2 * error:
        return CheckResult(
            "explanation",
            "warning",
            f"{words}: the model says less than that; is it trained, and on such data?",
            figures,
        )
    return CheckResult("explanation", "ok", words, figures)


def _without_kind(likelihood: Likelihood) -> str:
    """The name of the first part that does not say what its values are; "" if all do."""
    kinds = {type(p.likelihood).__name__: p.likelihood.kind for p in parts_of(likelihood)}
    return next((name for name, kind in kinds.items() if kind not in KINDS), "")


@torch.no_grad()
def scale(subject: Subject) -> CheckResult | None:
    """Whether data are as far from the decoder's means as a Gaussian's fixed scale says.

    Of a `Mixed`, each Gaussian part by itself; the worst of them is told.
    """
    vae, fits, likelihood = subject.vae, subject.fits, subject.vae.likelihood
    if _is_scaled(likelihood):
        params = subject.flat(vae.decode(fits.mean))
        residual = (fits.data.flatten(1) - vae.flat_likelihood.mean(params)).double()
        squares = (residual.square() / vae.flat_likelihood.variance(params)).sum(1)
        return _scale_finding(squares, vae.data_size, fits.mean.double(), fits.precision)
    if not isinstance(likelihood, Mixed):
        return None
    places = likelihood.places(vae.data_shape, vae.device)
    parts = zip(parts_of(likelihood), places, strict=True)
    return worst(
        [_scale_of(subject, part, *own) for part, own in parts if _is_scaled(part.likelihood)]
    )


def _is_scaled(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Gaussian) and likelihood.scale is not None


def _scale_of(subject: Subject, part: Part, elements: Tensor, outputs: Tensor) -> CheckResult:
    """The finding on one part of a `Mixed`, of elements and outputs in data laid out flat.

    What the other parts say of z is taken with its prior as one Gaussian, (z − b) ~ N(0, B⁻¹) with
    B = H − A and A = Jᵀ J / σ². In u = Bʰ (z − b), h = ½, that is N(0, I), as the prior is alone.
    """
    vae, fits = subject.vae, subject.fits
    likelihood = part.likelihood.for_data(elements.shape, subject.like)
    means, jacobian = with_jacobian(
        lambda z: vae.decode_flat(z)[..., outputs.flatten()], fits.mean[None]
    )
    deviation = likelihood.variance(means[0]).double().sqrt()
    residual = (fits.data.flatten(1)[:, elements.flatten()] - means[0]).double() / deviation
    along = jacobian[:, 0].movedim(0, -1).double() / deviation[..., None]  # (N, E, latent)
    own = along.mT @ along
    values, basis = torch.linalg.eigh(fits.precision - own)
    root = basis * values.clamp_min(1.0).rsqrt().unsqueeze(-2)  # B ≥ I
    mode = torch.einsum("nij,nei,ne->nj", root, along, residual)
    precision = root.mT @ own @ root + torch.eye(vae.latent_dim).to(own)
    squares = residual.square().sum(1)
    return _scale_finding(squares, elements.numel(), mode, precision, part.where)


def _scale_finding(
    squares: Tensor, size: int, mode: Tensor, precision: Tensor, where: str = ""
) -> CheckResult:
    """What `_likeliest_factor` finds, in words; arguments as there, and where they are from."""
    factor = _likeliest_factor(squares, size, mode, precision)
    words = f"{where}data ask for about {factor:.2g} times the likelihood's scale"
    if factor <= _LEAST_FACTOR:
        return CheckResult(
            "scale",
            "note",
            f"{where}z of {counted(mode.shape[1], 'dimension')} can match "
            f"{counted(size, 'element')} exactly, as far as one sees: data do not tell the scale, "
            "or it is far too large; try a smaller",
            {"factor": 0.0},
        )
    if 1 / _SCALE_FACTOR <= factor <= _SCALE_FACTOR:
        return CheckResult("scale", "ok", words, {"factor": factor})
    return CheckResult(
        "scale",
        "warning",
        f"{words}: with the present one answers are too {'sure' if factor > 1 else 'vague'}; "
        "cc.calibrate_scale(vae, data) finds the one to use",
        {"factor": factor},
    )


def _likeliest_factor(squares: Tensor, size: int, mode: Tensor, precision: Tensor) -> float:
    """The factor f of the scale under which data are likelier than nearby, linear around z*.

    With A = H − I = Jᵀ J / σ², a its eigenvalues and z* in their basis, f scales σ² by f²:

        2 log p(t) = −E log f² − Σ log(1 + a / f²) − (|r|² − 2 z*ᵀ δ + Σ a δ²) / f² − |z* + δ|²
        δ = z* (1 − f²) / (a + f²),   the way of the mode, as Jᵀ r = z* at f = 1

    Where a quarter of it is hardly less likely, so may be 0: the data do not tell.

    Args:
        squares: |r|² = Σ (t − μ(z*))² / σ² of each datum, (N,).
        size: E, how many elements a datum has.
        mode: z*, (N, latent).
        precision: H, (N, latent, latent).
    """
    a, basis = torch.linalg.eigh(precision)
    a = (a - 1).clamp_min(0.0)
    mode = torch.einsum("nij,ni->nj", basis, mode)
    square = torch.logspace(-6, 6, 1201, dtype=torch.double, device=a.device)[:, None, None]
    way = mode * (1 - square) / (a + square)
    left = squares + (a * way.square() - 2 * mode * way).sum(-1)
    spread = (a / square).log1p().sum(-1) + (mode + way).square().sum(-1)
    square = square[..., 0]
    cost = (size * square.log() + left / square + spread).sum(1).tolist()
    best = len(cost) // 2  # f = 1: downhill from here, as far from it the decoder is another line
    while 0 < best < len(cost) - 1 and min(cost[best - 1], cost[best + 1]) < cost[best]:
        best += 1 if cost[best + 1] < cost[best - 1] else -1
    if cost[max(best - _MUCH_LESS, 0)] < cost[best] + _TELLING:
        best = 0
    return square[best, 0].sqrt().item()
