"""Finds the maximum-likelihood scale of a Gaussian likelihood that is unknown or was guessed.

For a `Mixed` likelihood, it finds the scale of each Gaussian part; other columns help to infer z.
It is an EM algorithm:

    E   p(z|t) ≈ Σ_k w_k N(z_k, H_k⁻¹) for every complete datum t, as in `methods.Laplace`
    M   σ² = E|t − μ(z_k)|² / E[1 − h],   h = J H⁻¹ Jᵀ / σ² of an element, J its row at z_k

Both means are over data, modes and the elements that share this scale. h is the share of an element
that z fits, and Σ h = D − tr H⁻¹. A decoder trained with another scale, or with none, gets the one
under which its answers are neither too narrow nor too wide.

At the fixed point, σ² = E[(t − μ(z))²] over draws of z, with μ linearised at z_k. Decoding the
draws with the network itself would not work: under a scale that is far too large, they spread so
widely that the decoder is not linear over them, and their residuals reproduce the wrong scale.

Source: MacKay (1992), "Bayesian interpolation", the evidence framework. Differs in: a datum may
have several modes, and a scale may apply to only some elements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crosscoding.clock import Clock
from crosscoding.covariates import Covariates
from crosscoding.crosscoders.precision_factors import precision_root
from crosscoding.errors import BudgetError, counted
from crosscoding.evidence import Evidence
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Gaussian, Mixed
from crosscoding.methods import Report, silent
from crosscoding.methods.numerics.gauss_newton import Modes, climb
from crosscoding.model.bound import bound_for, selected
from crosscoding.model.in_noise import check_continuous, in_noise
from crosscoding.model.matching import complete_data
from crosscoding.model.tabular import of_frame
from crosscoding.model.vae import VAE
from crosscoding.progress import Progress, followed
from crosscoding.target.jacobian import with_jacobian
from crosscoding.target.vae_target import CHUNK_BYTES, VAETarget

if TYPE_CHECKING:
    import pandas as pd

# Halving or doubling any of these changes the scales of four models by at most 0.06 %.
_STARTS = 4  # climbs per datum, from the most likely points of the bank
_STEPS = 25  # largest number of steps of a climb
_EVERY = 5  # steps of a climb that share one curvature
_LEAST_WEIGHT = 1e-3  # of a mode, for the next round to climb from it
_LEAST_FREEDOM = 1e-3  # mean of 1 − h below which residuals carry no information


@isolated
def calibrate_scale(
    vae: VAE,
    data: "Tensor | np.ndarray | pd.DataFrame",
    *,
    given: Covariates = None,
    rounds: int = 100,
    tolerance: float = 1e-3,
    report: Report = silent,
    progress: bool = True,
) -> float | Tensor | tuple[float | Tensor, ...]:
    """The Gaussian scale σ under which complete data are most likely.

    The VAE's own scale is not used. The search starts from the distance of the data to the nearest
    points of the prior, and rounds of E and M lower the scale from there. When it has settled,
    modes are searched once more. No random numbers are drawn.

    Args:
        vae: A model with a Gaussian likelihood of fixed scale, or a `Mixed` with such parts.
        data: Complete data like those you will condition on, shape (N, *data) with N ≥ 1, a tensor
            or NumPy array of the model's dtype, or a DataFrame if the model has a table. A few tens
            are enough for one scale, as every element of each datum counts.
        given: Covariates of the data, a row for each or one for all, if the decoder takes any.
        rounds: Largest number of rounds, ≥ 1. One scale settles quickly, one per element slowly.
        tolerance: Stop when no scale changes by more than this in relative terms, > 0.
        report, progress: As in `condition`.

    Returns:
        A float, or a tensor of the same shape if the VAE's scale is a tensor. For a `Mixed`, a
        tuple of these: one for each Gaussian part with a fixed scale, in the order of the parts.
        Other parts, including those with a decoded scale, stay as they are.

    Raises:
        TypeError: vae or data has the wrong type, or no part of the likelihood is a Gaussian with a
            fixed scale.
        ValueError: The scale is decoded, the data or covariates do not fit, or an argument is out
            of range.
        BudgetError: z can match the data exactly, so that a scale falls towards zero; or a scale
            still changes after the last round.

    Example:
        >>> vae = VAE(torch.nn.Linear(2, 50), latent_dim=2, likelihood=Gaussian(1.0))
        >>> truth = VAE(vae.decoder, latent_dim=2, likelihood=Gaussian(0.3))
        >>> round(calibrate_scale(vae, truth.sample_prior(100, seed=0)), 1)
        0.3
    """
    shares = _shares_of(vae)
    with followed("calibrating", report, progress) as told:
        data = complete_data(vae, of_frame(vae, data))
        return _calibrated(vae, _complete(vae, data, given), shares, rounds, tolerance, told)


@dataclass(frozen=True, eq=False)
class _Share:
    """The elements that share one Gaussian scale, or a tensor of scales that broadcasts to them.

    Args:
        given: The VAE's scale.
        where: Names the part at the start of a message; "" if these are all elements.
        elements: Their indices in flattened data, in the shape to which the scale broadcasts.
        means: Indices of their means in the decoder's flattened output, in the same shape.
    """

    given: float | Tensor
    where: str
    elements: Tensor
    means: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Average flat values, one per element, over the elements of each scale.

        Returns:
            A tensor of the shape of `given`.
        """
        shape = torch.as_tensor(self.given).shape
        values = values.reshape(self.elements.shape)
        for dim, size in enumerate((1,) * (values.ndim - len(shape)) + tuple(shape)):
            if size == 1:
                values = values.mean(dim, keepdim=True)
        return values.reshape(shape)


