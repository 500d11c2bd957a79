"""`Verdict`: a label and, when they are read, purposes, reasons and advice in words.

The labels of a batch come from a few tensor operations. Words are made for one answer at a time,
when somebody reads them, as a batch may have hundreds of thousands of answers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import torch

from crosscoding.display import LABEL_STATUS, Description, Displayed, Grid, Mark
from crosscoding.errors import counted
from crosscoding.result.advice import IN_PYTHON, last_resort
from crosscoding.result.check import LABELS, Check
from crosscoding.result.purposes import PURPOSES, check_purpose
from crosscoding.result.verdict import Figures

Measure = Callable[[int], float]
"""Gives the largest share of a missing element's variance that comes from z, for a query."""


class Verdict(Displayed):
    """The verdict on one query's answer; `rich.print` and notebooks show it line by line.

    Attributes:
        label: "trusted", "approximate" or "unreliable", for the purpose "density".
        purposes: The label for each purpose: "mean", "interval" and "density".
        reasons: Why, in words and figures, starting with the worst check.
        advice: What to do next, in one sentence; "" if the answer is trusted.
        template: The advice, with what it suggests as names in braces, as in `result.advice`.
    """

    __slots__ = ("_all", "_purpose", "_query")

    def __init__(self, verdicts: "Verdicts", query: int, purpose: str = "density") -> None:
        self._all, self._query, self._purpose = verdicts, query, purpose

    @property
    def label(self) -> str:
        return self._all.label(self._query, self._purpose)

    @property
    def purposes(self) -> dict[str, str]:
        return {purpose: self._all.label(self._query, purpose) for purpose in PURPOSES}

    @property
    def reasons(self) -> tuple[str, ...]:
        checks = self._checks()
        order = sorted(range(len(checks)), key=lambda i: -int(checks[i].grades))
        return tuple(filter(None, (checks[i].reason(0) for i in order)))

    @property
    def advice(self) -> str:
        return self.advice_in(IN_PYTHON)

    @property
    def template(self) -> str:
        return _advice(self._checks(), self._all.method, self._all.density_dim)

    def advice_in(self, words: Mapping[str, str]) -> str:
        """The advice with these words for the names in `advice.IN_PYTHON`."""
        return self.template.format_map(words)

    def on(self, purpose: str) -> "Verdict":
        """The same answer's verdict for another purpose: its label, reasons and advice.

        Raises:
            ValueError: There is no such purpose.
        """
        check_purpose(purpose)
        return Verdict(self._all, self._query, purpose)

    def _checks(self) -> list[Check]:
        """The checks of this answer alone."""
        return self._all.figures_of(self._query, self._purpose).checks(self._purpose)

    def _parts(self) -> tuple[Any, ...]:
        return self.label, self.purposes, self.reasons, self.template

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verdict) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self.label, self.reasons))

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name)!r}" for name in _SHOWN)
        return f"Verdict({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Verdict, (self._all.alone(self._query), 0, self._purpose)

    def _described(self, *, pictures: bool) -> Description:
        facts = tuple((name, marked(label)) for name, label in self.purposes.items())
        return Description(f"Verdict for the purpose {self._purpose!r}", facts, notes=self._notes())

    def _notes(self) -> tuple[str, ...]:
        """Reasons, line by line, and what to do next."""
        advice = (f"Next step: {self.advice}.",) if self.advice else ()
        return tuple(f"• {reason}" for reason in self.reasons) + advice


_SHOWN = ("label", "purposes", "reasons", "advice")
_FEW = 5  # verdicts whose words are shown


def marked(label: str) -> Mark:
    """A label in its colour."""
    return Mark(label, LABEL_STATUS[label])


