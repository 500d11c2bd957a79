"""The parts of a model's data that have a likelihood of one kind each: one, but for `Mixed`."""

from dataclasses import dataclass

from torch import Tensor

from crosscoding.likelihoods import Likelihood, Mixed
from crosscoding.likelihoods.mixed import columns_named
from crosscoding.model.check_report import STATUSES, CheckResult


@dataclass(frozen=True, eq=False)
class Part:
    """Some columns with their likelihood.

    Args:
        likelihood: That of these columns.
        where: In words that begin a message; "" where they are all columns.
        tensors: What was split, each (N, *data) of these columns.
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


def parts_of(likelihood: Likelihood, *tensors: Tensor) -> list[Part]:
    """The parts of a likelihood, each with its share of tensors (…, *data)."""
    if not isinstance(likelihood, Mixed):
        return [Part(likelihood, "", tensors)]
    columns = [num for _, num in likelihood.pairs]
    pieces = [tensor.split(columns, likelihood.dim) for tensor in tensors]
    found, start = [], 0
    for index, (part, num) in enumerate(likelihood.pairs):
        own = tuple(piece[index] for piece in pieces)
        found.append(Part(part, f"{columns_named(start, num)}: ", own))
        start += num
    return found


def worst(findings: list[CheckResult]) -> CheckResult | None:
    """Of findings on parts the one of the worst status; None if there are none."""
    return max(findings, key=lambda finding: STATUSES.index(finding.status), default=None)
