"""Whether a decoder holds what is observed on a clamp, wherever an answer has its draws.

There log p(x|z) of the element is the clamp's, the same at all draws, so that nothing leads from
them to the z that would explain what is observed.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.target.observed_likelihood import Observed

_SURPRISING = 10.0  # nats: what is observed is that improbable at 4.5 standard deviations
_TIMES_AS_FAR = (2.0, 6.0, 20.0)  # prior standard deviations from the centre, both ways


def stuck(observed: Observed, z: Tensor) -> Tensor:
    """An observed element of one and the same, improbable log p at all points, as on a clamp.

    It is none that has this log p everywhere: far from the prior's centre it has another.

    Args:
        observed: The queries.
        z: Shape (S, B, latent).
    Returns:
        The element, out of those of a datum laid out flat, shape (B,); −1 where there is none.
    """
    far = z.new_tensor(_TIMES_AS_FAR)[:, None, None] * z[:1].sign()
    far = torch.cat([far, -far, far * z[:1].abs()]).expand(-1, z.shape[1], -1)
    results = [z.new_zeros(0, dtype=torch.long)]
    for rows, part in observed.pieces(len(z)):
        stays = _same(part, z[:, rows]) & part.mask
        place = stays.to(torch.int8).argmax(1)
        found = stays.any(-1)
        if found.any():
            surprise = _surprise(part, z[0, rows]).nan_to_num(nan=-math.inf)
            largest, place = torch.where(stays, surprise, -math.inf).max(1)
            found = largest > _SURPRISING
        if found.any():
            some = part.select(found.nonzero()[:, 0])
            there = torch.cat([z[:1, rows], far[:, rows]])[:, found]
            moves = ~_same(some, there)
            found[found.clone()] = moves.gather(1, place[found, None])[:, 0]
        results.append(torch.where(found, part.element(place), -1))
    return torch.cat(results)


def _same(observed: Observed, z: Tensor) -> Tensor:
    """Which elements have the same log p at all of points (S, B, latent), boolean, (B, E)."""
    first, same = None, torch.ones_like(observed.values, dtype=torch.bool)
    for some in observed.slices(len(z)):
        log_probs = observed.likelihood.log_prob(observed.params(z[some]), observed.values)
        first = log_probs[0] if first is None else first
        same &= ((log_probs == first) | log_probs.isnan()).all(0)
    return same


def _surprise(observed: Observed, z: Tensor) -> Tensor:
    """By how many nats what is observed is less probable than draws at z (B, latent): (B, E)."""
    params, values, likelihood = observed.params(z[None])[0], observed.values, observed.likelihood
    noise = likelihood.noise(values.shape, generator=Generator().manual_seed(0), like=values)
    usual = likelihood.draw(params, noise).to(values)
    return likelihood.log_prob(params, usual) - likelihood.log_prob(params, values)
