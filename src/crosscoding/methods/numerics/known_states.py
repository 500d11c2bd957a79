"""Discrete states that were found, whose p(z, x) is known and need not be estimated.

    p(x) = Σ_{z ∈ S} p(z, x) + E_q[p(z, x) / q(z) 1{z ∉ S}]

S is the set of states that earlier draws found: the first term is exact, and draws of q estimate
only the rest. A narrow mode that q would hit too rarely counts in full once a single draw found it.
The estimate is unbiased, as S does not depend on the draws of q.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.diagnostics import pareto_smooth

_SEED = 0x5EED
_EMPTY = 2**63 - 1  # the number of a place without a state
# Nats of log p(x) in states that are neither in S nor among the draws: up to 0.006 in comparisons
# with enumeration, where almost all of p(z|x) was in S and the draws' own spread was 0.0001.
_UNSEEN = 5e-3
# Half or double, together with _UNSEEN, moves log p(x) by 0.003 nats on small models (`discrete` in
# benchmarks/sensitivity.py).
_FEW_OUTSIDE = 0.01  # share of p(z|x) outside S below which the tail of its weights does not count


@dataclass(frozen=True, eq=False)
class KnownStates:
    """S of B queries, M states each, some of which may be empty.

    Args:
        z: Shape (M, B, D).
        log_joint: log p(z, x) in nats, shape (M, B); −inf for empty ones.
        keys: The states' numbers, sorted, shape (M, B).
    """

    z: Tensor
    log_joint: Tensor
    keys: Tensor

    @staticmethod
    def among(z: Tensor, log_joint: Tensor, most: int) -> "KnownStates":
        """The likeliest different states among points, at most so many of each query.

        Args:
            z: Shape (S, B, D).
            log_joint: log p(z, x) there, shape (S, B).
            most: Number M of states.
        """
        log_joint, by_value = torch.sort(log_joint, stable=True, dim=0, descending=True)
        keys, by_key = torch.sort(keys_of(z).gather(0, by_value), stable=True, dim=0)
        log_joint, order = log_joint.gather(0, by_key), by_value.gather(0, by_key)
        again = torch.zeros_like(keys, dtype=torch.bool)
        again[1:] = keys[1:] == keys[:-1]
        log_joint = log_joint.masked_fill(again, -math.inf)
        top, place = log_joint.topk(min(most, len(keys)), dim=0)
        chosen = keys.gather(0, place).masked_fill(top == -math.inf, _EMPTY)
        keys, by_key = torch.sort(chosen, stable=True, dim=0)
        order = order.gather(0, place).gather(0, by_key)
        z = z.gather(0, order.unsqueeze(-1).expand(*order.shape, z.shape[-1]))
        return KnownStates(z, top.gather(0, by_key), keys)

    def has(self, z: Tensor) -> Tensor:
        """Which points (N, B, D) are in S, boolean, (N, B)."""
        keys = keys_of(z).mT.contiguous()
        own = self.keys.mT.contiguous()
        place = torch.searchsorted(own, keys).clamp_max(own.shape[1] - 1)
        return (own.gather(1, place) == keys).mT

    def select(self, index: Tensor) -> "KnownStates":
        """The states of some queries."""
        return KnownStates(self.z[:, index], self.log_joint[:, index], self.keys[:, index])


@dataclass(frozen=True, eq=False)
class Stratified:
    """The states of S and weighted draws outside S, together.

    Attributes:
        z: Shape (M + N, B, D).
        log_weights: Normalised, shape (M + N, B).
        log_evidence, error: log p(x) and its standard error, shape (B,).
        ess: Number of draws from p(z|x) with the same error of p(x), at most N; shape (B,).
        pareto_k: Of the weights outside S; NaN where hardly anything lies outside; shape (B,).
    """

    z: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    error: Tensor
    ess: Tensor
    pareto_k: Tensor

    @staticmethod
    def of(known: KnownStates, z: Tensor, log_weights: Tensor) -> "Stratified":
        """From draws of q, (N, B, D), and log p(z, x) / q(z) there, (N, B)."""
        num = len(z)
        outside = log_weights.masked_fill(known.has(z), -math.inf)
        inside = known.log_joint.logsumexp(0)
        rest = outside.logsumexp(0) - math.log(num)
        log_evidence = torch.logaddexp(inside, rest)
        relative = (outside - log_evidence).double().exp()
        variance = relative.var(0).to(log_evidence)
        smoothed, pareto_k = pareto_smooth(outside)
        few = (rest - log_evidence).exp() < _FEW_OUTSIDE
        smoothed = torch.where((rest > -math.inf) & ~few, smoothed + rest, outside - math.log(num))
        together = torch.cat([known.log_joint, smoothed])
        return Stratified(
            z=torch.cat([known.z, z]),
            log_weights=together.log_softmax(0),
            log_evidence=log_evidence,
            error=(variance / num + _UNSEEN**2).sqrt(),
            ess=num / (1 + variance),
            pareto_k=pareto_k.masked_fill(few, math.nan),
        )


def keys_of(z: Tensor) -> Tensor:
    """A number for each state, the same for equal ones: (*sample, D) -> (*sample,), int64.

    It is a sum of random multiples, modulo 2^64: among a million states, the probability that two
    share a number is 3e-8.
    """
    generator = Generator().manual_seed(_SEED)
    factors = torch.randint(-(2**63), 2**63 - 1, (z.shape[-1],), generator=generator)
    keys = torch.zeros(z.shape[:-1], dtype=torch.long, device=z.device)
    for place, factor in enumerate((factors | 1).tolist()):
        keys += z[..., place].long() * factor
    return keys
