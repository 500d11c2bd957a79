"""Which share of an element's predictive variance comes from z, measured on a few draws.

    Var(t|x) = Var(E[t|z]) + E[Var(t|z)],   λ = Var(E[t|z]) / Var(t|x)

The error of a mean that is averaged over E[t|z] is √(λ / n) standard deviations of t, so noise in t
makes fewer effective draws enough (`purposes`). Draws are decoded only when somebody asks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from crosscoding.errors import NonFiniteError
from crosscoding.isolation import isolated
from crosscoding.result.findings import Findings
from crosscoding.result.predictions import Predictions
from crosscoding.target.vae_target import VAETarget

_DRAWS = 128
_WIDER = 1 + 2 * math.sqrt(2 / (_DRAWS - 1))  # upper end, at 2 standard errors, of a variance
_AT_ONCE = 2e10  # multiply-adds, about a second
_MOST_OPERATIONS = 2e9  # multiply-adds for a query: about a tenth of a second


class LatentShares:
    """The largest λ among the missing elements of each query, or 1 if that costs too much.

    Args:
        target: The model with its evidence, flat.
        findings: The answers.
        wanted: For which queries the share matters, boolean, shape (B,).
    """

    def __init__(self, target: VAETarget, findings: Findings, wanted: Tensor) -> None:
        self._target, self._findings = target, findings
        self._wanted = wanted.nonzero()[:, 0]
        self._known: dict[int, float] = {}

    def __call__(self, query: int) -> float:
        operations = _DRAWS * self._target.vae.operations
        if operations > _MOST_OPERATIONS:
            return 1.0
        if query not in self._known:
            # The queries after it are decoded with it: callers usually ask for them next.
            rows = self._wanted[self._wanted >= query][: max(int(_AT_ONCE / operations), 1)]
            self._known |= zip(rows.tolist(), self._measured(rows), strict=True)
        return self._known[query]

    @isolated
    @torch.no_grad()
    def _measured(self, rows: Tensor) -> Sequence[float]:
        target, findings = self._target.select(rows), self._findings.select(rows)
        z = findings.sample(_DRAWS, generator=Generator().manual_seed(0))
        try:
            between, within = Predictions(target, findings).variances(z)
        except NonFiniteError:  # one query's; the others must still get their shares
            one = len(rows) == 1
            return [1.0] if one else [self._measured(row)[0] for row in rows.split(1)]
        between = _WIDER * between
        share = torch.where(between == 0, 0.0, between / (between + within))
        mask = target.evidence.exact.flatten(1)
        share = torch.where(mask, 0.0, share.nan_to_num(nan=1.0))
        return torch.where(within.isfinite() | mask, share, 1.0).amax(-1).tolist()
