"""Checks of a model against data: could it have been trained on such data?"""

import torch
from torch import Tensor

from crosscoding.checks.column_baseline import FEWEST, KINDS, log_prob_of_columns
from crosscoding.checks.likelihood_parts import LikelihoodPart, parts_of, worst
from crosscoding.checks.subject import Subject
from crosscoding.errors import counted
from crosscoding.likelihoods import Gaussian, Likelihood, Mixed
from crosscoding.model.check_report import CheckResult
from crosscoding.target.jacobian import with_jacobian

# Correct models get factors of 0.95 to 1.09 from 40 data; scales that are twice or half as large as
# they should be get 0.48 to 0.54 or 1.9 to 2.2.
_SCALE_FACTOR = 1.5
_LEAST_FACTOR = 1e-3  # lower end of the search
_TELLING = 2.0  # difference in 2 log p of all data that a parameter must gain: AIC, Akaike (1974)
_MUCH_LESS = 120  # steps of the search to a quarter of the factor: 100 steps are a factor of √10


def support(subject: Subject) -> CheckResult:
    """Whether data are finite and in the support of the likelihood."""
    data, likelihood = subject.whole, subject.vae.likelihood
    finite = data.isfinite()
    if not finite.all():
        return CheckResult(
            "data",
            "error",
            f"{int((~finite).sum())} of {data.numel()} values are NaN or infinite; pass complete "
            "data (only evidence may have NaN for missing values)",
        )
    low, high = data.min().item(), data.max().item()
    figures = {"count": float(len(data)), "lowest": low, "highest": high}
    try:
        likelihood.check_values(data, torch.ones_like(data, dtype=torch.bool), "data")
    except ValueError as error:
        return CheckResult("data", "error", str(error), figures)
    words = f"{counted(len(data), 'datum', 'data')}, values from {low:.4g} to {high:.4g}"
    between = ((data > 0) & (data < 1)).double().mean().item()
    if likelihood.kind == "binary" and between:
        return CheckResult(
            "data",
            "note",
            f"{words}, {between:.0%} of them between 0 and 1: their log p is a cross-entropy, not "
            "a density, and draws are 0 or 1; ContinuousBernoulli has a density for such values",
            figures,
        )
    return CheckResult("data", "ok", words, figures)


def explanation(subject: Subject) -> CheckResult:
    """Whether complete data are more likely under the model than under independent columns."""
    data, fits, likelihood = subject.whole, subject.fits, subject.vae.flat_likelihood
    ours = fits.log_prob.mean().item()
    figures = {"log_prob": ours}
    num = counted(len(fits.data), "datum", "data")
    words = f"log p of {num} is about {ours:.4g} nats on average"
    if len(data) < FEWEST:
        words += f"; pass {FEWEST} or more to compare it with a baseline"
        return CheckResult("explanation", "note", words, figures)
    if name := _without_kind(subject.vae.likelihood):
        words += f"; to compare it with a baseline, set kind of {name} to one of "
        words += ", ".join(KINDS)
        return CheckResult("explanation", "note", words, figures)
    noise = likelihood.variance(subject.params).mean(0).nan_to_num(0.0, 0.0)
    floor = noise.clamp_min(1e-12).reshape(subject.vae.data_shape)
    columns = log_prob_of_columns(subject.vae.likelihood, data, floor)
    gains = fits.log_prob - columns[: len(fits.data)].to(fits.log_prob)
    gain, error = gains.mean().item(), (gains.std() / len(gains) ** 0.5).item()
    figures |= {"log_prob_of_columns": ours - gain, "gain": gain, "gain_error": error}
    words += f", and {ours - gain:.4g} under independent elements"
    if gain < -2 * error:
        return CheckResult(
            "explanation",
            "warning",
            f"{words}: the model is worse than that; is it trained, and on such data?",
            figures,
        )
    return CheckResult("explanation", "ok", words, figures)


def _without_kind(likelihood: Likelihood) -> str:
    """The name of the first part whose kind has no baseline; "" if all have one."""
    kinds = {type(p.likelihood).__name__: p.likelihood.kind for p in parts_of(likelihood)}
    return next((name for name, kind in kinds.items() if kind not in KINDS), "")