def _complete(vae: VAE, data: Tensor, given: Covariates) -> Evidence:
    """Data (N, *data) as evidence, with covariates of each."""
    rows = bound_for(vae, given, data.shape[:1]).given
    return Evidence(data, torch.ones_like(data, dtype=torch.bool), given=rows)


def _calibrated(
    vae: VAE,
    evidence: Evidence,
    shares: list[_Share],
    rounds: int,
    tolerance: float,
    told: Progress,
) -> float | Tensor | tuple[float | Tensor, ...]:
    data, vae = evidence.values, in_noise(vae)
    if rounds < 1 or not tolerance > 0:
        raise ValueError(f"expected rounds >= 1 and tolerance > 0, got {rounds} and {tolerance}")
    unscaled = VAETarget(vae, evidence)
    z = nearest = _nearest(unscaled)
    scales, change, looked_again = _first(unscaled.vae, data, nearest, shares), torch.inf, False
    for done in range(rounds):
        told(done / rounds, f"round {done + 1}, mean scale {_means(scales)}")
        scaled = _with_scales(vae, scales)
        target = VAETarget(scaled, evidence).timed(Clock(beat=told.beat))
        modes = climb(target, z, _STEPS, every=_EVERY)
        weights = modes.log_weights()[0].double().exp()
        last, scales = scales, _fitting(target.vae, data, modes, weights, shares, scales)
        change = max(
            ((new - old).abs() / old).max().item() for new, old in zip(scales, last, strict=True)
        )
        settled = change <= tolerance
        if settled and looked_again:
            found = tuple(_as_given(*pair, data) for pair in zip(shares, scales, strict=True))
            return found if isinstance(vae.likelihood, Mixed) else found[0]
        z = _heaviest(modes.z, weights)
        if settled:  # the modes come from wide first scales: there may be better ones now
            z, looked_again = torch.cat([z, nearest]), True
    raise BudgetError(
        f"expected a scale that settles within {counted(rounds, 'round')}, got one whose relative "
        f"change is still {change:.2g}, now {_means(scales)}; raise rounds or tolerance, or pass "
        "data that z cannot match exactly"
    )


