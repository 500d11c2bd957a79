"""What each stage of a method did for each query."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from crosscoding.display import Description, Displayed, Grid, shown_number
from crosscoding.errors import counted

WHAT_STAGES_DO = {
    "closed form": "computes the exact posterior of a linear decoder",
    "bank": "weighs points of the prior that were decoded before",
    "prior": "weighs draws of the prior",
    "grid": "integrates over cells of z",
    "locate": "says how far p(z|x) is from the prior",
    "amortised": "weighs draws of the network that was trained for this model",
    "fit": "climbs to one mode and fits a Gaussian there",
    "modes": "climbs 16 times, and draws from a Gaussian if there is one mode",
    "anneal": "anneals particles from the prior, and draws from what was fitted to them",
    "narrow": "draws the narrow directions of z by Laplace's approximation",
    "climb": "climbs from many points, and draws from the modes found",
    "anneal more": "anneals more particles, and draws more",
    "refine": "draws from a density fitted to the particles",
    "bridge": "takes particles from a fitted density to p(z|x)",
    "swarm": "anneals many particles in islands, and draws from what they found",
    "look": "searches for modes that the draws may lack",
}
"""What each stage does, in a few words, by its name; docs/methods.md has more."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage of a method did.

    Attributes:
        name: Name of the stage.
        decodes: Decoder evaluations for each query, shape (*batch,); 0 where it did not run.
        seconds: Each query's share of its wall-clock time, shape (*batch,).
    """

    name: str
    decodes: Tensor
    seconds: Tensor

    @property
    def ran(self) -> Tensor:
        """Which queries went through it, boolean, shape (*batch,)."""
        return (self.decodes > 0) | (self.seconds > 0)


class Trace(list[Stage], Displayed):
    """The stages of a method, in order; printed as a table of what each did and took.

    Args:
        stages: The stages.
    """

    def __init__(self, stages: Iterable[Stage] = ()) -> None:
        super().__init__(stages)

    def __repr__(self) -> str:
        lines = [f"{'stage':<12} {'queries':>8} {'decodes':>12} {'seconds':>8}"]
        lines += [f"{name:<12} {num:>8} {d:>12} {s:>8}" for name, _, num, d, s in self._rows()]
        return "\n".join(lines) if self else "no stages"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """Name, what it does, number of queries, decodes and seconds of all of them."""
        return [
            (
                stage.name,
                WHAT_STAGES_DO.get(stage.name, ""),
                f"{int(stage.ran.sum()):,}",
                f"{float(stage.decodes.double().sum()):,.0f}",
                shown_number(float(stage.seconds.double().sum())),
            )
            for stage in self
        ]

    def _described(self, *, pictures: bool) -> Description:
        names = ("stage", "what it does", "queries", "decodes", "seconds")
        grid = Grid(tuple(self._rows()), names, numbers=frozenset({2, 3, 4}))
        title = counted(len(self), "stage")
        return Description(title, grids=(grid,) if self else ())
