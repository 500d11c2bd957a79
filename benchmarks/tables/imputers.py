"""The imputers that `run.py` compares. Each fits training rows and completes test rows.

All take arrays in which NaN means missing, and return rows filled with means, draws if the method
gives any, and CPU seconds. miceforest is left out if it is not installed.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from miwae import PublishedMIWAE
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from crosscoding.tables import VAEImputer

DRAWS = 100
_ROUNDS, _MORE_ROUNDS = 5, 40  # of miceforest: before the first draw, and one for each draw


@dataclass(frozen=True, eq=False)
class Answer:
    """What an imputer returns.

    Args:
        filled: Rows filled with means, (N, D).
        draws: Draws of the filled rows, (S, N, D), or None.
        fit: CPU seconds to fit.
        rows: CPU seconds to impute all rows.
    """

    filled: np.ndarray
    draws: np.ndarray | None
    fit: float
    rows: float


def vae(train: np.ndarray, test: np.ndarray) -> Answer:
    start = time.process_time()
    imputer = VAEImputer(random_state=0, progress=False, max_seconds=300).fit(_frame(train))
    fit, rows = time.process_time() - start, _frame(test)
    start = time.process_time()
    filled = imputer.transform(rows).to_numpy(dtype=float)
    seconds = time.process_time() - start
    draws = [table.to_numpy(dtype=float) for table in imputer.complete(rows, num=DRAWS)]
    return Answer(filled, np.stack(draws), fit, seconds)


def miwae(train: np.ndarray, test: np.ndarray) -> Answer:
    start = time.process_time()
    model = PublishedMIWAE().fit(train)
    fit, start = time.process_time() - start, time.process_time()
    filled, draws = model.impute(test, DRAWS)
    return Answer(filled, draws, fit, time.process_time() - start)


def knn(train: np.ndarray, test: np.ndarray) -> Answer:
    return _fitted(KNNImputer(), train, test)


def linear(train: np.ndarray, test: np.ndarray) -> Answer:
    mean = _fitted(IterativeImputer(random_state=0, max_iter=20), train, test)
    drawing = IterativeImputer(random_state=0, max_iter=20, sample_posterior=True).fit(train)
    draws = np.stack([drawing.transform(test) for _ in range(DRAWS)])
    return Answer(mean.filled, draws, mean.fit, mean.rows)


def forests(train: np.ndarray, test: np.ndarray) -> Answer:
    forest = RandomForestRegressor(n_estimators=30, random_state=0)
    return _fitted(IterativeImputer(forest, random_state=0, max_iter=5), train, test)


def miceforest(train: np.ndarray, test: np.ndarray) -> Answer:
    """Draws are successive rounds of its chain, on the rows of training and test together.

    In version 6.0.5, draws of `impute_new_data` for test rows were no closer than random cells.
    """
    import miceforest

    start = time.process_time()
    rows = _frame(np.concatenate([train, test]))
    kernel = miceforest.ImputationKernel(rows, random_state=0)
    kernel.mice(_ROUNDS, num_threads=1)
    fit, start = time.process_time() - start, time.process_time()
    kernel.mice(_MORE_ROUNDS, num_threads=1)
    seconds = (time.process_time() - start) / _MORE_ROUNDS
    rounds = range(_ROUNDS + 1, _ROUNDS + _MORE_ROUNDS + 1)
    tables = [kernel.complete_data(0, iteration=number).to_numpy(dtype=float) for number in rounds]
    draws = np.stack(tables)[:, len(train) :]
    return Answer(draws.mean(0), draws, fit, seconds)


def _fitted(imputer: KNNImputer | IterativeImputer, train: np.ndarray, test: np.ndarray) -> Answer:
    start = time.process_time()
    imputer.fit(train)
    fit, start = time.process_time() - start, time.process_time()
    filled = imputer.transform(test)
    return Answer(filled, None, fit, time.process_time() - start)


def _frame(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"x{place}" for place in range(rows.shape[1])])


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Answer]] = {
    "VAEImputer": vae,
    "MIWAE as published": miwae,
    "IterativeImputer, BayesianRidge": linear,
    "IterativeImputer, forests": forests,
    "KNNImputer": knn,
}
if importlib.util.find_spec("miceforest"):
    METHODS["miceforest"] = miceforest
