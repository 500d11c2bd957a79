"""The table of the demo: five methods and the exact answer on one target in two dimensions."""

from dataclasses import asdict, dataclass

from torch import Tensor

from crosscoding.conditioning import infer
from crosscoding.diagnostics import kernel_mmd
from crosscoding.methods import METHODS, Grid, Report, silent
from crosscoding.result.posterior import Posterior
from crosscoding.target.base import Target

COMPARED = ("gvi", "nf", "fcn", "hmc", "rejection")
_NUM_COMPARED = 1000


@dataclass(frozen=True)
class Row:
    """The figures of one method; None where the method has no such figure.

    Attributes:
        method: Label of the method.
        c_elbo: C-ELBO on fresh draws, nats.
        bound: Whether c_elbo is a lower bound.
        gap: Exact log p(x) − c_elbo, nats.
        query_log_prob: log p(y|x) of the true rest of the datum, nats.
        mmd: Unbiased squared kernel MMD of 1,000 latent draws to 1,000 exact ones.
        seconds: Wall-clock time of the method.
    """

    method: str
    c_elbo: float | None
    bound: bool
    gap: float | None
    query_log_prob: float | None
    mmd: float
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Posteriors and draws by the name of their method, including `exact`, and the table."""

    posteriors: dict[str, Posterior]
    draws: dict[str, Tensor]
    rows: list[Row]


def compare(
    target: Target, truth: Tensor | None = None, *, seed: int = 0, report: Report = silent
) -> Comparison:
    """Run every method of the paper, and the grid, on one target.

    Args:
        target: Batch shape (), latent dimension ≤ 3.
        truth: The complete datum, for log p(y|x); None for a bare density.
        seed: Seed of every method.
        report: As in `condition`.
    """
    posteriors = {"exact": infer(target, Grid(), seed=seed)}
    for index, name in enumerate(COMPARED):
        label = METHODS[name].label

        def report_part(share: float, what: str, index: int = index, label: str = label) -> None:
            report((index + share) / len(COMPARED), f"{label}, {what}")

        posteriors[name] = infer(target, METHODS[name].method, seed=seed, report=report_part)
    draws = {name: p.sample(_NUM_COMPARED) for name, p in posteriors.items()}
    reference = posteriors["exact"].sample(_NUM_COMPARED)
    rows = [
        _row(name, posterior, draws[name], posteriors["exact"], reference, truth)
        for name, posterior in posteriors.items()
    ]
    return Comparison(posteriors, draws, rows)


def _row(
    name: str,
    posterior: Posterior,
    draws: Tensor,
    exact: Posterior,
    reference: Tensor,
    truth: Tensor | None,
) -> Row:
    c_elbo = None if posterior.c_elbo.isnan() else posterior.c_elbo.item()
    return Row(
        method="exact (grid)" if name == "exact" else METHODS[name].label,
        c_elbo=c_elbo,
        bound=posterior.bound,
        gap=None if c_elbo is None else exact.log_evidence.item() - c_elbo,
        query_log_prob=None if truth is None else posterior.query_log_prob(truth).item(),
        mmd=kernel_mmd(draws, reference).item(),
        seconds=posterior.seconds,
    )