class Verdicts(Sequence[Verdict], Displayed):
    """The verdicts on all answers of a flattened batch; they compare and slice like a list.

    Args:
        figures: What is known about the answers.
        method: Name of the method that answered; advice depends on it.
        density_dim: Size of z if the target is a bare density; None if it is a VAE.
        measure: Called for answers whose label for means depends on what it returns.
    """

    def __init__(
        self,
        figures: Figures,
        method: str = "",
        density_dim: int | None = None,
        measure: Measure | None = None,
    ) -> None:
        self._figures, self._measure = figures, measure
        self.method, self.density_dim = method, density_dim
        self._labels: dict[str, list[str]] = {}

    def label(self, query: int, purpose: str) -> str:
        """The label of an answer for a purpose."""
        if purpose == "mean" and self._depends(query):
            return LABELS[self._share(query) > self._most_share[query]]
        return self._sure_labels(purpose)[query]

    def labels(self, purpose: str, *, measure: bool = True) -> list[str]:
        """The labels of all answers for a purpose.

        Args:
            purpose: One of `PURPOSES`.
            measure: Whether to decode draws where a label for means depends on that. Otherwise
                such answers get the label that is certain without it.
        """
        if measure and purpose == "mean" and self.num_to_measure:
            return [self.label(query, purpose) for query in range(len(self))]
        return self._sure_labels(purpose)

    def counts(self, purpose: str = "density", *, measure: bool = True) -> dict[str, int]:
        """How many answers have each label, best first; arguments as for `labels`."""
        found = Counter(self.labels(purpose, measure=measure))
        return {label: found[label] for label in LABELS}

    @property
    def num_to_measure(self) -> int:
        """Number of answers whose label for means depends on draws that have to be decoded."""
        return 0 if self._measure is None else sum(self._depending)

    def _sure_labels(self, purpose: str) -> list[str]:
        if purpose not in self._labels:
            grades = self._figures.grades_for(purpose).tolist()
            self._labels[purpose] = [LABELS[grade] for grade in grades]
        return self._labels[purpose]

    def figures_of(self, query: int, purpose: str) -> Figures:
        """The figures of one answer, with its measured `latent_share` if that matters."""
        own = self._figures.select(torch.tensor([query]))
        if purpose != "mean" or not self._depends(query):
            return own
        return replace(own, latent_share=torch.full_like(own.ess, self._share(query)))

    def alone(self, query: int) -> "Verdicts":
        """The verdicts on one answer, after measuring all that has to be measured."""
        return Verdicts(self.figures_of(query, "mean"), self.method, self.density_dim)

    @cached_property
    def _depending(self) -> list[bool]:
        return self._figures.depends_on_share.tolist()

    @cached_property
    def _most_share(self) -> list[float]:
        return self._figures.most_share.tolist()

    def _share(self, query: int) -> float:
        return 1.0 if self._measure is None else self._measure(query)

    def _depends(self, query: int) -> bool:
        return self._measure is not None and self._depending[query]

    def __len__(self) -> int:
        return len(self._figures.ess)

    @overload
    def __getitem__(self, index: int) -> Verdict: ...
    @overload
    def __getitem__(self, index: slice) -> list[Verdict]: ...
    def __getitem__(self, index: int | slice) -> Verdict | list[Verdict]:
        chosen = range(len(self))[index]  # raises IndexError
        return Verdict(self, chosen) if isinstance(chosen, int) else [self[i] for i in chosen]

    def __iter__(self) -> Iterator[Verdict]:
        return (Verdict(self, query) for query in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Verdicts, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:_FEW]))
        more = f", … {len(self) - _FEW:,} more" if len(self) > _FEW else ""
        return f"[{shown}{more}]"

    def _described(self, *, pictures: bool) -> Description:
        grids = (self.grid_of_counts(),) if len(self) > 1 else ()
        if len(self):
            rows = (
                (str(query), marked(verdict.label), verdict.reasons[0])
                for query, verdict in enumerate(self[:_FEW])
            )
            more = f"… {len(self) - _FEW:,} more" if len(self) > _FEW else ""
            grids += (Grid(tuple(rows), ("query", "label", "first reason"), more=more),)
        return Description(counted(len(self), "verdict"), grids=grids)

    def grid_of_counts(self, *, measure: bool = False) -> Grid:
        """How many answers have each label, by purpose."""
        counts = {purpose: self.counts(purpose, measure=measure) for purpose in PURPOSES}
        rows = tuple(
            (purpose, *(f"{num:,}" for num in own.values())) for purpose, own in counts.items()
        )
        more = ""
        if not measure and self.num_to_measure:
            more = (
                f"means of up to {counted(self.num_to_measure, 'answer')} may be better than "
                "shown: summary() decodes draws to tell"
            )
        return Grid(rows, ("for", *LABELS), numbers=frozenset({1, 2, 3}), more=more)

    def __reduce__(self) -> tuple[Any, ...]:
        figures = self._figures
        if self._measure is not None:
            shares = torch.ones_like(figures.ess)
            for query in figures.depends_on_share.nonzero()[:, 0].tolist():
                shares[query] = self._measure(query)
            figures = replace(figures, latent_share=shares)
        return Verdicts, (figures, self.method, self.density_dim)


def _advice(checks: Sequence[Check], method: str, density_dim: int | None) -> str:
    """The advice of the worst check of an answer, with names in braces."""
    worst = max(checks, key=lambda check: (int(check.grades), check.priority))
    if not int(worst.grades):
        return ""
    if worst.wants_effort and (advice := last_resort(method, density_dim)):
        return advice
    return (method == "Auto" and worst.advice_on_auto) or worst.advice
