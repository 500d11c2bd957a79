"""Checks of a model against data: are they what it can have had in training?"""

import torch
from torch import Tensor

from crosscoding.checks.columns import FEWEST, log_prob_of_columns
from crosscoding.checks.subject import Subject
from crosscoding.likelihoods import Bernoulli, Gaussian, Laplace
from crosscoding.report import Finding

_FAR = 6.0  # standard deviations of the model's draws
_FEW, _MANY = 0.05, 0.5  # shares of values on another scale: a warning, an error
_MARGIN = 0.1  # of a range
_PAIRS = 8  # of draws of z for each datum
_SCALE_FACTOR = 1.5


def support(subject: Subject) -> Finding:
    """Whether data are finite and values that the likelihood can have."""
    data, likelihood = _data(subject), subject.vae.likelihood
    finite = data.isfinite()
    if not finite.all():
        return Finding(
            "data",
            "error",
            f"{int((~finite).sum())} of {data.numel()} values are NaN or infinite; give whole data "
            "(in evidence NaN may stand for what is missing)",
        )
    low, high = data.min().item(), data.max().item()
    figures = {"count": float(len(data)), "lowest": low, "highest": high}
    try:
        likelihood.check_values(data, torch.ones_like(data, dtype=torch.bool), "data")
    except ValueError as error:
        return Finding("data", "error", str(error), figures)
    words = f"{len(data):,} of them, values from {low:.4g} to {high:.4g}"
    between = ((data > 0) & (data < 1)).double().mean().item()
    if isinstance(likelihood, Bernoulli) and between:
        return Finding(
            "data",
            "note",
            f"{words}, {between:.0%} of them between 0 and 1: their log p is a cross-entropy, no "
            "density, and draws are 0 or 1; ContinuousBernoulli is the law of such values",
            figures,
        )
    return Finding("data", "ok", words, figures)


def units(subject: Subject) -> Finding | None:
    """Whether data and what the model draws have the same units."""
    likelihood, params = subject.vae.flat_likelihood, subject.params
    data, means = _data(subject).flatten(1), likelihood.mean(params)
    shape = params.shape[0], data.shape[1]
    noise = likelihood.noise(shape, generator=subject.generator, like=subject.like)
    draws = likelihood.draw(params, noise)
    if not means.isfinite().all() or data.min() == data.max():
        return None
    spread = draws.std(0).clamp_min(1e-6 * draws.abs().max())
    shares = {
        "data": _share_outside(data, draws),
        "means": _share_outside(means, data),
        "far": ((data - draws.mean(0)).abs() > _FAR * spread).double().mean().item(),
    }
    of_data, of_draws, of_means = (_range(x) for x in (data, draws, means))
    worst = max(shares, key=lambda name: shares[name])
    share = shares[worst]
    if share <= _FEW:
        words = f"data are {of_data}, what the model draws {of_draws}"
        return Finding("units", "ok", words, shares)
    words = {
        "data": f"{share:.0%} of the values of data, {of_data}, lie outside what the model draws, "
        f"{of_draws}",
        "means": f"{share:.0%} of the decoder's means, {of_means}, lie outside the data, {of_data}",
        "far": f"{share:.0%} of the values of data are more than {_FAR:.0f} standard deviations "
        "from the model's mean of their element",
    }[worst]
    status = "error" if share > _MANY else "warning"
    return Finding("units", status, f"{words}; scale the data as in training", shares)


def explanation(subject: Subject) -> Finding:
    """Whether whole data are likelier under the model than by their columns alone."""
    data, fits, likelihood = _data(subject), subject.fits, subject.vae.flat_likelihood
    ours = fits.log_prob.mean().item()
    figures = {"log_prob": ours}
    if len(data) < FEWEST:
        words = f"log p of {len(fits.data)} data is about {ours:.4g} nats on average; give "
        return Finding("explanation", "note", f"{words}{FEWEST} or more to compare", figures)
    noise = likelihood.variance(subject.params).mean(0).nan_to_num(0.0, 0.0)
    floor = noise.clamp_min(1e-12).reshape(subject.vae.data_shape)
    columns = log_prob_of_columns(subject.vae.likelihood, data, floor)
    gains = fits.log_prob - columns[: len(fits.data)].to(fits.log_prob)
    gain, error = gains.mean().item(), (gains.std() / len(gains) ** 0.5).item()
    figures |= {"log_prob_of_columns": ours - gain, "gain": gain, "gain_error": error}
    words = (
        f"log p of {len(gains)} data is about {ours:.4g} nats on average, and {ours - gain:.4g} "
        "where each element has a law of its own"
    )
    if gain < -2 * error:
        return Finding(
            "explanation",
            "warning",
            f"{words}: the model says less than that; is it trained, and on such data?",
            figures,
        )
    return Finding("explanation", "ok", words, figures)


@torch.no_grad()
def scale(subject: Subject) -> Finding | None:
    """Whether data are as far from the decoder's means as the likelihood says."""
    vae, fits = subject.vae, subject.fits
    if not isinstance(vae.likelihood, (Gaussian, Laplace)):
        return None
    squares = []
    for z in fits.draws(_PAIRS, generator=subject.generator):
        params = subject.flat(vae.decode(z))
        residual = fits.data.flatten(1) - vae.flat_likelihood.mean(params)
        squares.append(residual.square() / vae.flat_likelihood.variance(params))
    factor = torch.stack(squares).double().mean().sqrt().item()
    figures = {"factor": factor}
    words = f"data are {factor:.2g} times as far from the decoder's means as the scale says"
    if 1 / _SCALE_FACTOR <= factor <= _SCALE_FACTOR:
        return Finding("scale", "ok", words, figures)
    fixed = isinstance(vae.likelihood, Gaussian) and vae.likelihood.scale is not None
    advice = "cc.calibrate_scale(vae, data) finds the one to use" if fixed else "change it so much"
    effect = "too sure" if factor > 1 else "too vague"
    return Finding("scale", "warning", f"{words}, so answers are {effect}; {advice}", figures)


def _data(subject: Subject) -> Tensor:
    if subject.data is None:
        raise ValueError("expected data, got none")
    return subject.data


def _share_outside(values: Tensor, others: Tensor) -> float:
    """Share of values that lie outside the range of others, widened by a margin."""
    low, high = others.min(), others.max()
    margin = _MARGIN * (high - low)
    return ((values < low - margin) | (values > high + margin)).double().mean().item()


def _range(values: Tensor) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"