@torch.no_grad()
def scale(subject: Subject) -> CheckResult | None:
    """Whether data are as far from the decoder's means as a Gaussian's fixed scale says.

    For a `Mixed`, each Gaussian part is checked, and the worst result is reported.
    """
    vae, fits, likelihood = subject.vae, subject.fits, subject.vae.likelihood
    if _is_scaled(likelihood):
        params = subject.flat(fits.vae.decode(fits.mean))
        residual = (fits.data.flatten(1) - vae.flat_likelihood.mean(params)).double()
        squares = (residual.square() / vae.flat_likelihood.variance(params)).sum(1)
        return _scale_result(squares, vae.data_size, fits.mean.double(), fits.precision)
    if not isinstance(likelihood, Mixed):
        return None
    places = likelihood.places(vae.data_shape, vae.device)
    parts = zip(parts_of(likelihood), places, strict=True)
    return worst(
        [_scale_of(subject, part, *own) for part, own in parts if _is_scaled(part.likelihood)]
    )


def _is_scaled(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Gaussian) and likelihood.scale is not None


def _scale_of(
    subject: Subject, part: LikelihoodPart, elements: Tensor, outputs: Tensor
) -> CheckResult:
    """The result for one part of a `Mixed`, given the places of its elements and outputs.

    The prior and the other parts together are one Gaussian in z, (z − b) ~ N(0, B⁻¹) with
    B = H − A and A = Jᵀ J / σ². In u = Bʰ (z − b), h = ½, it becomes N(0, I), like a prior alone.
    """
    vae, fits = subject.vae, subject.fits
    likelihood = part.likelihood.for_data(elements.shape, subject.like)
    means, jacobian = with_jacobian(
        lambda z: fits.vae.decode_flat(z)[..., outputs.flatten()], fits.mean[None]
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
    return _scale_result(squares, elements.numel(), mode, precision, part.where)


def _scale_result(
    squares: Tensor, size: int, mode: Tensor, precision: Tensor, where: str = ""
) -> CheckResult:
    """The result of `_likeliest_factor`, in words; `where` names the columns."""
    factor = _likeliest_factor(squares, size, mode, precision)
    words = f"{where}data suggest about {factor:.2g} times the likelihood's scale"
    if factor <= _LEAST_FACTOR:
        return CheckResult(
            "scale",
            "note",
            f"{where}z of {counted(mode.shape[1], 'dimension')} can match "
            f"{counted(size, 'element')} almost exactly: either the data do not determine the "
            "scale, or it is far too large; try a smaller one",
            {"factor": 0.0},
        )
    if 1 / _SCALE_FACTOR <= factor <= _SCALE_FACTOR:
        return CheckResult("scale", "ok", words, {"factor": factor})
    return CheckResult(
        "scale",
        "warning",
        f"{words}: with the present one answers are too {'narrow' if factor > 1 else 'wide'}; "
        "cc.calibrate_scale(vae, data) finds the right one",
        {"factor": factor},
    )


def _likeliest_factor(squares: Tensor, size: int, mode: Tensor, precision: Tensor) -> float:
    """The factor f of the scale that maximises log p of the data, locally, linear around z*.

    With A = H − I = Jᵀ J / σ², a its eigenvalues and z* in their basis, f scales σ² by f²:

        2 log p(t) = −E log f² − Σ log(1 + a / f²) − (|r|² − 2 z*ᵀ δ + Σ a δ²) / f² − |z* + δ|²
        δ = z* (1 − f²) / (a + f²),   how far the mode moves, as Jᵀ r = z* at f = 1

    If a quarter of the best factor is hardly less likely, it may as well be 0: the data do not
    determine the scale.

    Args:
        squares: |r|² = Σ (t − μ(z*))² / σ² of each datum, (N,).
        size: E, the number of elements of a datum.
        mode: z*, (N, latent).
        precision: H, (N, latent, latent).
    """
    a, basis = torch.linalg.eigh(precision)
    a = (a - 1).clamp_min(0.0)
    mode = torch.einsum("nij,ni->nj", basis, mode)
    square = torch.logspace(-6, 6, 1201, dtype=torch.double, device=a.device)[:, None, None]
    shift = mode * (1 - square) / (a + square)
    left = squares + (a * shift.square() - 2 * mode * shift).sum(-1)
    spread = (a / square).log1p().sum(-1) + (mode + shift).square().sum(-1)
    square = square[..., 0]
    cost = (size * square.log() + left / square + spread).sum(1).tolist()
    best = len(cost) // 2  # f = 1: go downhill from here, as the linearisation holds only nearby
    while 0 < best < len(cost) - 1 and min(cost[best - 1], cost[best + 1]) < cost[best]:
        best += 1 if cost[best + 1] < cost[best - 1] else -1
    if cost[max(best - _MUCH_LESS, 0)] < cost[best] + _TELLING:
        best = 0
    return square[best, 0].sqrt().item()
