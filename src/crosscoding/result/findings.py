"""What a method found out about a flat batch of queries, as plain tensors."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.errors import ModelFormatError
from crosscoding.persistence.folder import Contents, prefixed, under
from crosscoding.random import uniform
from crosscoding.result.trace import Stage
from crosscoding.result.verdict import Figures

# Fields that the verdict rests on, by their names in `Posterior.stats` and in saved posteriors.
_PUBLIC_NAMES = {
    "missed": "missed",
    "num_weighed": "weighed",
    "finished": "finished",
    "collapsed": "collapsed",
    "unsearchable": "unsearchable",
    "vouched": "vouched",
    "lost": "lost",
    "lost_element": "lost_element",
    "r_hat": "r_hat",
    "twins": "twins",
    "twins_p": "twins_p",
    "twins_coverage": "twins_coverage",
}
_BOOLEAN = ("finished", "collapsed", "unsearchable", "vouched")


@dataclass(eq=False)
class Findings:
    """A method's answer for B queries, from which a `Posterior` is made.

    Args:
        draws: Latent points, shape (S, B, latent).
        log_evidence: Estimate of log p(x) in nats, shape (B,); NaN where there is none.
        log_evidence_error: Its standard error in nats, shape (B,).
        c_elbo: C-ELBO on fresh draws in nats, shape (B,); NaN without a density.
        c_elbo_error: Its standard error in nats, shape (B,).
        ess: Effective sample size of the draws, shape (B,).
        log_weights: Normalised log-weights of the draws, shape (S, B); None: all equal.
        cell_width: Side of the cell around each draw, shape (S, B); None: draws are points.
        pareto_k: Pareto k of the importance weights, shape (B,); None: there are no weights.
        num_chains: Number of chains, whose draws are stored one chain after the other; divides S.
        fitted: The fitted q(z|x), which has a density. New draws come from it, unless the stored
            draws have weights: then these are resampled, as they are closer to p(z|x).
        exact_density: Whether log q(z|x) is the target's own log p(z, x) − log p(x).
        r_hat: The largest R-hat over latent dimensions, shape (B,); None: there are no chains.
        missed: Share of p(z|x) that the draws lack, as found by a search, shape (B,); NaN where
            there was no search, None if there was none for any query.
        num_weighed: Number of draws that the figures come from, shape (B,); None: that of `draws`.
        finished: Whether the method ran to its end, boolean, shape (B,); None: it did for all.
        collapsed: Whether importance weights left only a handful of draws, so that the weights of
            the fit replace them, boolean, shape (B,); None: nowhere.
        unsearchable: Whether the target is a bare density of too many dimensions for a search to
            find every narrow mode, boolean, shape (B,); None: nowhere.
        vouched: Whether `missed` is a bound from simulated twins of an amortised cross-coder and
            not from a search, boolean, shape (B,); None: nowhere.
        lost: Share of the draws at which the decoder's output has lost log p of an observed
            element, shape (B,); None: not checked.
        lost_element: The element lost at most of them, as an index into the flattened datum, shape
            (B,).
        twins: Number of simulated twins of queries like this one that vouch for means and
            intervals, shape (B,); NaN where none do, None if none do for any query.
        twins_p, twins_coverage: The twins' figures, as in `verdict.Figures`.
        stats: Further figures of the method by name, each of shape (B,); they are only displayed.
        trace: What its stages did, in order.
        interrupted: Whether the user stopped the method, which then returned what it had.
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
    r_hat: Tensor | None = None
    missed: Tensor | None = None
    num_weighed: Tensor | None = None
    finished: Tensor | None = None
    collapsed: Tensor | None = None
    unsearchable: Tensor | None = None
    vouched: Tensor | None = None
    lost: Tensor | None = None
    lost_element: Tensor | None = None
    twins: Tensor | None = None
    twins_p: Tensor | None = None
    twins_coverage: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    trace: tuple[Stage, ...] = ()
    interrupted: bool = False

    @property
    def figures(self) -> Figures:
        """The figures that the verdict rests on."""
        unknown = torch.full_like(self.ess, math.nan)
        num_draws = torch.full_like(self.ess, len(self.draws))
        return Figures(
            log_evidence_error=self.log_evidence_error,
            ess=self.ess,
            pareto_k=_or(self.pareto_k, unknown),
            r_hat=_or(self.r_hat, unknown),
            missed=_or(self.missed, unknown),
            finished=_or(self.finished, torch.ones_like(self.ess, dtype=torch.bool)),
            num_draws=_or(self.num_weighed, num_draws),
            lost=self.lost,
            lost_element=self.lost_element,
            collapsed=self.collapsed,
            unsearchable=self.unsearchable,
            vouched=self.vouched,
            short=self._short,
            excess=self._excess,
            resampled=self._resampled,
            twins=self.twins,
            twins_p=self.twins_p,
            twins_coverage=self.twins_coverage,
        )

    @property
    def all_stats(self) -> dict[str, Tensor]:
        """`stats` and the known figures of the verdict, by their public names."""
        figures = {public: getattr(self, name) for name, public in _PUBLIC_NAMES.items()}
        return self.stats | {name: f.to(self.ess) for name, f in figures.items() if f is not None}

    @property
    def _resampled(self) -> Tensor | None:
        """The number of stored draws, (B,), where these are resampled; NaN elsewhere."""
        if self.log_weights is not None:
            return None
        num = torch.full_like(self.ess, len(self.draws))
        return num if self.num_weighed is not None else num.where(self.ess == math.inf, math.nan)

    @property
    def _rounding(self) -> Tensor:
        """Rounding error of log p(x), a sum of many terms, in nats, (B,)."""
        return 4 * torch.finfo(self.log_evidence.dtype).eps * self.log_evidence.abs()

    @property
    def _short(self) -> Tensor:
        """By how much the C-ELBO is surely below log p(x), where the draws come from a fit, (B,).

        This holds for a map that folds, too: its true bound is lower still, since log |det| counts
        folded regions twice.
        """
        short = self.log_evidence - self.c_elbo - 2 * self.c_elbo_error.nan_to_num(nan=0.0)
        short = short - self._rounding
        if self.log_weights is None and self.fitted is not None:
            return short
        collapsed = _or(self.collapsed, torch.zeros_like(short, dtype=torch.bool))
        return torch.where(collapsed, short, math.nan)

    @property
    def _excess(self) -> Tensor:
        """By how much the C-ELBO is surely above log p(x), which a bound cannot be, (B,)."""
        excess = self.c_elbo - self.log_evidence
        excess = excess - 3 * (self.c_elbo_error + self.log_evidence_error) - self._rounding
        folds = self.fitted is not None and not self.fitted.crosscoder.has_density
        return torch.full_like(excess, math.nan) if folds else excess

    def normalised_log_weights(self) -> Tensor:
        """Log-weights of the draws, (S, B), all equal if the method gives none."""
        if self.log_weights is not None:
            return self.log_weights
        count = self.draws.shape[0]
        return torch.full_like(self.draws[..., 0], -math.log(count))

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Draws from p(z|x), (num, B, latent).

        Weighted draws are resampled and moved within their cells, a fit gives new draws, and other
        stored draws are shuffled and repeat only once all have been used.
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
            **{name: tensor[index] for name, tensor in self.by_query().items()},
            **{name: of_queries(tensor, index) for name, tensor in self.by_draw().items()},
            fitted=fitted,
            stats={name: tensor[index] for name, tensor in self.stats.items()},
            trace=tuple(Stage(s.name, s.decodes[index], s.seconds[index]) for s in self.trace),
        )

    def by_query(self) -> dict[str, Tensor]:
        """The known fields with one value per query, (B,)."""
        names = ("log_evidence", "log_evidence_error", "c_elbo", "c_elbo_error", "ess", "pareto_k")
        names += tuple(_PUBLIC_NAMES)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def by_draw(self) -> dict[str, Tensor]:
        """The known fields with one value per draw, (S, B, …)."""
        names = ("draws", "log_weights", "cell_width")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to_parts(self) -> Contents:
        """The findings as tensors and JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        tensors = {name: value for name, value in tensors.items() if name not in _PUBLIC_NAMES}
        tensors |= prefixed(self.all_stats, "stats")
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
            ModelFormatError: Tensors are missing, or their shapes or dtypes are inconsistent.
        """
        tensors, description = parts
        others = {"num_chains", "fitted", "exact_density", "stats", "trace", "interrupted"}
        names = {f.name for f in fields(cls)} - others - _PUBLIC_NAMES.keys()
        fitted, stats = None, under(tensors, "stats")
        figures: dict[str, Any] = {
            name: stats.pop(public) for name, public in _PUBLIC_NAMES.items() if public in stats
        }
        figures |= {name: figures[name] > 0 for name in _BOOLEAN if name in figures}
        if description.get("crosscoder") is not None:
            fitted = Fitted.from_parts((under(tensors, "crosscoder"), description["crosscoder"]))
        try:
            given: dict[str, Any] = {name: tensors[name] for name in names & tensors.keys()}
            findings = cls(
                **given,
                **figures,
                num_chains=description.get("num_chains", 1),
                exact_density=bool(description.get("exact_density", False)),
                fitted=fitted,
                stats=stats,
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
        """Check dtypes and values of the tensors, by name, that these findings were made from."""
        dtype, num, num_queries = self.draws.dtype, *self.draws.shape[:2]
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or tensor.dtype != dtype:
                raise ModelFormatError(
                    "expected every tensor of the posterior to have the dtype of its draws, "
                    f"{dtype}, got {tensor.dtype} for {name!r}"
                )
        if num_queries and not num:
            raise ModelFormatError(f"expected at least 1 draw in 'draws', got {num}")
        if (self.log_evidence.isnan() & ~self.log_evidence_error.isnan()).any():
            raise ModelFormatError(
                "expected a number in 'log_evidence' wherever 'log_evidence_error' has one, got NaN"
            )

    def _check_shapes(self) -> None:
        if self.draws.ndim != 3:
            raise ModelFormatError(f"expected draws (S, B, latent), got {tuple(self.draws.shape)}")
        by_query = [self.log_evidence, self.log_evidence_error, self.c_elbo, self.c_elbo_error]
        by_query += [self.ess, *self.all_stats.values()]
        by_query += [] if self.pareto_k is None else [self.pareto_k]
        by_query += [part for stage in self.trace for part in (stage.decodes, stage.seconds)]
        wrong = [t.shape for t in by_query if t.shape != self.draws.shape[1:2]]
        by_draw = [t for t in (self.log_weights, self.cell_width) if t is not None]
        wrong += [t.shape for t in by_draw if t.shape != self.draws.shape[:2]]
        if wrong:
            raise ModelFormatError(
                f"expected one figure for each of {self.draws.shape[1]} queries, got shapes {wrong}"
            )
        count = self.num_chains
        if type(count) is not int or count < 1 or len(self.draws) % count:
            raise ModelFormatError(
                f"expected num_chains to divide the {len(self.draws)} draws, got {count!r}"
            )


def _or(figure: Tensor | None, default: Tensor) -> Tensor:
    return default if figure is None else figure


def of_queries(tensor: Tensor, index: Tensor) -> Tensor:
    """tensor (S, B, …) for some queries, copied only if that is necessary."""
    if tensor.stride(1) == 0 and index.dtype == torch.long:
        return tensor[:, :1].expand(-1, len(index), *tensor.shape[2:])
    return tensor[:, index]
