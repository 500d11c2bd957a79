"""What `calibrate` reports: ranks, coverage and bounds on log p(x), in words and in a picture."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crosscoding.calibration.ranks import LEVELS, Ranks, band, ecdf_difference
from crosscoding.calibration.sandwich import Sandwich
from crosscoding.display import Description, Displayed, Grid, Mark, shown_number
from crosscoding.errors import counted
from crosscoding.result.vouching import Vouching

_UNIFORM = 0.01  # p-value below which ranks are not uniform
_SURE = 3.0  # standard errors beyond which log p(x) contradicts a bound


@dataclass(frozen=True, eq=False, repr=False)
class TwinReport(Displayed):
    """How a method answers queries that were simulated from the model itself.

    Attributes:
        method: Name of the method.
        labels: The labels of the verdicts, one per twin.
        purposes: For each purpose, the number of answers with each label.
        trusted: Which answers are trusted for the method's purpose, boolean, shape (num,).
        ranks: Ranks of the true z, of log p(z, x) and of missing elements among the answers' draws.
        log_evidence, log_evidence_error: The answers' log p(x) and its standard error, in nats,
            shape (num,).
        sandwich: Stochastic bounds on log p(x).
        vouching: What `Auto(calibration=…)` takes from the report.
    """

    method: str
    labels: tuple[str, ...]
    purposes: dict[str, dict[str, int]]
    trusted: Tensor
    ranks: Ranks
    log_evidence: Tensor
    log_evidence_error: Tensor
    sandwich: Sandwich
    vouching: Vouching = field(repr=False)

    @property
    def num(self) -> int:
        """Number of twins."""
        return len(self.labels)

    def p_value(self, *, trusted: bool = False) -> float:
        """p-value of all ranks being uniform, corrected for multiple testing; NaN if too few.

        Args:
            trusted: Whether to look at trusted answers only.
        """
        return self._ranks(trusted).p_value()

    def p_values(self, *, trusted: bool = False) -> dict[str, float]:
        """p-value of each quantity's ranks being uniform, not corrected for multiple testing."""
        return self._ranks(trusted).p_values()

    def coverage(self, level: float = 0.9, *, trusted: bool = False) -> tuple[float, float]:
        """How often central intervals of missing elements contain the truth, and a standard error.

        Both are NaN if nothing is missing.

        Args:
            level: How often they should contain it.
            trusted: Whether to look at trusted answers only.
        """
        return self._ranks(trusted).coverage(level)

    @property
    def gap(self) -> float:
        """Upper minus lower bound on log p(x), averaged over twins, in nats."""
        return (self.sandwich.upper - self.sandwich.lower).mean().item()

    @property
    def below(self) -> Tensor:
        """Which answers' log p(x) is below its lower bound by 3 standard errors, boolean (num,).

        As bounds hold on average only, a few right answers are, too.
        """
        error = torch.hypot(self.log_evidence_error, self.sandwich.lower_error)
        return self.log_evidence + _SURE * error < self.sandwich.lower

    @property
    def above(self) -> Tensor:
        """Which answers' log p(x) is above its upper bound by 3 standard errors, boolean (num,).

        As bounds hold on average only, a few right answers are, too; mostly where p(z|x) has
        several modes.
        """
        error = torch.hypot(self.log_evidence_error, self.sandwich.upper_error)
        return self.log_evidence - _SURE * error > self.sandwich.upper

    def summary(self) -> str:
        """The report in words."""
        labels = ", ".join(f"{num} {label}" for label, num in Counter(self.labels).most_common())
        lines = [f"{self.num} twins, answered by {self.method}: {labels}"]
        for trusted in (False, True):
            if not trusted or 0 < int(self.trusted.sum()) < self.num:
                lines += self._calibration(trusted)
        known = self.log_evidence.isfinite()
        lines.append(
            f"log p(x): bounds {self.gap:.2g} nats apart on average; of "
            f"{counted(int(known.sum()), 'answer')} with an estimate, {int(self.below.sum())} "
            f"below the lower bound and {int(self.above.sum())} above the upper one"
        )
        return "\n".join(lines)

    def _calibration(self, trusted: bool) -> list[str]:
        own, whose = self._ranks(trusted), "trusted answers" if trusted else "all answers"
        tested = own.p_values()
        if not tested:
            return [f"{whose}: too few for a test of their ranks"]
        worst = min(tested, key=lambda name: tested[name])
        fits = "uniform" if own.p_value() >= _UNIFORM else "not uniform"
        line = f"{whose}: ranks are {fits} (p = {own.p_value():.2g}, lowest for {worst})"
        if not own.is_element.any():
            return [line]
        intervals = ", ".join(
            f"{level:.0%} intervals cover {value:.1%} ± {error:.1%}"
            for level in LEVELS
            for value, error in [own.coverage(level)]
        )
        return [line, f"{whose}: {intervals}"]

    def _ranks(self, trusted: bool) -> Ranks:
        return self.ranks.select(self.trusted) if trusted else self.ranks

    def __repr__(self) -> str:
        return f"TwinReport({self.num} twins, {self.method}, p={self.p_value():.2g})"

    def _described(self, *, pictures: bool) -> Description:
        labels = ("trusted", "approximate", "unreliable")
        counts = tuple(
            (purpose, *(f"{own.get(label, 0):,}" for label in labels))
            for purpose, own in self.purposes.items()
        )
        grids = (Grid(counts, ("for", *labels), numbers=frozenset({1, 2, 3})), self._grid())
        known = int(self.log_evidence.isfinite().sum())
        facts = (
            ("bounds on log p(x)", f"{shown_number(self.gap, 2)} nats apart on average"),
            ("below their lower bound", f"{int(self.below.sum())} of {known:,}"),
            ("above their upper bound", f"{int(self.above.sum())} of {known:,}"),
        )
        title = f"{counted(self.num, 'twin')}, answered by {self.method}"
        return Description(title, facts, grids)

    def _grid(self) -> Grid:
        """Ranks and coverage of all answers, and of trusted ones."""
        rows = []
        for trusted in (False, True):
            own, num = self._ranks(trusted), int(self.trusted.sum()) if trusted else self.num
            p = own.p_value()
            said = Mark("too few to test", "note")
            if not math.isnan(p):
                good = p >= _UNIFORM
                words = "uniform" if good else "not uniform"
                said = Mark(f"{words}, p = {p:.2g}", "good" if good else "bad")
            covered = [own.coverage(level) for level in LEVELS]
            words = [f"{value:.1%} ± {error:.1%}" for value, error in covered]
            shown = [w if v == v else "—" for w, (v, _) in zip(words, covered, strict=True)]
            rows.append(("trusted" if trusted else "all", f"{num:,}", said, *shown))
        head = ("answers", "number", "ranks", *(f"{level:.0%}" for level in LEVELS))
        title = "Ranks, and how often intervals of missing elements contain the truth"
        return Grid(tuple(rows), head, title, numbers=frozenset({1, 3, 4, 5}))

    def plot(self) -> Any:
        """A matplotlib figure: histogram and ECDF of the ranks, coverage, and bounds on log p(x).

        If the method is calibrated, a band contains a whole curve with probability 95 %.
        """
        from crosscoding.plots.calibration import calibration_figure  # loads matplotlib

        tested = self.p_values()
        worst = min(tested, key=lambda name: tested[name])
        rows = {name: self.ranks.of(name) for name in tested}
        middle = 0.5 * (self.sandwich.lower + self.sandwich.upper)
        middle = torch.where(self.log_evidence.isfinite(), self.log_evidence, middle)
        places, _ = ecdf_difference(rows[worst])
        return calibration_figure(
            (worst, rows[worst]),
            places,
            {name: ecdf_difference(row)[1] for name, row in rows.items()},
            band(min(map(len, rows.values())), self.ranks.noise),
            [(level, *self.ranks.coverage(level)) for level in LEVELS],
            (self.sandwich.lower - middle, self.sandwich.upper - middle),
        )
