"""The scale of a Gaussian likelihood that data ask for, where it is unknown or was guessed.

    E   p(z|t) ≈ N(z*, H⁻¹) of every whole datum t, z* its mode, H = I + Jᵀ J / σ²
    M   σ² = E[(t − μ(z))²], the mean over data, elements and draws of z

Each round raises ∏ p(t), exactly so where the decoder is linear. A decoder trained with some other
scale, or with none, gets the one under which its answers are neither too sure nor too vague.

Source: Dempster, Laird & Rubin (1977); MacKay (1992), evidence framework. Differs in: the M-step
averages over draws, in pairs ± around the mode, so that a scale for each element is one line too;
each datum has draws of its own, as their mean is all that counts.
"""

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.precision import precision_root
from crosscoding.errors import BudgetError
from crosscoding.evidence import Evidence
from crosscoding.likelihoods import Gaussian
from crosscoding.methods import Report, silent
from crosscoding.methods.laplace import climb
from crosscoding.random import generator_from, normal
from crosscoding.target import VAETarget
from crosscoding.vae import VAE, check_whole

_STARTS = 4  # climbs of the first round, from the likeliest points of the bank
_STEPS = 25  # of a climb, at most
_EVERY = 5  # steps of a climb with one curvature


def calibrate_scale(
    vae: VAE,
    data: Tensor,
    *,
    rounds: int = 100,
    tolerance: float = 1e-3,
    num_draws: int = 32,
    seed: int | Generator | None = 0,
    report: Report = silent,
) -> float | Tensor:
    """The Gaussian scale σ under which whole data are likeliest, by EM.

    The scale that the VAE has is not used: EM starts from how far the data are from the nearest
    points of the prior, and comes down from there.

    Args:
        vae: A model with a Gaussian likelihood of a fixed scale.
        data: Whole data like those that will be asked about, shape (N, *data) with N ≥ 1; some
            tens are enough for one scale, as every element of each counts.
        rounds: Most rounds of EM, ≥ 1. One scale settles in few, a scale for each element slowly.
        tolerance: EM ends when no scale changes by more than this share of it, > 0.
        num_draws: Draws of z a datum for the M-step, even, ≥ 2.
        seed: Decides these draws, the same in all rounds.
        report: Told how far EM is.

    Returns:
        A float, or a tensor of the shape of the VAE's scale if that is a tensor.

    Raises:
        TypeError: vae or data is of another type, or the likelihood is no Gaussian.
        ValueError: The scale is decoded, the data do not fit, or an argument is out of its range.
        BudgetError: The scale still changes after all rounds, as where the decoder can match the
            data exactly and it falls towards zero.

    Example:
        >>> vae = VAE(torch.nn.Linear(2, 50), latent_dim=2, likelihood=Gaussian(1.0))
        >>> truth = VAE(vae.decoder, latent_dim=2, likelihood=Gaussian(0.3))
        >>> round(calibrate_scale(vae, truth.sample_prior(100, seed=0)), 1)
        0.3
    """
    given = _checked(vae, data, rounds, tolerance, num_draws)
    shape = torch.as_tensor(given).shape
    generator = generator_from(seed)
    like = data.new_empty(0)
    half = normal((num_draws // 2, *data.shape[:1], vae.latent_dim), generator=generator, like=like)
    noise = torch.cat([half, -half]).double()
    evidence = Evidence(data, torch.ones_like(data, dtype=torch.bool))
    z = _nearest(vae, evidence)
    scale = last = _root_mean_square(vae, data, z, shape)
    for done in range(rounds):
        report(done / rounds, f"round {done + 1}, mean scale {scale.mean():.4g}")
        scaled = VAE(vae.decoder, vae.latent_dim, Gaussian(scale))
        modes = climb(VAETarget(scaled, evidence), z, _STEPS, every=_EVERY)
        best = modes.log_joint.argmax(0), torch.arange(len(data))
        z = modes.z[best][None]
        factor = precision_root(modes.precision[best].double())
        widened = torch.linalg.solve_triangular(factor.mT, noise.movedim(0, -1), upper=True)
        spread = widened.movedim(-1, 0).to(z)
        last, scale = scale, _root_mean_square(vae, data, z + spread, shape)
        if ((scale - last).abs() <= tolerance * last).all():
            return scale if isinstance(given, Tensor) else scale.item()
    change = ((scale - last).abs() / last).max()
    raise BudgetError(
        f"expected a scale that settles within {rounds} rounds, got one that still changes by "
        f"{change:.2g} of itself, now {scale.mean():.4g}; raise rounds or tolerance, or give data "
        "that the decoder cannot match exactly"
    )


def _checked(
    vae: VAE, data: Tensor, rounds: int, tolerance: float, num_draws: int
) -> float | Tensor:
    """The scale that the VAE has; raises unless everything is as `calibrate_scale` says."""
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}")
    if not isinstance(vae.likelihood, Gaussian):
        raise TypeError(
            "expected a VAE with a Gaussian likelihood, whose scale can be calibrated, got "
            f"{type(vae.likelihood).__name__}"
        )
    if vae.likelihood.scale is None:
        raise ValueError(
            "expected a Gaussian likelihood of a fixed scale, got Gaussian(scale=None): its "
            "decoder puts the scale out, and there is none to calibrate"
        )
    check_whole(vae, data)
    if rounds < 1 or not tolerance > 0 or num_draws < 2 or num_draws % 2:
        raise ValueError(
            "expected rounds >= 1, tolerance > 0 and an even num_draws >= 2, got "
            f"{rounds}, {tolerance} and {num_draws}"
        )
    return vae.likelihood.scale


def _nearest(vae: VAE, evidence: Evidence) -> Tensor:
    """The likeliest points of the bank for each datum, (K, N, latent)."""
    points, log_likelihood = VAETarget(vae, evidence).log_likelihood_of_bank()
    return points[log_likelihood.topk(min(_STARTS, len(points)), dim=0).indices]


@torch.no_grad()
def _root_mean_square(vae: VAE, data: Tensor, z: Tensor, shape: torch.Size) -> Tensor:
    """Root of the mean squared residual of data (N, *data) at z (S, N, latent), of a given shape.

    Averaged over draws, data, and every dimension of a datum along which the scale is one.
    """
    total = torch.zeros(vae.data_shape, dtype=torch.double, device=data.device)
    for points in z:
        total += (data - vae.decode(points)).double().square().sum(0)
    mean_square = total / (len(z) * len(data))
    padded = (1,) * (len(vae.data_shape) - len(shape)) + tuple(shape)
    for dim, size in enumerate(padded):
        if size == 1:
            mean_square = mean_square.mean(dim, keepdim=True)
    return mean_square.reshape(shape).sqrt().to(data.dtype)
