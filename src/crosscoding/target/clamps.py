"""Whether the decoder clamps an observed element at every draw of an answer.

The element's log p(x|z) is then the same at all draws, so no gradient or weight leads from them to
the z that would explain the observed value.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.target.observed_likelihood import Observed

_SURPRISING = 10.0  # nats below the usual log p: 4.5 standard deviations, probability 8e-6
_DISTANCES = (2.0, 6.0, 20.0)  # prior standard deviations from the centre, both ways


def stuck(observed: Observed, z: Tensor) -> Tensor:
    """An observed element whose log p is improbable and identical at all points, as on a clamp.

    Elements whose log p is the same everywhere do not count: it must change far from the centre of
    the prior.

    Args:
        observed: The queries.
        z: Shape (S, B, latent).
    Returns:
        The element's index in a flattened datum, shape (B,); −1 if there is none.
    """
    far = z.new_tensor(_DISTANCES)[:, None, None] * z[:1].sign()
    far = torch.cat([far, -far, far * z[:1].abs()]).expand(-1, z.shape[1], -1)
    results = [z.new_zeros(0, dtype=torch.long)]
    for rows, part in observed.pieces(len(z)):
        stays = _same(part, z[:, rows]) & part.exact
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
    """Which elements have the same log p at all points z (S, B, latent), boolean, (B, E)."""
    first, same = None, torch.ones_like(observed.values, dtype=torch.bool)
    for some in observed.slices(len(z)):
        log_probs = observed.likelihood.log_prob(observed.params(z[some]), observed.values)
        first = log_probs[0] if first is None else first
        same &= ((log_probs == first) | log_probs.isnan()).all(0)
    return same


def _surprise(observed: Observed, z: Tensor) -> Tensor:
    """How many nats less probable the observed values are than draws at z (B, latent): (B, E)."""
    params, values, likelihood = observed.params(z[None])[0], observed.values, observed.likelihood
    noise = likelihood.noise(values.shape, generator=Generator().manual_seed(0), like=values)
    usual = likelihood.draw(params, noise).to(values)
    return likelihood.log_prob(params, usual) - likelihood.log_prob(params, values)
