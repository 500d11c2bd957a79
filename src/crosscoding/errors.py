"""The exceptions a caller may want to catch. Every other mistake raises ValueError or TypeError."""

import difflib
from collections.abc import Iterable


class NonFiniteError(ValueError):
    """A number that must be finite is NaN or infinite: in the evidence, or from a decoder."""


class ModelFormatError(ValueError):
    """A saved model or posterior is damaged or does not match its description."""


class BudgetError(RuntimeError):
    """A method reached its limits without an answer for at least one query."""


def counted(num: int, one: str, several: str | None = None) -> str:
    """A number with its noun, as in "2 rounds"; the plural is the noun with an s if not given."""
    return f"{num} {one if num == 1 else several or one + 's'}"


def and_more(num: int) -> str:
    """The end of a message that names one of several: " and 2 more", or "" if there was one."""
    return f" and {num} more" if num else ""


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError unless a setting is an integer, ValueError if it is too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} to be an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name; it lists the known ones and suggests the nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"expected a {kind} among {', '.join(known)}, got {name!r}{hint}")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without torch's stack, 300 characters at most."""
    lines = str(error).splitlines() or [type(error).__name__]
    # The first line of a TorchScript error only says that there was one.
    line = lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]
    return line if len(line) <= 300 else f"{line[:300]}…"
