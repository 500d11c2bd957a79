"""`Auto`, the default: a cascade of stages that answers each query by the cheapest that suffices.

Queries with observed elements that are linear in z, under Gaussian noise, are answered exactly
(`cascade.closed_form`); models with discrete latents go to `Discrete`. All others go through the
stages listed in `cascade.cascade`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator

from crosscoding.errors import check_count
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.cascade.cascade import Cascade
from crosscoding.methods.cascade.closed_form import NUM_DECODED, closed_form, has_closed_form
from crosscoding.methods.discrete import Discrete
from crosscoding.result.findings import Findings
from crosscoding.result.joining import joined
from crosscoding.result.purposes import check_purpose
from crosscoding.result.vouching import HasVouching
from crosscoding.target.base import Target

_ALMOST_NO_TIME = 1e-3  # seconds for a block after an interruption, or if time is up


@dataclass(frozen=True)
class Auto(Method):
    """The best answer that the cascade finds within a budget, and a verdict on it.

    Args:
        max_seconds: Wall-clock time after which nothing more is decoded; None: no limit. With a
            limit, the answer depends on the machine's speed.
        max_decodes: Most decoder evaluations per query; None: no limit.
        num_draws: Draws stored for each query, ≥ 2; means and intervals rest on them.
        purpose: "density", "mean" or "interval": a query stops once it is settled for this purpose.
        calibration: What `calibrate` returned for `Auto` on this model. Where no search for
            modes is possible, it may vouch for means and intervals of queries like its twins.
    """

    takes_discrete: ClassVar[bool] = True

    max_seconds: float | None = None
    max_decodes: int | None = None
    num_draws: int = 1000
    purpose: str = "density"
    calibration: HasVouching | None = None

    def __post_init__(self) -> None:
        for name in ("max_seconds", "max_decodes"):
            limit = getattr(self, name)
            if isinstance(limit, bool) or not isinstance(limit, int | float | None):
                raise TypeError(f"expected {name} to be a number > 0 or None, got {limit!r}")
            if limit is not None and not limit > 0:
                raise ValueError(f"expected {name} > 0 or None, got {limit}")
        check_count("num_draws", self.num_draws, 2)
        check_purpose(self.purpose, self.num_draws)
        if self.calibration is not None and not isinstance(self.calibration, HasVouching):
            raise TypeError(
                "expected calibration to be what crosscoding.calibrate returns, got "
                f"{type(self.calibration).__name__}"
            )

    def of_block(self, left: int, seconds: float, *, interrupted: bool) -> "Auto":
        """This method with its share of the time left, or almost no time once interrupted."""
        if interrupted:
            return replace(self, max_seconds=_ALMOST_NO_TIME)
        if self.max_seconds is None:
            return self
        return replace(self, max_seconds=max((self.max_seconds - seconds) / left, _ALMOST_NO_TIME))

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        found = self._found(target, generator, report)
        if self.calibration is None:
            return found
        settings = repr(replace(self, calibration=None))
        return self.calibration.vouching.for_answers(found, target, settings)

    def _found(self, target: Target, generator: Generator, report: Report) -> Findings:
        target = target.timed(target.clock.limited(self.max_seconds))
        if target.is_discrete:
            most = None if self.max_decodes is None else max(int(self.max_decodes), 1)
            own = Discrete(self.num_draws, purpose=self.purpose, max_decodes=most)
            return own.find(target, generator=generator, report=report)
        solved = has_closed_form(target)
        if not solved.any():
            return self._searched(target, generator, report)
        # its own generator leaves the others' random numbers unchanged
        own = Generator().manual_seed(generator.initial_seed())
        rows, others = solved.nonzero()[:, 0], (~solved).nonzero()[:, 0]
        most = NUM_DECODED if self.max_decodes is None else max(int(self.max_decodes), 1)
        exact, confirmed = closed_form(target.select(rows), self.num_draws, own, most)
        if not confirmed.all():
            exact, others = exact.select(confirmed), torch.cat([others, rows[~confirmed]])
            rows = rows[confirmed]
        if not len(others):
            return exact
        if not len(rows):
            return self._searched(target, generator, report)
        searched = self._searched(target.select(others), generator, report)
        together = joined([exact, searched], torch.cat([rows, others]))
        return replace(together, interrupted=searched.interrupted)

    def _searched(self, target: Target, generator: Generator, report: Report) -> Findings:
        """The answers of the cascade."""
        cascade = Cascade(
            target,
            num_draws=self.num_draws,
            purpose=self.purpose,
            max_decodes=self.max_decodes,
            generator=generator,
            report=report,
        )
        return cascade.run()
