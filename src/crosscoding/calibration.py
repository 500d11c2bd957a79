"""The scale of a Gaussian likelihood that data ask for, where it is unknown or was guessed.

    E   p(z|t) ≈ Σ_k w_k N(z_k, H_k⁻¹) of every whole datum t, as `methods.Laplace` has it
    M   σ² = E|t − μ(z_k)|² / E[1 − h],   h = J H⁻¹ Jᵀ / σ² of an element, J its row at z_k

Both means are over data, modes and the elements that have this scale. h is the share of an element
that z takes up, and Σ h = D − tr H⁻¹. A decoder trained with some other scale, or with none, gets
the one under which its answers are neither too sure nor too vague.

At the fixed point σ² = E[(t − μ(z))²] over draws of z, with μ taken as a plane near z_k. Draws
through the decoder itself would not do: under a scale that is far too large they are so wide that
it bends within them, and their residuals ask for that same scale again.

Source: MacKay (1992), "Bayesian interpolation", the evidence framework. Differs in: a datum may
have several modes, and a scale may be that of some elements.
"""

import numpy as np
import torch
from torch import Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders.precision import precision_root
from crosscoding.errors import BudgetError, counted
from crosscoding.evidence import Evidence
from crosscoding.jacobian import with_jacobian
from crosscoding.likelihoods import Gaussian, Mixed
from crosscoding.methods import Report, silent
from crosscoding.methods.laplace import Modes, climb
from crosscoding.progress import Progress, followed
from crosscoding.target import CHUNK_BYTES, VAETarget
from crosscoding.vae import VAE, whole_data

_STARTS = 4  # climbs of a datum, from the likeliest points of the bank
_STEPS = 25  # of a climb, at most
_EVERY = 5  # steps of a climb with one curvature
_LEAST_WEIGHT = 1e-3  # of a mode that is climbed from again
_LEAST_FREEDOM = 1e-3  # mean of 1 − h, below which residuals tell nothing


def calibrate_scale(
    vae: VAE,
    data: Tensor | np.ndarray,
    *,
    rounds: int = 100,
    tolerance: float = 1e-3,
    report: Report = silent,
    progress: bool = True,
) -> float | Tensor:
    """The Gaussian scale σ under which whole data are likeliest.

    The scale that the VAE has is not used: the first is how far the data are from the nearest
    points of the prior, and rounds of E and M come down from there. Where it settles, modes are
    looked for once more. No random number is drawn.

    Args:
        vae: A model with a Gaussian likelihood of a fixed scale.
        data: Whole data like those that will be asked about, shape (N, *data) with N ≥ 1, a
            tensor or an array of NumPy of the model's dtype; some tens are enough for one scale,
            as every element of each counts.
        rounds: Most rounds, ≥ 1. One scale settles in few, a scale for each element slowly.
        tolerance: It is found when no scale changes by more than this share of it, > 0.
        report, progress: As in `condition`.

    Returns:
        A float, or a tensor of the shape of the VAE's scale if that is a tensor.

    Raises:
        TypeError: vae or data is of another type, or the likelihood is no Gaussian.
        ValueError: The scale is decoded, the data do not fit, or an argument is out of its range.
        BudgetError: z can match the data exactly, so that a scale falls towards zero, or one
            still changes after all rounds.

    Example:
        >>> vae = VAE(torch.nn.Linear(2, 50), latent_dim=2, likelihood=Gaussian(1.0))
        >>> truth = VAE(vae.decoder, latent_dim=2, likelihood=Gaussian(0.3))
        >>> round(calibrate_scale(vae, truth.sample_prior(100, seed=0)), 1)
        0.3
    """
    given = _scale_of(vae)
    with followed("calibrating", report, progress) as told:
        return _calibrated(vae, data, given, rounds, tolerance, told)


def _calibrated(
    vae: VAE,
    data: Tensor | np.ndarray,
    given: float | Tensor,
    rounds: int,
    tolerance: float,
    told: Progress,
) -> float | Tensor:
    data = whole_data(vae, data)
    if rounds < 1 or not tolerance > 0:
        raise ValueError(f"expected rounds >= 1 and tolerance > 0, got {rounds} and {tolerance}")
    shape = torch.as_tensor(given).shape
    evidence = Evidence(data, torch.ones_like(data, dtype=torch.bool))
    z = nearest = _nearest(vae, evidence)
    scale, change, looked_again = _first(vae, data, nearest, shape), torch.inf, False
    for done in range(rounds):
        told(done / rounds, f"round {done + 1}, mean scale {scale.mean():.4g}")
        scaled = VAE(vae.decoder, vae.latent_dim, Gaussian(scale.to(data.dtype)))
        target = VAETarget(scaled, evidence).timed(Clock(beat=told.beat))
        modes = climb(target, z, _STEPS, every=_EVERY)
        weights = modes.log_weights()[0].double().exp()
        last, scale = scale, _fitting(scaled, data, modes, weights, shape)
        change = ((scale - last).abs() / last).max().item()
        settled = change <= tolerance
        if settled and looked_again:
            return scale.to(data.dtype) if isinstance(given, Tensor) else scale.item()
        z = _heaviest(modes.z, weights)
        if settled:  # at modes that the wide first scales led to: there may be better ones
            z, looked_again = torch.cat([z, nearest]), True
    raise BudgetError(
        f"expected a scale that settles within {counted(rounds, 'round')}, got one that still "
        f"changes by {change:.2g} of itself, now {scale.mean():.4g}; raise rounds or tolerance, "
        "or give data that z cannot match exactly"
    )


