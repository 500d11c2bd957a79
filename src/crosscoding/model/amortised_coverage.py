"""How much of p(z|x) the draws of an amortised cross-coder cover, by simulated twins of a query.

Draw z* from the prior, x from the decoder, and a mask. Then z* is an exact draw of p(z|x). If its
weight p(z*, x) / q(z*|x) is far above that of every draw from q(z|x), q lacks the part of p(z|x)
around z*: z* lies outside. The share of such twins estimates the share of p(z|x) that q lacks, on
average over x, and a binomial bound holds whatever modes q may have missed. It says nothing about
evidence unlike that of the twins.

Source: Clopper & Pearson (1934) for the bound; Talts et al. (2018) for exact draws by simulation.
    Differs in: the statistic is whether z* lies outside of the draws, not its rank.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crosscoding.masks import MaskDistribution
from crosscoding.masks.files import from_json, to_json

_LEVEL = 0.95  # of the one-sided bound


class Vouched(NamedTuple):
    """What twins say about queries, each of shape (B,); NaN where they say nothing.

    Attributes:
        lacking: Upper bound on the share of p(z|x) that the proposals lack, on average over queries
            like these.
        least, most: Range of the twins' log p(x), in nats; a query outside it is unlike them.
    """

    lacking: Tensor
    least: Tensor
    most: Tensor

    def select(self, index: Tensor) -> "Vouched":
        """The same for some queries."""
        return Vouched(*[part[index] for part in self])

    def holds(self, log_evidence: Tensor) -> Tensor:
        """For which queries the twins vouch, given log p(x) in nats, boolean (B,)."""
        return (log_evidence >= self.least) & (log_evidence <= self.most)

    @staticmethod
    def nothing(like: Tensor) -> "Vouched":
        """For B queries about which twins say nothing; `like` has shape (B,)."""
        unknown = torch.full_like(like, torch.nan)
        return Vouched(unknown, unknown, unknown)


@dataclass(frozen=True)
class CoveredShare:
    """Twins with some share of elements observed, of which only those with even weights count.

    Args:
        low, high: Bounds of the share.
        num: Number of these twins.
        outside: Number of them whose z* lies outside of the draws.
        least, most: Range of their log p(x), in nats.
    """

    low: float
    high: float
    num: int
    outside: int
    least: float
    most: float

    @property
    def lacking(self) -> float:
        """Upper 95 % bound on the share of p(z|x) that the draws lack, on average over x."""
        if self.outside >= self.num:
            return 1.0
        from scipy.stats import beta  # takes long to load, and most models have no network

        return float(beta.ppf(_LEVEL, self.outside + 1, self.num - self.outside))


@dataclass(frozen=True)
class Coverage:
    """For which queries twins vouch that the proposals cover p(z|x).

    Args:
        masks: The distribution of the twins' masks.
        shares: What the twins say, by share observed; they do not vouch for other shares.
    """

    masks: MaskDistribution
    shares: tuple[CoveredShare, ...]

    def of(self, mask: Tensor) -> Vouched:
        """What the twins say of queries with these masks, boolean (B, *data)."""
        share = mask.flatten(1).double().mean(1)
        said = torch.full((3, len(mask)), torch.nan, dtype=torch.double, device=mask.device)
        for part in self.shares:
            inside = (share >= part.low) & ((share < part.high) | (part.high == 1.0))
            said[:, inside] = said.new_tensor([part.lacking, part.least, part.most])[:, None]
        said[:, ~self.masks.holds(mask)] = torch.nan
        return Vouched(*said)

    def to_json(self) -> dict[str, Any] | None:
        """The same as JSON; None if the masks' distribution is of the user's own class."""
        masks = to_json(self.masks)
        shares = [asdict(part) for part in self.shares]
        return None if masks is None else {"masks": masks, "shares": shares}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Coverage":
        """What `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: It is malformed.
        """
        shares = tuple(CoveredShare(**part) for part in entry["shares"])
        if not all(0 <= part.outside <= part.num for part in shares):
            raise ValueError("expected no more twins outside than there are")
        return Coverage(from_json(entry["masks"]), shares)
