"""Convergence of Markov chains: R-hat and effective sample size.

Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021). Differs in: r_hat is the split R-hat
of eq. 1–4 on rank-normalised draws, without the folded variant; chain_ess sums the autocorrelations
(eq. 10–13) of split chains without rank normalisation.
"""

import math

import torch
from torch import Tensor


def _split(draws: Tensor) -> Tensor:
    """Both halves of each chain: (C, N, *) -> (2C, N // 2, *)."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, draws.shape[1] - half :]])


def _rank_normalised(draws: Tensor) -> Tensor:
    flat = draws.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0).to(draws.dtype) + 1
    share = (ranks - 0.375) / (len(flat) + 0.25)
    return (math.sqrt(2) * torch.erfinv(2 * share - 1)).reshape(draws.shape)


def _within_and_total_variance(chains: Tensor) -> tuple[Tensor, Tensor]:
    """W and var⁺ of chains (C, N, *event), each of shape (*event,)."""
    num_draws = chains.shape[1]
    within = chains.var(1).mean(0)
    between = num_draws * chains.mean(1).var(0)
    return within, (num_draws - 1) / num_draws * within + between / num_draws


def r_hat(draws: Tensor) -> Tensor:
    """Split, rank-normalised R-hat: near 1 if the chains agree, above 1.01 if they do not.

    Args:
        draws: Shape (chain, draw, *event), at least 4 draws per chain.
    Returns:
        Shape (*event,).
    """
    _check(draws)
    if draws.numel() == 0:
        return draws.new_zeros(draws.shape[2:])
    within, total = _within_and_total_variance(_split(_rank_normalised(draws)))
    return (total / within).sqrt()


def chain_ess(draws: Tensor) -> Tensor:
    """Number of independent draws that would estimate the mean equally well.

        ESS = C N / τ,   τ = −1 + 2 Σ_k (ρ_2k + ρ_2k+1), truncated and made monotone (Geyer)

    Args:
        draws: Shape (chain, draw, *event), at least 4 draws per chain.
    Returns:
        Shape (*event,), at most C N log10(C N).
    """
    _check(draws)
    if draws.numel() == 0:
        return draws.new_zeros(draws.shape[2:])
    chains = _split(draws.double())
    num_chains, num_draws = chains.shape[:2]
    within, total = _within_and_total_variance(chains)
    covariance = _autocovariance(chains).mean(0)
    correlation = 1 - (within - covariance * num_draws / (num_draws - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: num_draws // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cummin(0).values
    pairs = torch.where(positive, pairs, 0.0).cummin(0).values
    tau = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(num_chains * num_draws))
    ess = torch.where(
        total > 0, num_chains * num_draws / tau, 1.0
    )  # a chain that never moved is one draw
    return ess.to(draws.dtype)


def _autocovariance(chains: Tensor) -> Tensor:
    """Autocovariance at every lag along dimension 1, by FFT, biased: (C, N, *) -> (C, N, *)."""
    num_draws = chains.shape[1]
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * num_draws, dim=1)
    power = spectrum.abs().square()
    return torch.fft.irfft(power, n=2 * num_draws, dim=1)[:, :num_draws] / num_draws


def _check(draws: Tensor) -> None:
    if draws.ndim < 2 or draws.shape[1] < 4:
        raise ValueError(
            f"expected draws of shape (chain, draw, *event) with 4 or more draws per chain, "
            f"got {tuple(draws.shape)}"
        )
