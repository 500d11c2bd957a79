"""The parts of a likelihood, each with its columns of data: one, except for `Mixed`."""

from dataclasses import dataclass

from torch import Tensor

from crosscoding.likelihoods import Likelihood, Mixed
from crosscoding.likelihoods.mixed_heads import columns_named
from crosscoding.model.check_report import STATUSES, CheckResult


@dataclass(frozen=True, eq=False)
class LikelihoodPart:
    """Columns of data with their likelihood.

    Args:
        likelihood: The likelihood of these columns.
        where: Names the columns at the start of a message; "" if they are all columns.
        tensors: The columns of each tensor that was split, (N, *data).
    """

    likelihood: Likelihood
    where: str
    tensors: tuple[Tensor, ...]

    @property
    def counts(self) -> bool:
        """Whether values are counts."""
        return self.likelihood.kind == "counts"

    @property
    def classes(self) -> bool:
        """Whether values are classes."""
        return self.likelihood.kind == "classes"


def parts_of(likelihood: Likelihood, *tensors: Tensor) -> list[LikelihoodPart]:
    """The parts of a likelihood, each with its share of tensors (…, *data)."""
    if not isinstance(likelihood, Mixed):
        return [LikelihoodPart(likelihood, "", tensors)]
    columns = [num for _, num in likelihood.pairs]
    pieces = [tensor.split(columns, likelihood.dim) for tensor in tensors]
    found, start = [], 0
    for index, (part, num) in enumerate(likelihood.pairs):
        own = tuple(piece[index] for piece in pieces)
        found.append(LikelihoodPart(part, f"{columns_named(start, num)}: ", own))
        start += num
    return found


def worst(results: list[CheckResult]) -> CheckResult | None:
    """The result of the worst status; None if there are no results."""
    return max(results, key=lambda result: STATUSES.index(result.status), default=None)
