"""What a method found out about a batch of queries: plain tensors, the batch flat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.errors import ModelFormatError
from crosscoding.persistence.folder import Contents, prefixed, under
from crosscoding.random import uniform
from crosscoding.result.verdict import Figures


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage of a method did.

    Attributes:
        name: Of the stage.
        decodes: Decoder evaluations for each query, shape (*batch,); 0 where it did not run.
        seconds: Each query's share of its wall-clock time, shape (*batch,).
    """

    name: str
    decodes: Tensor
    seconds: Tensor


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
        pareto_k: Pareto k of the importance weights of the draws, shape (B,); None: there are none.
        num_chains: Chains that the draws are of, each whole before the next; divides S.
        fitted: q(z|x), which has a density. Fresh draws come from it, unless the draws have
            weights: then they come from those stored, which are closer to p(z|x).
        exact_density: Whether log q(z|x) is log p(z, x) − log p(x), of the target itself.
        stats: Further figures of the method, each of shape (B,). Of them "missed", "r_hat",
            "finished", "weighed", "collapsed", "lost" and "lost_element" have a say in the verdict
            (`verdict.Figures`).
        trace: What its stages did, in order.
        interrupted: Whether the user stopped the method, which then gave what it had.
    """

    draws: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    c_elbo: Tensor
    c_elbo_error: Tensor
    ess: Tensor
    log_weights: Tensor | None = None
    cell_width: Tensor | None = None
    pareto_k: Tensor | None = None
    num_chains: int = 1
    fitted: Fitted | None = None
    exact_density: bool = False
    stats: dict[str, Tensor] = field(default_factory=dict)
    trace: tuple[Stage, ...] = ()
    interrupted: bool = False

    @property
    def figures(self) -> Figures:
        """What a verdict is made from."""
        unknown = torch.full_like(self.ess, math.nan)
        return Figures(
            log_evidence_error=self.log_evidence_error,
            ess=self.ess,
            pareto_k=unknown if self.pareto_k is None else self.pareto_k,
            r_hat=self.stats.get("r_hat", unknown),
            missed=self.stats.get("missed", unknown),
            finished=self.stats.get("finished", torch.ones_like(self.ess)) > 0,
            num_draws=self.stats.get("weighed", torch.full_like(self.ess, len(self.draws))),
            lost=self.stats.get("lost"),
            lost_element=self.stats.get("lost_element"),
            collapsed=self._collapsed,
            short=self._short,
            excess=self._excess,
        )

    @property
    def _collapsed(self) -> Tensor:
        """Whether the weights are not those of the draws, but those of what was fitted, (B,)."""
        return self.stats.get("collapsed", torch.zeros_like(self.ess)) > 0

    @property
    def _rounding(self) -> Tensor:
        """By how much log p(x), a sum of many terms, may be off as numbers are rounded, (B,)."""
        return 4 * torch.finfo(self.log_evidence.dtype).eps * self.log_evidence.abs()

    @property
    def _short(self) -> Tensor:
        """By how much the C-ELBO is surely below log p(x), where the draws are of a fit, (B,).

        Of a map that folds too: its ELBO is lower still, as log |det| counts what it folds twice.
        """
        short = self.log_evidence - self.c_elbo - 2 * self.c_elbo_error.nan_to_num(nan=0.0)
        short = short - self._rounding
        if self.log_weights is None and self.fitted is not None:
            return short
        return torch.where(self._collapsed, short, math.nan)

    @property
    def _excess(self) -> Tensor:
        """By how much the C-ELBO is surely above log p(x), which it cannot be, (B,)."""
        excess = self.c_elbo - self.log_evidence
        excess = excess - 3 * (self.c_elbo_error + self.log_evidence_error) - self._rounding
        folds = self.fitted is not None and not self.fitted.crosscoder.has_density
        return torch.full_like(excess, math.nan) if folds else excess

    def normalised_log_weights(self) -> Tensor:
        """Log-weights of the draws, (S, B); all equal where the method gives none."""
        if self.log_weights is not None:
            return self.log_weights
        count = self.draws.shape[0]
        return torch.full_like(self.draws[..., 0], -math.log(count))

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Draws of p(z|x), (num, B, latent): stored ones by weight, of the fit, or stored ones.

        Those drawn by weight are moved within their cell; those stored do not repeat while they
        last.
        """
        if self.log_weights is not None:
            return self._sample_weighted(num, generator)
        if self.fitted is not None:
            return self.fitted.rsample_and_log_prob(num, generator=generator)[0]
        order = [
            torch.randperm(len(self.draws), generator=generator, device=generator.device).to(
                self.draws.device
            )
            for _ in range(-(-num // max(len(self.draws), 1)))
        ]
        return self.draws[torch.cat(order)[:num]] if order else self.draws[:0]

    def _sample_weighted(self, num: int, generator: Generator) -> Tensor:
        draws = self.draws
        cumulative = self.normalised_log_weights().double().exp().cumsum(0).mT.contiguous()
        cumulative = cumulative / cumulative[:, -1:]
        points = uniform((num, 1), generator=generator, like=cumulative)
        points = points.expand(num, draws.shape[1]).mT.contiguous()
        index = torch.searchsorted(cumulative, points, right=True).clamp_max(len(draws) - 1).mT
        z = draws.gather(0, index.unsqueeze(-1).expand(*index.shape, draws.shape[-1]))
        if self.cell_width is None:
            return z
        jitter = uniform((num, 1, draws.shape[-1]), generator=generator, like=draws) - 0.5
        return z + jitter * self.cell_width.gather(0, index).unsqueeze(-1)

    def select(self, index: Tensor) -> "Findings":
        """The findings of some queries."""
        fitted = None if self.fitted is None else self.fitted.select(index)
        return replace(
            self,
            **{name: tensor[index] for name, tensor in self._by_query().items()},
            **{name: tensor[:, index] for name, tensor in self._by_draw().items()},
            fitted=fitted,
            stats={name: tensor[index] for name, tensor in self.stats.items()},
            trace=tuple(Stage(s.name, s.decodes[index], s.seconds[index]) for s in self.trace),
        )

    @staticmethod
    def joined(parts: "Sequence[Findings]") -> "Findings":
        """The findings of several blocks of queries, one after the other.

        Where a block has fewer weighted draws than another, it is filled up with weight 0.
        """
        if len(parts) == 1:
            return parts[0]
        if any(part.log_weights is not None for part in parts):  # of some of them
            parts = [replace(part, log_weights=part.normalised_log_weights()) for part in parts]
        first, most = parts[0], max(len(part.draws) for part in parts)
        parts = [part._padded(most) for part in parts]
        by_query = [part._by_query() for part in parts]
        by_draw = [part._by_draw() for part in parts]
        fits = [part.fitted for part in parts if part.fitted is not None]
        return replace(
            first,
            **{name: torch.cat([each[name] for each in by_query]) for name in by_query[0]},
            **{name: torch.cat([each[name] for each in by_draw], 1) for name in by_draw[0]},
            fitted=Fitted.joined(fits) if fits else None,
            stats={name: torch.cat([p.stats[name] for p in parts]) for name in first.stats},
            trace=_joined_traces(parts),
        )

    def _by_query(self) -> dict[str, Tensor]:
        names = ("log_evidence", "log_evidence_error", "c_elbo", "c_elbo_error", "ess", "pareto_k")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _by_draw(self) -> dict[str, Tensor]:
        names = ("draws", "log_weights", "cell_width")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _padded(self, num: int) -> "Findings":
        """With `num` draws, those added of weight 0."""
        missing = num - len(self.draws)
        if not missing:
            return self
        pads = {"draws": 0.0, "log_weights": -math.inf, "cell_width": 0.0}
        return replace(
            self,
            **{
                name: torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), pads[name])])
                for name, tensor in self._by_draw().items()
            },
        )

    def to_parts(self) -> Contents:
        """The findings as tensors and JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        tensors |= prefixed(self.stats, "stats")
        description = {"num_chains": self.num_chains, "crosscoder": None}
        description["exact_density"] = self.exact_density
        description["stages"] = [stage.name for stage in self.trace]
        for index, stage in enumerate(self.trace):
            tensors |= {f"decodes.{index}": stage.decodes, f"seconds.{index}": stage.seconds}
        if self.fitted is not None:
            fitted_tensors, description["crosscoder"] = self.fitted.to_parts()
            tensors |= prefixed(fitted_tensors, "crosscoder")
        return tensors, description

    @classmethod
    def from_parts(cls, parts: Contents) -> "Findings":
        """The findings that `to_parts` described.

        Raises:
            ModelFormatError: Tensors are missing, or their shapes or dtypes do not fit one another.
        """
        tensors, description = parts
        others = {"num_chains", "fitted", "exact_density", "stats", "trace", "interrupted"}
        names = {f.name for f in fields(cls)} - others
        fitted = None
        if description.get("crosscoder") is not None:
            fitted = Fitted.from_parts((under(tensors, "crosscoder"), description["crosscoder"]))
        try:
            given: dict[str, Any] = {name: tensors[name] for name in names & tensors.keys()}
            findings = cls(
                **given,
                num_chains=description.get("num_chains", 1),
                exact_density=bool(description.get("exact_density", False)),
                fitted=fitted,
                stats=under(tensors, "stats"),
                trace=tuple(
                    Stage(str(name), tensors[f"decodes.{index}"], tensors[f"seconds.{index}"])
                    for index, name in enumerate(description.get("stages", []))
                ),
            )
        except (KeyError, TypeError) as error:
            raise ModelFormatError(f"a tensor of the posterior is missing: {error}") from error
        findings._check_shapes()
        findings._check_values(tensors)
        return findings

    def _check_values(self, tensors: dict[str, Tensor]) -> None:
        """Of the tensors that these findings were made of, by name."""
        dtype, num, num_queries = self.draws.dtype, *self.draws.shape[:2]
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or tensor.dtype != dtype:
                raise ModelFormatError(
                    "expected tensors of one floating-point dtype in the posterior, that of its "
                    f"draws, {dtype}, got {tensor.dtype} for {name!r}"
                )
        if num_queries and not num:
            raise ModelFormatError(f"expected at least 1 draw in 'draws', got {num}")
        if (self.log_evidence.isnan() & ~self.log_evidence_error.isnan()).any():
            raise ModelFormatError(
                "expected a number in 'log_evidence' wherever there is one in "
                "'log_evidence_error', got NaN"
            )

    def _check_shapes(self) -> None:
        if self.draws.ndim != 3:
            raise ModelFormatError(f"expected draws (S, B, latent), got {tuple(self.draws.shape)}")
        by_query = [self.log_evidence, self.log_evidence_error, self.c_elbo, self.c_elbo_error]
        by_query += [self.ess, *self.stats.values()]
        by_query += [] if self.pareto_k is None else [self.pareto_k]
        by_query += [part for stage in self.trace for part in (stage.decodes, stage.seconds)]
        wrong = [t.shape for t in by_query if t.shape != self.draws.shape[1:2]]
        by_draw = [t for t in (self.log_weights, self.cell_width) if t is not None]
        wrong += [t.shape for t in by_draw if t.shape != self.draws.shape[:2]]
        if wrong:
            raise ModelFormatError(
                f"expected one figure for each of {self.draws.shape[1]} queries, got {wrong}"
            )
        count = self.num_chains
        if type(count) is not int or count < 1 or len(self.draws) % count:
            raise ModelFormatError(
                f"expected a number of chains that divides {len(self.draws)} draws, got {count!r}"
            )


def _joined_traces(parts: Sequence[Findings]) -> tuple[Stage, ...]:
    """The stages of all blocks by name, 0 for the queries of a block that had no such stage."""
    names = list(dict.fromkeys(stage.name for part in parts for stage in part.trace))
    stages = []
    for name in names:
        rows = [
            next(
                ((s.decodes, s.seconds) for s in part.trace if s.name == name),
                (torch.zeros_like(part.ess), torch.zeros_like(part.ess)),
            )
            for part in parts
        ]
        decodes, seconds = (torch.cat(column) for column in zip(*rows, strict=True))
        stages.append(Stage(name, decodes, seconds))
    return tuple(stages)
