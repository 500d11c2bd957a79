"""Compares the imputation of held-out rows of public tables with other imputers.

    python benchmarks/tables/run.py                  # CROSSCODING_DATA=folder with uci.npz
    python benchmarks/tables/run.py --tables wine iris --methods VAEImputer
    python benchmarks/tables/run.py --print          # the tables of docs/tables.md, from results

Half of the rows, 300 at most, are for training and as many others for the test. Three patterns of
missing cells: 30 or 50 % at random, and half of the cells in two thirds of the columns, with a
probability that grows with a sum of the other, complete columns ("depends"). Every method sees the
same standardised cells. RMSE and CRPS are of the missing test cells; CRPS, coverage and width of
central 90 % intervals are of 100 draws, except for methods that give none: their CRPS is the
absolute error. Writes benchmarks/results/tables.json, to which `--methods` and `--patterns` add.
"""

import argparse
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from imputers import METHODS, Answer
from printing import printed
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

RESULTS = Path(__file__).parents[1] / "results" / "tables.json"
UCI = Path(os.environ.get("CROSSCODING_DATA", "../shared/data")) / "uci.npz"
PATTERNS = ("30 %", "50 %", "depends")
MOST_ROWS = 300


def tables() -> dict[str, np.ndarray]:
    loaders = (load_iris, load_wine, load_diabetes, load_breast_cancer)
    found = {load.__name__[5:].replace("_", " "): load().data for load in loaders}
    if UCI.is_file():
        with np.load(UCI) as saved:  # its breast is the breast cancer of scikit-learn
            found |= {name: saved[name] for name in saved.files if name != "breast"}
    return found


def num_training(data: np.ndarray) -> int:
    """Rows for training; as many others are for the test."""
    return min(len(data) // 2, MOST_ROWS)


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


def run(name: str, data: np.ndarray, pattern: str, methods: list[str]) -> None:
    """Compare methods on one table and pattern; the results of each are saved at once."""
    rng = np.random.default_rng(0)
    num = num_training(data)
    rows = data[rng.permutation(len(data))[: 2 * num]]
    scale = rows[:num].std(0)
    rows = (rows - rows[:num].mean(0)) / np.where(scale > 0, scale, 1.0)
    hidden = hidden_cells(rows, pattern, rng)
    gappy = np.where(hidden, np.nan, rows)
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = METHODS[method](gappy[:num], gappy[num:])
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


def main() -> None:
    torch.set_num_threads(1)  # seconds are of one CPU
    data = tables()
    parser = argparse.ArgumentParser(description="Compare imputers on public tables.")
    parser.add_argument("--tables", nargs="+", choices=data, default=list(data))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--print", action="store_true", help="only print the results there are")
    wanted = parser.parse_args()
    for pattern in () if wanted.print else wanted.patterns:
        for name in wanted.tables:
            run(name, data[name], pattern, wanted.methods)
    print(
        printed(saved(), {name: (num_training(rows), rows.shape[1]) for name, rows in data.items()})
    )


def saved() -> dict[str, dict[str, dict[str, float]]]:
    """The results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


if __name__ == "__main__":
    main()
