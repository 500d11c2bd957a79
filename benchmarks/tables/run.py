"""Imputation of held-out rows of public tables, against scikit-learn's imputers.

    python benchmarks/tables/run.py [TABLE ...]       # CROSSCODING_DATA=folder with uci.npz

Half of the rows, 1,000 at most, are for training and as many others for the test; 30 or 50 % of the
cells of both are missing at random. Every method sees the same cells. RMSE and CRPS are of the
missing test cells, in standard deviations of the column; CRPS, coverage and width of the central
90 % intervals are of 100 draws, except for the KNN, which gives none: its CRPS is the absolute
error. Seconds are of one CPU. Writes benchmarks/results/tables.json.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from crosscoding.tables import VAEImputer

RESULTS = Path(__file__).parents[1] / "results" / "tables.json"
UCI = Path(os.environ.get("CROSSCODING_DATA", "../shared/data")) / "uci.npz"
SHARES = (0.3, 0.5)
MOST_ROWS = 1000
DRAWS = 100

Answer = tuple[np.ndarray, np.ndarray | None]
"""Filled-in rows (N, D), and draws of them, (S, N, D), if there are any."""


def tables() -> dict[str, np.ndarray]:
    found = {"wine": load_wine().data, "diabetes": load_diabetes().data}
    if UCI.is_file():
        with np.load(UCI) as saved:
            found |= {name: saved[name] for name in saved.files}
    return found


def vae(train: np.ndarray, test: np.ndarray, clock: dict[str, float]) -> Answer:
    names = [f"x{place}" for place in range(train.shape[1])]
    start = time.process_time()
    imputer = VAEImputer(random_state=0, progress=False, max_seconds=60)
    imputer.fit(pd.DataFrame(train, columns=names))
    clock["fit"] = time.process_time() - start
    rows = pd.DataFrame(test, columns=names)
    start = time.process_time()
    filled = imputer.transform(rows).to_numpy(dtype=float)
    clock["rows"] = time.process_time() - start
    draws = imputer.complete(rows, num=DRAWS)
    return filled, np.stack([table.to_numpy(dtype=float) for table in draws])


def knn(train: np.ndarray, test: np.ndarray, clock: dict[str, float]) -> Answer:
    start = time.process_time()
    imputer = KNNImputer().fit(train)
    clock["fit"] = time.process_time() - start
    start = time.process_time()
    filled = imputer.transform(test)
    clock["rows"] = time.process_time() - start
    return filled, None


def iterative(train: np.ndarray, test: np.ndarray, clock: dict[str, float]) -> Answer:
    start = time.process_time()
    mean = IterativeImputer(random_state=0, max_iter=20).fit(train)
    clock["fit"] = time.process_time() - start
    start = time.process_time()
    filled = mean.transform(test)
    clock["rows"] = time.process_time() - start
    drawing = IterativeImputer(random_state=0, max_iter=20, sample_posterior=True).fit(train)
    return filled, np.stack([drawing.transform(test) for _ in range(DRAWS)])


METHODS: dict[str, Callable[..., Answer]] = {
    "VAEImputer": vae,
    "KNNImputer": knn,
    "IterativeImputer": iterative,
}


def scores(truth: np.ndarray, gaps: np.ndarray, answer: Answer) -> dict[str, float]:
    """Errors on the missing cells of standardised rows; the CRPS's standard error is over rows."""
    filled, draws = answer
    error = np.where(gaps, filled - truth, np.nan)
    found = {"rmse": float(np.sqrt(np.nanmean(error**2)))}
    crps = np.abs(error)
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


def run(name: str, data: np.ndarray, share: float) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    num = min(len(data) // 2, MOST_ROWS)
    rows = data[rng.permutation(len(data))[: 2 * num]]
    centre, scale = rows[:num].mean(0), rows[:num].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    hidden = rng.random(rows.shape) < share
    gappy = np.where(hidden, np.nan, rows)
    truth, gaps = (rows[num:] - centre) / scale, hidden[num:]
    found = {}
    for method, impute in METHODS.items():
        clock: dict[str, float] = {}
        # scikit-learn's work on standardised rows; ours finds scales and kinds by itself
        units = (0.0, 1.0) if method == "VAEImputer" else (centre, scale)
        train, test = ((part - units[0]) / units[1] for part in (gappy[:num], gappy[num:]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled, draws = impute(train, test, clock)
        if method == "VAEImputer":
            filled = (filled - centre) / scale
            draws = None if draws is None else (draws - centre) / scale
        found[method] = scores(truth, gaps, (filled, draws)) | {
            "fit_seconds": clock["fit"],
            "milliseconds_per_row": 1000 * clock["rows"] / num,
        }
        words = ", ".join(f"{key} {value:.3f}" for key, value in found[method].items())
        print(f"{name}, {share:.0%} missing, {method}: {words}", flush=True)
    return found


def main() -> None:
    saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name, data in tables().items():
        if len(sys.argv) < 2 or name in sys.argv[1:]:
            for share in SHARES:
                saved[f"{name}, {share:.0%}"] = run(name, data, share)
                RESULTS.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
