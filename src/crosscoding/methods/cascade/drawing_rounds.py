"""Rounds of draws until each query's draws are worth enough, and a search for modes they lack."""

from torch import Generator, Tensor

from crosscoding.clock import Clock, OutOfTime
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.climb_stages import ClimbStages
from crosscoding.methods.cascade.drawing import ENOUGH, Drawing
from crosscoding.result.purposes import draws_to_find
from crosscoding.target.base import Target

_BYTES = 64 * 2**20  # of the draws of queries worked on together


class DrawingRounds:
    """Draws in rounds, and offers the answers.

    Args:
        answers: Takes the offers.
        climbs: Looks for modes.
        clock: Says how much memory there is.
    """

    def __init__(self, answers: BestSoFar, climbs: ClimbStages, clock: Clock) -> None:
        self._answers = answers
        self._climbs = climbs
        self._clock = clock

    @property
    def enough(self) -> float:
        """Effective draws at which a query needs no more of them."""
        if self._answers.purpose == "density":
            return ENOUGH
        return draws_to_find(self._answers.purpose, self._answers.num_draws)

    def num_at_once(self, target: Target, rounds: tuple[int, ...]) -> int:
        """How many queries to work on together, so that all their draws fit in memory."""
        width = target.latent_dim + 4 * len(rounds) + 8
        bytes_of_one = 2 * sum(rounds) * width * target.like.element_size()
        return max(self._clock.piece_bytes(_BYTES) // bytes_of_one, 1)

    def run(
        self,
        drawing: Drawing,
        place: Tensor,
        rounds: tuple[int, ...],
        seeds: list[int],
        for_climbs: Generator,
        decodes: Tensor,
    ) -> None:
        """Draw in rounds until each query's draws are worth enough, and offer the answers.

        After the first round, climbs look for modes that the draws may lack: few climbs where the
        draws are plain.

        Args:
            drawing: The queries, before the first round.
            place: Where in `decodes` they are.
            rounds: Draws of each round.
            seeds: A seed for each round.
            for_climbs: For the starts of climbs.
            decodes: The decodes of each query are added to it.
        """
        try:
            drawing = drawing.drawn(rounds[0], generator=Generator().manual_seed(seeds[0]))
            decodes[place] += rounds[0]
            drawing = self._with_modes(drawing, for_climbs, place, decodes)
        except (OutOfTime, KeyboardInterrupt):
            self._offer(drawing)
            raise
        self.go_on(drawing, place, rounds[1:], seeds[1:], decodes)

    def go_on(
        self,
        drawing: Drawing,
        place: Tensor,
        rounds: tuple[int, ...],
        seeds: list[int],
        decodes: Tensor,
        *,
        least_ess: float = 0.0,
    ) -> None:
        """The rounds after the first, for queries that have draws; arguments as in `run`.

        Args:
            least_ess: Effective draws per draw, below which a query gets no further round.
        """
        drawing, place = self._not_done(drawing, place, least_ess)
        for num, seed in zip(rounds, seeds, strict=True):
            if not len(place):
                return
            try:
                fitted = drawing.refitted()
                drawing = fitted.drawn(num, generator=Generator().manual_seed(seed))
                decodes[place] += num
            except (OutOfTime, KeyboardInterrupt):
                self._offer(drawing)
                raise
            drawing, place = self._not_done(drawing, place, least_ess)
        if len(place):
            self._offer(drawing)

    def _not_done(
        self, drawing: Drawing, place: Tensor, least_ess: float
    ) -> tuple[Drawing, Tensor]:
        """The queries that need further draws, and their places; offers answers to the others."""
        done = drawing.is_done | (drawing.ess < least_ess * drawing.pool.num)
        left, ready = (~done).nonzero()[:, 0], done.nonzero()[:, 0]
        if len(ready):
            self._offer(drawing.select(ready))
        return drawing.select(left), place[left]

    def _with_modes(
        self, drawing: Drawing, generator: Generator, place: Tensor, decodes: Tensor
    ) -> Drawing:
        """The drawing with the modes that climbs find; the same if there is no time for them."""
        plain, rows, found = drawing.is_plain, drawing.rows, self._climbs.modes
        for work in (self._climbs.search, self._climbs.seek):
            which = plain if work == self._climbs.search else ~plain | ~found.has(rows)
            if len(some := which.nonzero()[:, 0]):
                own = Generator().manual_seed(generator.initial_seed())
                decodes[place[some]] += work(drawing.pool.target.select(some), rows[some], own)
        return drawing.with_modes(found.of(rows)) if found.has(rows).all() else drawing

    def _offer(self, drawing: Drawing) -> None:
        """Offer answers from the draws."""
        if drawing.pool.num:
            known = {"searched": drawing.is_searched, "vouched": drawing.is_vouched}
            self._answers.keep(drawing.rows, drawing.findings(), **known)