def _shares_of(vae: VAE) -> list[_Share]:
    """The elements with a fixed Gaussian scale, grouped by scale.

    Raises:
        TypeError, ValueError: There are none.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}")
    check_continuous(vae, "calibrate_scale")
    likelihood = vae.likelihood
    if isinstance(likelihood, Mixed):
        places = likelihood.places(vae.data_shape, vae.device)
        shares = [
            _Share(part.scale, f"for part {index}, ", elements, outputs)
            for index, ((part, _), (elements, outputs)) in enumerate(
                zip(likelihood.pairs, places, strict=True)
            )
            if isinstance(part, Gaussian) and part.scale is not None
        ]
        if shares:
            return shares
    if not isinstance(likelihood, Gaussian):
        raise TypeError(
            "expected a VAE with a Gaussian likelihood, or a Mixed with a Gaussian part, of fixed "
            f"scale, got {type(likelihood).__name__}; for another likelihood, compare "
            "vae.check(data)['explanation'] under several settings"
        )
    if likelihood.scale is None:
        raise ValueError(
            f"expected a Gaussian likelihood with a fixed scale, got {likelihood}: its decoder "
            "outputs the scale, so there is none to calibrate"
        )
    index = torch.arange(vae.data_size, device=vae.device).reshape(vae.data_shape)
    return [_Share(likelihood.scale, "", index, index)]


def _with_scales(vae: VAE, scales: Sequence[Tensor]) -> VAE:
    """The model with other scales of its Gaussian parts.

    Raises:
        BudgetError: A scale is 0.
    """
    if not all((scale > 0).all() for scale in scales):
        raise BudgetError(
            "expected data that z cannot match exactly, but the decoder's means equal all values "
            "of some elements; set their scale by hand"
        )
    left, likelihood = iter(scale.to(vae.dtype) for scale in scales), vae.likelihood
    if isinstance(likelihood, Mixed):
        parts = [
            (replace(part, scale=next(left)), num)
            if isinstance(part, Gaussian) and part.scale is not None
            else (part, num)
            for part, num in likelihood.pairs
        ]
        likelihood = Mixed(parts, likelihood.dim)
    elif isinstance(likelihood, Gaussian):
        likelihood = replace(likelihood, scale=next(left))
    return VAE(vae.decoder, vae.latent_dim, likelihood, given=vae.examples)


def _as_given(share: _Share, scale: Tensor, like: Tensor) -> float | Tensor:
    """A scale of the same kind as the VAE's: a tensor of the data's dtype, or a float."""
    return scale.to(like.dtype) if isinstance(share.given, Tensor) else scale.item()


def _means(scales: Sequence[Tensor]) -> str:
    return ", ".join(f"{scale.mean():.4g}" for scale in scales)


def _nearest(target: VAETarget) -> Tensor:
    """The most likely points of the bank for each datum, (K, N, latent)."""
    points, log_likelihood = target.log_likelihood_of_bank()
    return points[log_likelihood.topk(min(_STARTS, len(points)), dim=0).indices]


@torch.no_grad()
def _first(vae: VAE, data: Tensor, z: Tensor, shares: Sequence[_Share]) -> list[Tensor]:
    """Root mean squared residual of data (N, *data) at z (K, N, latent), for each share."""
    elements, means = _indices(shares)
    values = data.flatten(1)[:, elements]
    residuals = [(values - vae.decode_flat(points)[:, means]).double() for points in z]
    squares = torch.stack([residual.square().mean(0) for residual in residuals]).mean(0)
    return [share.mean(own).sqrt() for share, own in _split(shares, squares)]


def _heaviest(z: Tensor, weights: Tensor) -> Tensor:
    """The modes (K, N, latent) without those of low weight for every datum."""
    num = int((weights > _LEAST_WEIGHT).sum(0).max())
    return z[weights.topk(num, dim=0).indices, torch.arange(z.shape[1], device=z.device)]


@torch.no_grad()
def _fitting(
    vae: VAE,
    data: Tensor,
    modes: Modes,
    weights: Tensor,
    shares: Sequence[_Share],
    scales: Sequence[Tensor],
) -> list[Tensor]:
    """The M-step: the scales that agree with the residuals at the modes.

    Args:
        vae: The model with the current scales and the covariates of the data.
        data: Shape (N, *data).
        modes: K for each datum.
        weights: Weights of the modes, (K, N), which sum to 1 for each datum.
        shares: The elements of each scale.
        scales: The current scales.

    Raises:
        BudgetError: z fits the data without residuals.
    """
    elements, means = _indices(shares)
    values = data.flatten(1)[:, elements]
    variance = torch.cat(
        [
            scale.expand(share.elements.shape).flatten().square()
            for share, scale in zip(shares, scales, strict=True)
        ]
    )
    mode, datum = (weights > _LEAST_WEIGHT).nonzero(as_tuple=True)
    size = CHUNK_BYTES // (8 * vae.latent_dim * vae.params_size) + 1
    squares = freedom = torch.zeros_like(variance)
    for k, n in zip(mode.split(size), datum.split(size), strict=True):
        own = selected(vae, n)
        mean, jacobian = with_jacobian(
            lambda z, own=own: own.decode_flat(z)[..., means], modes.z[None, k, n]
        )
        root = precision_root(modes.precision[k, n])
        along = jacobian[:, 0].movedim(0, 1).double()  # (pairs, latent, E)
        whitened = torch.linalg.solve_triangular(root, along, upper=False)
        weight = weights[k, n]
        squares = squares + weight @ (values[n] - mean[0]).double().square()
        freedom = freedom + weight @ (1 - whitened.square().sum(1) / variance)
    total = weights.where(weights > _LEAST_WEIGHT, 0.0).sum()
    pairs = zip(_split(shares, squares / total), _split(shares, freedom / total), strict=True)
    return [_root_of_ratio(share, own, free, vae.latent_dim) for (share, own), (_, free) in pairs]


def _root_of_ratio(share: _Share, squares: Tensor, freedom: Tensor, latent_dim: int) -> Tensor:
    """σ of a share, from the mean squares and the mean 1 − h of its elements."""
    squares, freedom = share.mean(squares), share.mean(freedom)
    if (freedom < _LEAST_FREEDOM).any():
        raise BudgetError(
            f"{share.where}expected data that z cannot match exactly, but z of "
            f"{counted(latent_dim, 'dimension')} fits all but {freedom.min():.1g} of the "
            "variation of some elements, so that their residuals do not determine a scale; set it "
            "by hand, or share one scale among more elements"
        )
    return (squares / freedom).sqrt()


def _indices(shares: Sequence[_Share]) -> tuple[Tensor, Tensor]:
    """Indices of all shares' elements in flat data, and of their means in flat parameters."""
    elements = torch.cat([share.elements.flatten() for share in shares])
    return elements, torch.cat([share.means.flatten() for share in shares])


def _split(shares: Sequence[_Share], values: Tensor) -> list[tuple[_Share, Tensor]]:
    """Flat values of all shares' elements, split by share."""
    pieces = values.split([share.elements.numel() for share in shares])
    return list(zip(shares, pieces, strict=True))
