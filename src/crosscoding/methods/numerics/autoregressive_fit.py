"""A density of discrete latents fitted to weighted draws: each place given those before it.

    q(z) = Π_i q_i(z_i | z_1, …, z_{i−1}),   q_i(k | ·) ∝ exp(b_ik + Σ_{j<i} W_ikj,z_j)

Each q_i is a logistic regression, fitted by penalised maximum likelihood. Its Hessian is bounded by
a fixed matrix, so each step is one product with an inverse that is computed once; steps are
accelerated. A share of the draws comes from the same density with its logits shrunk, which bounds
the weights of draws where the fit is too narrow.

Source: Schäfer & Chopin (2013), section 5.1; Böhning (1992) for the bound; Nesterov (1983), as in
Beck & Teboulle (2009), for the acceleration. Differs in: more than two values, and the shrunk part.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.random import uniform

_STEPS = 40  # accelerated ones: what is left to gain falls with the square of their number
_MOST_NUMBERS = 2**25  # entries of the inverses that are in memory at once
_PENALTY = 10.0  # of squared weights: a Gaussian prior of deviation 0.3 on those of pairs
_BIAS_PENALTY = 0.1  # far less: it only keeps the logits finite of values that no draw has
# Factor of the logits of the wide part, and its share: no weight exceeds 10 times what it would be
# under that part alone. A larger share costs ESS where the fit is good.
_SHRUNK, _SHARE = 0.6, 0.1


@dataclass(frozen=True, eq=False)
class AutoregressiveFit:
    """q(z) for B queries.

    Args:
        weight: W and, last, b, for the values 1 to K − 1 of each place: (B, D, K − 1, P + 1), with
            P = D (K − 1) indicators of such values; 0 for places that do not come before.
    """

    weight: Tensor

    @staticmethod
    def to(z: Tensor, log_weights: Tensor, num_values: int) -> "AutoregressiveFit":
        """The fit to weighted draws, z (S, B, D) and log-weights (S, B)."""
        num_features = z.shape[-1] * (num_values - 1) + 1
        size = max(_MOST_NUMBERS // (z.shape[-1] * num_features**2), 1)
        pieces = zip(z.split(size, 1), log_weights.split(size, 1), strict=True)
        fits = [AutoregressiveFit._to(*piece, num_values) for piece in pieces]
        return AutoregressiveFit(torch.cat([fit.weight for fit in fits]))

    @staticmethod
    def _to(z: Tensor, log_weights: Tensor, num_values: int) -> "AutoregressiveFit":
        weights = log_weights.softmax(0).mT
        effective = 1 / weights.square().sum(1)
        values = z.transpose(0, 1)
        features, wanted = _features(values, num_values), _indicators(values, num_values)
        mask = _mask(z.shape[-1], num_values - 1).to(z)
        rows = mask[:, 0]  # the same for all values of a place
        weighted = features * weights[..., None]
        penalty = torch.full_like(rows[0], _PENALTY)
        penalty[-1] = _BIAS_PENALTY
        penalty = penalty / effective[:, None]
        bound = 0.25 if num_values == 2 else 0.5
        hessian = bound * weighted.mT @ features + penalty.diag_embed()
        kept = rows[:, :, None] * rows[:, None, :]
        hessian = hessian[:, None] * kept + (1 - rows).diag_embed()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        weight = ahead = weighted.new_zeros(*hessian.shape[:2], num_values - 1, rows.shape[-1])
        for step in range(_STEPS):
            errors = wanted - _probabilities(features, ahead)
            slope = (
                torch.einsum("bsp,bsdk->bdkp", weighted, errors) - penalty[:, None, None] * ahead
            )
            new = ahead + (slope * mask) @ inverse
            ahead = new + step / (step + 3) * (new - weight)
            weight = new
        return AutoregressiveFit(weight * mask)

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Draws of z, (num, B, D), from shared noise."""
        batch, places, others, _ = self.weight.shape
        chance = uniform((num, 1, places), generator=generator, like=self.weight)
        num_wide = round(_SHARE * num)
        scale = torch.ones(num, 1, 1).to(self.weight)
        scale[:num_wide] = _SHRUNK
        indicators = self.weight.new_zeros(num, batch, places * others)
        z = self.weight.new_zeros(num, batch, places)
        for place in range(places):
            before = place * others
            own = self.weight[:, place]
            logits = torch.einsum("sbp,bkp->sbk", indicators[..., :before], own[..., :before])
            logits = F.pad(scale * (logits + own[..., -1]), (1, 0))
            cumulative = logits.softmax(-1).cumsum(-1)
            value = (cumulative[..., :-1] <= chance[..., place, None]).sum(-1)
            z[..., place] = value.to(z)
            own = torch.arange(1, others + 1, device=z.device) == value.unsqueeze(-1)
            indicators[..., before : before + others] = own.to(z)
        return z

    def log_density(self, inputs: Tensor) -> Tensor:
        """log q in nats, differentiable in the inputs for z: (S, B, *input) -> (S, B)."""
        binary = inputs.ndim == 3
        own = inputs.unsqueeze(-1) if binary else inputs[..., 1:]
        features = F.pad(own.flatten(2), (0, 1), value=1.0).transpose(0, 1)
        logits = _logits(features, self.weight).transpose(0, 1)

        def density(scaled: Tensor) -> Tensor:
            log_sum = F.softplus(scaled[..., 0]) if binary else F.pad(scaled, (1, 0)).logsumexp(-1)
            return ((own * scaled).sum(-1) - log_sum).sum(-1)

        return torch.logaddexp(
            density(logits) + math.log(1 - _SHARE), density(_SHRUNK * logits) + math.log(_SHARE)
        )

    def select(self, index: Tensor) -> "AutoregressiveFit":
        """The fits of some queries."""
        return AutoregressiveFit(self.weight[index])

    def replaced(self, index: Tensor, other: "AutoregressiveFit") -> "AutoregressiveFit":
        """These fits, but `other` for the queries with these indices."""
        return AutoregressiveFit(self.weight.index_copy(0, index, other.weight))


def _indicators(values: Tensor, num_values: int) -> Tensor:
    """Which places have which of the values 1 to K − 1: (B, S, D) -> (B, S, D, K − 1)."""
    if num_values == 2:
        return values.unsqueeze(-1)
    return F.one_hot(values.long(), num_values)[..., 1:].to(values)


def _features(values: Tensor, num_values: int) -> Tensor:
    """The indicators side by side, and a 1: (B, S, P + 1)."""
    return F.pad(_indicators(values, num_values).flatten(2), (0, 1), value=1.0)


def _mask(places: int, others: int) -> Tensor:
    """Which weights may differ from 0: (D, K − 1, P + 1)."""
    place = torch.arange(places).repeat_interleave(others)
    before = F.pad((place < torch.arange(places)[:, None]).float(), (0, 1), value=1.0)
    return before[:, None].expand(-1, others, -1)


def _logits(features: Tensor, weight: Tensor) -> Tensor:
    """(B, S, P + 1), (B, D, K − 1, P + 1) -> (B, S, D, K − 1)."""
    return (features @ weight.flatten(1, 2).mT).unflatten(-1, weight.shape[1:3])


def _probabilities(features: Tensor, weight: Tensor) -> Tensor:
    """Probabilities of the values 1 to K − 1, (B, S, D, K − 1)."""
    logits = _logits(features, weight)
    if logits.shape[-1] == 1:
        return logits.sigmoid()
    return F.pad(logits, (1, 0)).softmax(-1)[..., 1:]
