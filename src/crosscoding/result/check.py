"""One check of all answers: a grade for each, and a reason in words for any that is asked about."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LABELS = ("trusted", "approximate", "unreliable")


@dataclass(frozen=True, eq=False)
class Check:
    """One check of B answers.

    Args:
        grades: Index into `LABELS` of each answer, shape (B,).
        reason: Gives the reason for an answer, by its index; "" if there is nothing to say.
        advice: What to do if an answer fails the check, as in `result.advice`.
        priority: Among equally bad checks, the one with the highest priority gives the advice.
        advice_on_auto: Advice on an answer of `methods.Auto`; "": the same as `advice`.
        wants_effort: Whether nothing helps but another method or more computation.
    """

    grades: Tensor
    reason: Callable[[int], str]
    advice: str
    priority: int
    advice_on_auto: str = ""
    wants_effort: bool = False


def fault(
    grades: Tensor,
    words: Callable[[int], str],
    advice: str,
    priority: int,
    advice_on_auto: str = "",
) -> Check:
    """A check that gives a reason only for answers that fail it."""
    return Check(grades, lambda q: words(q) if grades[q] else "", advice, priority, advice_on_auto)


def grade(value: Tensor, good: float | Tensor, rough: float | Tensor) -> Tensor:
    """0 up to good, 1 up to rough, 2 above that and for NaN."""
    return 2 - (value <= good).int() - (value <= rough).int()


def against(value: float, limit: float) -> str:
    """The end of a reason: that the value is above its limit, or ""."""
    return "" if value <= limit else f", above {limit:.3g}"
