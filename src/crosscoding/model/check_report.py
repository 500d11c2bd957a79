"""The report of `VAE.check`: one line per check, with a status and what to do."""

import math
from dataclasses import dataclass, field
from typing import Any

from crosscoding.display import Description, Displayed, Grid, Mark

STATUSES = ("ok", "note", "warning", "error")
"""From best to worst. A note is worth knowing, a warning may spoil answers, an error does."""

_MARKS = {"ok": "good", "note": "note", "warning": "doubtful", "error": "bad"}


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: Name of the check.
        status: One of `STATUSES`.
        message: What was found, with figures, and what to do about it.
        figures: The figures by name, for programs.
    """

    name: str
    status: str
    message: str
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"expected a status among {', '.join(STATUSES)}, got {self.status!r}")


@dataclass(frozen=True, repr=False)
class CheckReport(Displayed):
    """The report of `VAE.check`, printed as a table of one line per check.

    Attributes:
        model: A description of the model.
        findings: The results in order; `report["scale"]` is the result of that check.
    """

    model: str
    findings: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error. There may still be warnings."""
        return all(finding.status != "error" for finding in self.findings)

    def __getitem__(self, name: str) -> CheckResult:
        for finding in self.findings:
            if finding.name == name:
                return finding
        names = ", ".join(finding.name for finding in self.findings)
        raise KeyError(f"expected a check among {names}, got {name!r}")

    def __contains__(self, name: str) -> bool:
        return any(finding.name == name for finding in self.findings)

    def __str__(self) -> str:
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = [f"{f.status:<8} {f.name:<{width}}  {f.message}" for f in self.findings]
        return "\n".join([self.model, *lines, self.summary])

    __repr__ = __str__  # what the Python prompt shows

    def _described(self, *, pictures: bool) -> Description:
        rows = tuple((Mark(f.status, _MARKS[f.status]), f.name, f.message) for f in self.findings)
        return Description(self.model, grids=(Grid(rows),) if rows else (), notes=(self.summary,))

    @property
    def summary(self) -> str:
        """The number of errors and warnings, in words."""
        counts = {
            status: sum(finding.status == status for finding in self.findings)
            for status in ("error", "warning")
        }
        words = [f"{n} {status}{'s' * (n > 1)}" for status, n in counts.items() if n]
        return " and ".join(words) or "no problems found"

    def as_dict(self) -> dict[str, Any]:
        """The report in a form that JSON can hold; figures that are not finite become None."""
        return {
            "model": self.model,
            "ok": self.ok,
            "findings": [
                {
                    "name": finding.name,
                    "status": finding.status,
                    "message": finding.message,
                    "figures": {
                        name: value if math.isfinite(value) else None
                        for name, value in finding.figures.items()
                    },
                }
                for finding in self.findings
            ],
        }
