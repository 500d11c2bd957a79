"""`Displayed`: base of objects that describe how terminals and notebooks show them."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from crosscoding.display.description import Description
from crosscoding.display.notebook import as_html
from crosscoding.isolation import isolated

if TYPE_CHECKING:
    from rich.console import RenderableType


class Displayed(ABC):
    """An object with a form for terminals, by `rich.print`, and one for notebooks."""

    __slots__ = ()

    @abstractmethod
    def _described(self, *, pictures: bool) -> Description:
        """What is shown of it; `pictures` is False where they would not be seen."""

    @isolated
    def __rich__(self) -> "RenderableType":
        """What `rich.print` shows."""
        from crosscoding.display.terminal import as_rich  # loads rich

        return as_rich(self._described(pictures=False))

    @isolated
    def _repr_html_(self) -> str:
        """What notebooks show."""
        return as_html(self._described(pictures=True))
