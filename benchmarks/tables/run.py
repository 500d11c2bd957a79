"""Imputation of held-out rows of public tables, against other imputers.

    python benchmarks/tables/run.py [TABLE ...]       # CROSSCODING_DATA=folder with uci.npz
    python benchmarks/tables/run.py --print           # the table of docs/tables.md, from results

Half of the rows, 1,000 at most, are for training and as many others for the test. Three patterns of
missing cells: 30 or 50 % at random, and half of the cells of two thirds of the columns, the more
likely the larger a sum of the other columns, which are complete ("depends"). Every method sees the
same standardised cells. RMSE and CRPS are of the missing test cells; CRPS, coverage and width of
central 90 % intervals are of 100 draws, except for methods that give none: their CRPS is the
absolute error. Writes benchmarks/results/tables.json.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from imputers import METHODS, Answer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

RESULTS = Path(__file__).parents[1] / "results" / "tables.json"
UCI = Path(os.environ.get("CROSSCODING_DATA", "../shared/data")) / "uci.npz"
PATTERNS = ("30 %", "50 %", "depends")
MOST_ROWS = 1000


def tables() -> dict[str, np.ndarray]:
    loaders = {"wine": load_wine, "diabetes": load_diabetes, "breast cancer": load_breast_cancer}
    found = {name: load().data for name, load in loaders.items()}
    if UCI.is_file():
        with np.load(UCI) as saved:
            found |= {name: saved[name] for name in saved.files}
    return found


def hidden_cells(rows: np.ndarray, pattern: str, rng: np.random.Generator) -> np.ndarray:
    """Which cells of standardised rows are missing, boolean."""
    if pattern != "depends":
        return rng.random(rows.shape) < float(pattern.split()[0]) / 100
    order = rng.permutation(rows.shape[1])
    complete, others = np.split(order, [max(rows.shape[1] // 3, 1)])
    score = rows[:, complete] @ rng.choice([-1.0, 1.0], len(complete))
    score = (score - np.median(score)) / score.std()
    hidden = np.zeros(rows.shape, dtype=bool)
    hidden[:, others] = rng.random((len(rows), len(others))) < 1 / (1 + np.exp(-2 * score))[:, None]
    return hidden


def scores(truth: np.ndarray, gaps: np.ndarray, answer: Answer) -> dict[str, float]:
    """Errors on the missing cells of standardised rows; the CRPS's standard error is over rows."""
    error = np.where(gaps, answer.filled - truth, np.nan)
    found = {"rmse": float(np.sqrt(np.nanmean(error**2)))}
    crps, draws = np.abs(error), answer.draws
    if draws is not None:
        own = np.sort(draws, axis=0)
        num = len(own)
        weight = (2 * np.arange(num) - num + 1)[:, None, None]
        spread = (weight * own).sum(0) / num**2  # half of E|t − t′|
        crps = np.where(gaps, np.abs(draws - truth).mean(0) - spread, np.nan)
        low, high = np.quantile(draws, [0.05, 0.95], axis=0, method="inverted_cdf")
        found["coverage"] = float(((low <= truth) & (truth <= high))[gaps].mean())
        found["width"] = float((high - low)[gaps].mean())
    by_row = np.nanmean(crps[gaps.any(1)], axis=1)
    found["crps"] = float(np.nanmean(crps))
    found["crps_error"] = float(by_row.std() / np.sqrt(len(by_row)))
    return found


def run(name: str, data: np.ndarray, pattern: str) -> None:
    """Compare all methods on one table and pattern; the results of each are saved at once."""
    rng = np.random.default_rng(0)
    num = min(len(data) // 2, MOST_ROWS)
    rows = data[rng.permutation(len(data))[: 2 * num]]
    scale = rows[:num].std(0)
    rows = (rows - rows[:num].mean(0)) / np.where(scale > 0, scale, 1.0)
    hidden = hidden_cells(rows, pattern, rng)
    gappy = np.where(hidden, np.nan, rows)
    for method, impute in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = impute(gappy[:num], gappy[num:])
        found = scores(rows[num:], hidden[num:], answer) | {
            "fit_seconds": answer.fit,
            "milliseconds_per_row": 1000 * answer.rows / num,
        }
        save(f"{name}, {pattern}", method, found)
        words = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        print(f"{name}, {pattern} missing, {method}: {words}", flush=True)


def save(place: str, method: str, found: dict[str, float]) -> None:
    """Add results to those that other runs may have saved meanwhile."""
    results = saved()
    results.setdefault(place, {})[method] = found
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def printed(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The rows of the table in the docs, and what was wanted and is missed."""
    lines, best, covered, fast = [], 0, 0, 0
    for name, found in results.items():
        place = name
        for method, own in found.items():
            crps = f"{own['crps']:.3f} ± {own['crps_error']:.3f}"
            interval = "| |"
            if "coverage" in own:
                interval = f"{own['coverage']:.0%} | {own['width']:.1f} |".replace("%", " %")
            seconds = f"{own['fit_seconds']:.1f} | {own['milliseconds_per_row']:.1f}"
            lines.append(
                f"| {place} | {method} | {own['rmse']:.2f} | {crps} | {interval} {seconds} |"
            )
            place = ""
        ours = found["VAEImputer"]
        least = min(found.values(), key=lambda own: own["crps"])
        best += ours["crps"] <= least["crps"] + least["crps_error"]
        covered += 0.88 <= ours["coverage"] <= 0.92
        fast += ours["milliseconds_per_row"] <= 5
    num = len(results)
    lines.append(
        f"\nOf {num}: CRPS the best or within its standard error {best}, coverage 88 to 92 % "
        f"{covered}, at most 5 ms a row {fast}."
    )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)  # seconds are of one CPU
    wanted = [word for word in sys.argv[1:] if word != "--print"]
    if "--print" not in sys.argv:
        for name, data in tables().items():
            for pattern in PATTERNS if not wanted or name in wanted else ():
                run(name, data, pattern)
    print(printed(saved()))


def saved() -> dict[str, dict[str, dict[str, float]]]:
    """The results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


if __name__ == "__main__":
    main()
