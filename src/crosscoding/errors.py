"""The exceptions a caller may want to catch. Every other mistake raises ValueError or TypeError."""

import difflib
from collections.abc import Iterable


class NonFiniteError(ValueError):
    """A number that must be finite is NaN or infinite: in the evidence, or from a decoder."""


class ModelFormatError(ValueError):
    """A saved model or posterior is not what its description says."""


class BudgetError(RuntimeError):
    """A method used all the work it was allowed and has no answer for at least one query."""


def counted(num: int, one: str, several: str | None = None) -> str:
    """A number with its noun: "1 query", "2 queries". Where no plural is given it takes an s."""
    return f"{num} {one if num == 1 else several or one + 's'}"


def and_more(num: int) -> str:
    """How many there are besides what was named: " and 2 more", or nothing."""
    return f" and {num} more" if num else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is none of those known; says which is nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"expected a {kind} among {', '.join(known)}, got {name!r}{hint}")


def first_line(error: BaseException) -> str:
    """What an exception says, without the stack that torch may put below it, and never for long."""
    lines = str(error).splitlines() or [type(error).__name__]
    line = lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]  # which says no more
    return line if len(line) <= 300 else f"{line[:300]}…"