def _scale_of(vae: VAE) -> float | Tensor:
    """The scale that the VAE has.

    Raises:
        TypeError, ValueError: It has none of a Gaussian, or a decoded one.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}")
    if not isinstance(vae.likelihood, Gaussian):
        advice = "of another, compare vae.check(data)['explanation'] under some settings"
        if isinstance(vae.likelihood, Mixed):
            advice = (
                "for Gaussian columns, pass a VAE of these alone: a decoder that puts out their "
                "share of the output, Gaussian(scale), and their columns of data"
            )
        raise TypeError(
            "expected a VAE with a Gaussian likelihood, whose scale can be calibrated, got "
            f"{type(vae.likelihood).__name__}; {advice}"
        )
    if vae.likelihood.scale is None:
        raise ValueError(
            "expected a Gaussian likelihood of a fixed scale, got Gaussian(scale=None): its "
            "decoder puts the scale out, and there is none to calibrate"
        )
    return vae.likelihood.scale


def _nearest(vae: VAE, evidence: Evidence) -> Tensor:
    """The likeliest points of the bank for each datum, (K, N, latent)."""
    points, log_likelihood = VAETarget(vae, evidence).log_likelihood_of_bank()
    return points[log_likelihood.topk(min(_STARTS, len(points)), dim=0).indices]


@torch.no_grad()
def _first(vae: VAE, data: Tensor, z: Tensor, shape: torch.Size) -> Tensor:
    """Root of the mean squared residual of data (N, *data) at z (K, N, latent)."""
    squares = torch.stack([(data - vae.decode(points)).double().square().mean(0) for points in z])
    return _mean(squares.mean(0), shape).sqrt()


def _heaviest(z: Tensor, weights: Tensor) -> Tensor:
    """The modes (K, N, latent) without those that weigh little for every datum."""
    num = int((weights > _LEAST_WEIGHT).sum(0).max())
    return z[weights.topk(num, dim=0).indices, torch.arange(z.shape[1], device=z.device)]


@torch.no_grad()
def _fitting(vae: VAE, data: Tensor, modes: Modes, weights: Tensor, shape: torch.Size) -> Tensor:
    """The M-step: the scale under which the residuals at modes are what they should be.

    Args:
        vae: The model with the present scale.
        data: Shape (N, *data).
        modes: K of each datum.
        weights: Theirs, (K, N); they sum to 1 for each datum.
        shape: Of the scale.

    Raises:
        BudgetError: z takes the residuals up.
    """
    data, likelihood = data.flatten(1), vae.flat_likelihood
    mode, datum = (weights > _LEAST_WEIGHT).nonzero(as_tuple=True)
    size = CHUNK_BYTES // (8 * vae.latent_dim * vae.data_size) + 1
    squares = freedom = torch.zeros(vae.data_size, dtype=torch.double, device=data.device)
    for k, n in zip(mode.split(size), datum.split(size), strict=True):
        mean, jacobian = with_jacobian(vae.decode_flat, modes.z[None, k, n])
        variance = likelihood.variance(mean).double()
        root = precision_root(modes.precision[k, n])
        along = jacobian[:, 0].movedim(0, 1).double()  # (pairs, latent, E)
        whitened = torch.linalg.solve_triangular(root, along, upper=False)
        weight = weights[k, n]
        squares = squares + weight @ (data[n] - mean[0]).double().square()
        freedom = freedom + weight @ (1 - whitened.square().sum(1) / variance[0])
    total = weights.where(weights > _LEAST_WEIGHT, 0.0).sum()
    squares, freedom = (_mean(s.reshape(vae.data_shape) / total, shape) for s in (squares, freedom))
    if (freedom < _LEAST_FREEDOM).any():
        raise BudgetError(
            f"expected data that z cannot match exactly, got such that z of {vae.latent_dim} "
            f"dimensions takes up all but {freedom.min():.1g} of the residuals of some elements, "
            "so that these do not tell their scale; give it by hand, or give one for more elements"
        )
    return (squares / freedom).sqrt()


def _mean(values: Tensor, shape: torch.Size) -> Tensor:
    """Mean of values (*data) over every dimension along which a scale of some shape is one."""
    padded = (1,) * (values.ndim - len(shape)) + tuple(shape)
    for dim, size in enumerate(padded):
        if size == 1:
            values = values.mean(dim, keepdim=True)
    return values.reshape(shape)
