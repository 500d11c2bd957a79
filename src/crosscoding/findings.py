"""What a method found out about a batch of queries: plain tensors, the batch flat."""

from dataclasses import dataclass, field, fields

from torch import Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.errors import ModelFormatError
from crosscoding.storage import Parts, prefixed, under


@dataclass(eq=False)
class Findings:
    """The answer of a method for B queries; `Posterior` is made from it.

    Args:
        draws: Latent points, shape (S, B, latent).
        log_evidence: Estimate of log p(x) in nats, shape (B,); NaN where there is none.
        log_evidence_error: Its standard error in nats, shape (B,).
        c_elbo: C-ELBO on fresh draws in nats, shape (B,); NaN without a density.
        c_elbo_error: Its standard error in nats, shape (B,).
        ess: Effective sample size of the draws, shape (B,).
        log_weights: Logarithms of their weights, normalised over S, shape (S, B); None: all equal.
        cell_width: Side of the cell around each draw, shape (S, B); None: draws are points.
        fitted: q(z|x) that fresh draws come from; None: draws are taken from those stored.
        stats: Further figures of the method, each of shape (B,).
    """

    draws: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    c_elbo: Tensor
    c_elbo_error: Tensor
    ess: Tensor
    log_weights: Tensor | None = None
    cell_width: Tensor | None = None
    fitted: Fitted | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)

    def to_parts(self) -> Parts:
        """The findings as tensors and JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        tensors |= prefixed(self.stats, "stats")
        if self.fitted is None:
            return tensors, {"crosscoder": None}
        fitted_tensors, description = self.fitted.to_parts()
        return tensors | prefixed(fitted_tensors, "crosscoder"), {"crosscoder": description}

    @classmethod
    def from_parts(cls, parts: Parts) -> "Findings":
        """The findings that `to_parts` described.

        Raises:
            ModelFormatError: Tensors are missing or their shapes do not fit one another.
        """
        tensors, description = parts
        names = {f.name for f in fields(cls)} - {"fitted", "stats"}
        fitted = None
        if description.get("crosscoder") is not None:
            fitted = Fitted.from_parts((under(tensors, "crosscoder"), description["crosscoder"]))
        try:
            findings = cls(
                **{name: tensors[name] for name in names & tensors.keys()},
                fitted=fitted,
                stats=under(tensors, "stats"),
            )
        except TypeError as error:
            raise ModelFormatError(f"a tensor of the posterior is missing: {error}") from error
        findings._check_shapes()
        return findings

    def _check_shapes(self) -> None:
        if self.draws.ndim != 3:
            raise ModelFormatError(f"expected draws (S, B, latent), got {tuple(self.draws.shape)}")
        by_query = [self.log_evidence, self.log_evidence_error, self.c_elbo, self.c_elbo_error]
        by_query += [self.ess, *self.stats.values()]
        wrong = [t.shape for t in by_query if t.shape != self.draws.shape[1:2]]
        by_draw = [t for t in (self.log_weights, self.cell_width) if t is not None]
        wrong += [t.shape for t in by_draw if t.shape != self.draws.shape[:2]]
        if wrong:
            raise ModelFormatError(
                f"expected one figure for each of {self.draws.shape[1]} queries, got {wrong}"
            )
