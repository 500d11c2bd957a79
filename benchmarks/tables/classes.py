"""Compares the accuracy of imputed classes with that of other imputers.

    python benchmarks/tables/classes.py        # CROSSCODING_DATA=folder with uci.npz

The last column of each table is a class. Half of the rows, 300 at most, are for training; in the
others, the class is missing. In both, 30 % of all other cells are missing at random. `VAEImputer`
is told which column is a class; imputers of numbers see its code, and what they impute counts as
the nearest code. Writes benchmarks/results/table_classes.json.
"""

import json
import warnings
from collections.abc import Callable

import numpy as np
import printing
import torch
from run import RESULTS, num_training, tables
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from crosscoding.tables import VAEImputer

MISSING = 0.3
Impute = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Fills the test rows, the second array, after a fit to the training rows."""


def classed_tables() -> dict[str, np.ndarray]:
    """Tables whose last column is the code of a class."""
    found = {}
    for load in (load_iris, load_wine, load_breast_cancer):
        data = load()
        name = load.__name__[5:].replace("_", " ")
        found[name] = np.column_stack([data.data, data.target])
    if "banknote" in (others := tables()):
        found["banknote"] = others["banknote"]
    return found


def vae(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    last = train.shape[1] - 1
    imputer = VAEImputer(kinds={last: "class"}, random_state=0, progress=False)
    return imputer.fit(train).transform(test)


def of_numbers(imputer: IterativeImputer | KNNImputer | SimpleImputer) -> Impute:
    return lambda train, test: imputer.fit(train).transform(test)


METHODS: dict[str, Impute] = {
    "VAEImputer": vae,
    "IterativeImputer, BayesianRidge": of_numbers(IterativeImputer(random_state=0, max_iter=20)),
    "IterativeImputer, forests": of_numbers(
        IterativeImputer(
            RandomForestRegressor(n_estimators=30, random_state=0), random_state=0, max_iter=5
        )
    ),
    "KNNImputer": of_numbers(KNNImputer()),
    "most frequent": of_numbers(SimpleImputer(strategy="most_frequent")),
}


def accuracies(data: np.ndarray) -> dict[str, float]:
    """Each method's share of correct classes."""
    rng = np.random.default_rng(0)
    num = num_training(data)
    rows = data[rng.permutation(len(data))[: 2 * num]].astype(float)
    scale = rows[:num, :-1].std(0)
    rows[:, :-1] = (rows[:, :-1] - rows[:num, :-1].mean(0)) / np.where(scale > 0, scale, 1.0)
    hidden = rng.random(rows.shape) < MISSING
    hidden[num:, -1] = True
    gappy, codes = np.where(hidden, np.nan, rows), np.unique(rows[:, -1])
    found = {}
    for name, impute in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled = impute(gappy[:num], gappy[num:])[:, -1]
        nearest = codes[np.abs(filled[:, None] - codes).argmin(1)]
        found[name] = float((nearest == rows[num:, -1]).mean())
    return found | {"rows": num}


def main() -> None:
    torch.set_num_threads(1)
    results = {name: accuracies(data) for name, data in classed_tables().items()}
    text = json.dumps(results, indent=1)
    (RESULTS.parent / "table_classes.json").write_text(text + "\n")
    heads = [printing.METHODS.get(method, method) for method in METHODS]
    lines = [["table, test rows", *heads], ["---"] * (1 + len(METHODS))]
    for name, found in results.items():
        cells = [f"{100 * found[method]:.0f} %" for method in METHODS]
        lines.append([f"{name}, {found['rows']}", *cells])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
