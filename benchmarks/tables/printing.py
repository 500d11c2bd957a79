"""The tables of docs/tables.md, from the results of `run.py`."""

import statistics
from collections.abc import Callable, Mapping

Scores = Mapping[str, float]
Results = Mapping[str, Mapping[str, Scores]]

OURS = "VAEImputer"
METHODS = {  # as in the results, and at the head of a column
    OURS: f"`{OURS}`",
    "MIWAE as published": "MIWAE",
    "IterativeImputer, BayesianRidge": "linear",
    "IterativeImputer, forests": "forests",
    "KNNImputer": "KNN",
    "miceforest": "miceforest",
}
_COVERED = (0.88, 0.92)  # target for the coverage of 90 % intervals
_MOST_MILLISECONDS = 5.0  # target for a row


def printed(results: Results, sizes: Mapping[str, tuple[int, int]]) -> str:
    """Tables of CRPS, coverage, RMSE and seconds, and how often the targets are met.

    Args:
        results: Scores by "table, pattern" and method.
        sizes: Training rows and columns of each table.
    """
    complete = {place: found for place, found in results.items() if OURS in found}
    crps, rmse = _best("crps", complete), _best("rmse", complete)
    parts = [
        "CRPS; in bold, the best and those within its standard error:",
        _table(complete, sizes, METHODS, crps),
        "Coverage of 90 % intervals and, in brackets, their mean width:",
        _table(complete, sizes, _drawing(complete), lambda place, own: _coverage(own)),
        "RMSE; in bold, the best:",
        _table(complete, sizes, METHODS, rmse),
        "Seconds of one CPU, the median over tables and patterns, and the most:",
        _seconds(complete),
        _reached(complete),
    ]
    return "\n\n".join(parts)


def _table(
    results: Results,
    sizes: Mapping[str, tuple[int, int]],
    methods: Mapping[str, str],
    cell: Callable[[str, Scores], str],
) -> str:
    heads = ["table, training rows x columns", "missing", *methods.values()]
    lines, last = [_line(heads), _line(["---"] * len(heads))], ""
    for place, found in results.items():
        name, pattern = place.rsplit(", ", 1)
        rows, columns = sizes[name]
        first = "" if name == last else f"{name}, {rows} x {columns}"
        cells = [cell(place, found[m]) if m in found else "" for m in methods]
        lines.append(_line([first, pattern, *cells]))
        last = name
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _best(key: str, results: Results) -> Callable[[str, Scores], str]:
    """A function that formats a score, in bold if it is within a standard error of the best."""

    def cell(place: str, own: Scores) -> str:
        least = min(results[place].values(), key=lambda scores: scores[key])
        text = f"{own[key]:.3f}"
        return f"**{text}**" if own[key] <= _bar(key, least) else text

    return cell


def _bar(key: str, least: Scores) -> float:
    return least[key] + least.get(f"{key}_error", 0.0)


def _drawing(results: Results) -> dict[str, str]:
    """The methods that give draws."""
    with_draws = {m for found in results.values() for m in found if "coverage" in found[m]}
    return {method: head for method, head in METHODS.items() if method in with_draws}


def _coverage(own: Scores) -> str:
    return f"{100 * own['coverage']:.0f} % ({own['width']:.1f})"


def _seconds(results: Results) -> str:
    lines = [_line(["method", "fit, s", "a row, ms"]), _line(["---"] * 3)]
    for method, head in METHODS.items():
        found = [scores[method] for scores in results.values() if method in scores]
        keys = ("fit_seconds", "milliseconds_per_row")
        if found:
            cells = [_middle_and_most([own[key] for own in found]) for key in keys]
            lines.append(_line([head, *cells]))
    return "\n".join(lines)


def _middle_and_most(values: list[float]) -> str:
    return ", ".join(
        f"{value:.0f}" if value >= 100 else f"{value:.2g}"
        for value in (statistics.median(values), max(values))
    )


def _reached(results: Results) -> str:
    """How often `VAEImputer` meets its targets."""
    best = covered = fast = ahead = 0
    for found in results.values():
        ours, least = found[OURS], min(found.values(), key=lambda own: own["crps"])
        best += ours["crps"] <= _bar("crps", least)
        ahead += ours is least
        covered += _COVERED[0] <= ours["coverage"] <= _COVERED[1]
        fast += ours["milliseconds_per_row"] <= _MOST_MILLISECONDS
    coverages = [100 * found[OURS]["coverage"] for found in results.values()]
    return (
        f"Of {len(results)}: CRPS the best or within its standard error in {best}, the best in "
        f"{ahead}; coverage 88 to 92 % in {covered}, {min(coverages):.0f} to {max(coverages):.0f} "
        f"% in all, {statistics.median(coverages):.0f} % in the median; at most 5 ms a row in "
        f"{fast}."
    )
