"""Numbers as they are shown: as many digits as matter, and a dash for what is not known."""

import math

UNKNOWN = "—"


def shown_number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, whole numbers in full; a dash for NaN.

    Thousands are separated from 10,000 on, so that a year stays a year.
    """
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == round(value) and abs(value) < 1e6:
        return _whole(value)
    value = float(f"{value:.{digits}g}") if abs(value) < 10**digits else value
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < digits:
        return f"{value:.{digits - 1 - size}f}".replace("-", "−")
    if digits <= size < 9:
        return _whole(value)
    return f"{value:.{digits - 1}e}".replace("-", "−")


def _whole(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.0f}").replace("-", "−")


def with_error(value: float, error: float) -> str:
    """A figure and its standard error, to two digits of the error; a dash if it is not known."""
    if not math.isfinite(value):
        return shown_number(value)
    if not math.isfinite(error) or error <= 0:
        return f"{value:,.2f}".replace("-", "−")
    digits = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:,.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def shown_range(low: float, high: float) -> str:
    """A range; a single figure if both ends are shown alike."""
    one, other = shown_number(low), shown_number(high)
    return one if one == other else f"{one} to {other}"
