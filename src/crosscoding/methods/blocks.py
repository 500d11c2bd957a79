"""Runs a method on blocks of queries that fit in memory, and takes second looks at the answers.

Every block gets the same random numbers, so a query's answer does not depend on the others. If the
user interrupts a method that can stop at any time, its block keeps what was found so far, and the
remaining blocks get what can be found in almost no time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.errors import NonFiniteError
from crosscoding.methods.base import Method, Report
from crosscoding.methods.second_looks import impossible_evidence, with_clamps, with_losses
from crosscoding.methods.steep_priors import with_steep_priors
from crosscoding.result.findings import Findings
from crosscoding.result.joining import joined
from crosscoding.target.base import Target

# These matter only if time is limited: with less, answers may come late.
_JOINING = 1e-5  # seconds per query and latent dimension to join the draws of several blocks
_LOOKING, _LOOKING_FOR_LOSSES = 0.04, 0.1  # shares of a method's seconds reserved for second looks


@dataclass(frozen=True)
class BlockByBlock:
    """A run of a method on blocks of queries, similar queries together.

    Args:
        method: The method.
        max_bytes: Approximate working memory of a block, ≥ 1.
        start: When the method's time began, by `time.perf_counter`.
    """

    method: Method
    max_bytes: int
    start: float

    def find(self, target: Target, *, generator: Generator, report: Report) -> Findings:
        """Findings for all queries of a flat target, in their order."""
        if self.max_bytes < 1:
            raise ValueError(f"expected max_bytes >= 1, got {self.max_bytes}")
        order = _order(target)
        point_bytes = target.like.element_size() * (4 * target.latent_dim + 4)
        query_bytes = self.method.points_at_once * point_bytes + target.query_bytes
        size = int(max(self.max_bytes // query_bytes, 1))
        blocks = [block for part in _by_kind(target, order) for block in part.split(size)]
        state, parts = generator.get_state(), []
        look_for_losses = bool(target.may_be_lost().any())
        reserved = self._reserved(target, len(blocks), look_for_losses)
        for number, block in enumerate(blocks):

            def report_block(share: float, what: str, done: int = number) -> None:
                report((done + share) / len(blocks), what)

            generator.set_state(state)
            chosen = target.select(block).prepare()
            runner, hurried = self._of_block(len(blocks) - number, reserved, parts)
            found = _found(chosen, runner, hurried, generator, report_block)
            if look_for_losses:
                found = with_losses(chosen, found, self.clock_of_rest(target.clock))
            found = with_steep_priors(chosen, found, self.clock_of_rest(target.clock))
            parts.append(with_clamps(chosen, found, self.clock_of_rest(target.clock)))
        target.clock.beat()
        if len(parts) == 1 and bool((order[1:] > order[:-1]).all()):
            return parts[0]
        return joined(parts, order)

    def clock_of_rest(self, clock: Clock) -> Clock:
        """A clock for the rest of the method's own time limit, if it has one."""
        limit = getattr(self.method, "max_seconds", None)
        left = None if limit is None else max(limit - (time.perf_counter() - self.start), 0.0)
        return clock.limited(left)

    def _reserved(self, target: Target, num_blocks: int, look_for_losses: bool) -> float:
        """Seconds that the method may not use: for second looks, and for joining blocks."""
        joining = 0.0 if num_blocks == 1 else _JOINING * target.num_queries * target.latent_dim
        looking = _LOOKING_FOR_LOSSES if look_for_losses else _LOOKING
        return joining + looking * (getattr(self.method, "max_seconds", None) or 0.0)

    def _of_block(
        self, left: int, reserved: float, before: Sequence[Findings]
    ) -> tuple[Method, Method | None]:
        """The method for the next block, and the one to finish it with if the user interrupts.

        The second is None if an interruption should end the run.
        """
        interrupted = bool(before) and before[-1].interrupted
        seconds = time.perf_counter() - self.start + reserved
        runner = self.method.of_block(left, seconds, interrupted=interrupted)
        hurried = self.method.of_block(left, seconds, interrupted=True)
        if not before or interrupted or hurried is self.method:
            return runner, None
        return runner, hurried


def _order(target: Target) -> Tensor:
    """Indices of the queries, sorted by kind and, within each kind, by size."""
    order = target.sizes.argsort(stable=True)
    return order if target.kinds is None else order[target.kinds[order].argsort(stable=True)]


def _by_kind(target: Target, order: Tensor) -> Sequence[Tensor]:
    """The ordered queries of each kind."""
    if target.kinds is None or not len(order):
        return [order]
    return order.split(target.kinds[order].unique_consecutive(return_counts=True)[1].tolist())


def _found(
    target: Target,
    method: Method,
    hurried: Method | None,
    generator: Generator,
    report: Report,
) -> Findings:
    """What a method finds for a block or, if the user interrupts it, what `hurried` finds."""
    state = generator.get_state()
    try:
        return method.find(target, generator=generator, report=report)
    except KeyboardInterrupt:
        if hurried is None:
            raise
        generator.set_state(state)
        found = hurried.find(target, generator=generator, report=report)
        return replace(found, interrupted=True)
    except ValueError as error:
        if impossible := impossible_evidence(target):
            raise NonFiniteError(impossible) from error
        raise
