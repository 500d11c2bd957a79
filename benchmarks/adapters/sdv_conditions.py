"""Rows under conditions: SDV's own sampling, `VAE.sample`, and exact rejection from prior draws.

    python benchmarks/adapters/sdv_conditions.py synthesizer.pkl [--draws 2000000]

The synthesizer is one that you trained and trust (it is a pickle), on the table of diamonds with
carat, cut, color, clarity, depth, table and price. Rejection keeps those of many draws of the
complete model that meet the conditions, numbers after rounding. The distance of rows to these is the
mean over the other columns of Kolmogorov–Smirnov distances (numbers) and total variations (classes);
"floor" is what as many rows of the rejection itself have.
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
import torch
from scipy.stats import ks_2samp
from sdv.sampling import Condition
from sdv.utils import load_synthesizer

import crosscoding as cc

CONDITIONS = {
    "color D": {"color": "D"},
    "Fair, D": {"cut": "Fair", "color": "D"},
    "D, IF": {"color": "D", "clarity": "IF"},
    "2 carat, Fair": {"carat": 2.0, "cut": "Fair"},
    "2 carat, Fair, D": {"carat": 2.0, "cut": "Fair", "color": "D"},
    "price 15000, IF": {"price": 15000, "clarity": "IF"},
    "3 carat, Ideal, D, IF": {"carat": 3.0, "cut": "Ideal", "color": "D", "clarity": "IF"},
    "0.3 carat, price 3000, I1": {"carat": 0.3, "price": 3000, "clarity": "I1"},
}


def prior_rows(vae: cc.VAE, num: int, size: int = 50_000):
    for start in range(0, num, size):
        values = vae.sample_prior(size, seed=start)
        yield vae.table.from_tensors(values.numpy())


def meets(rows: pd.DataFrame, condition: dict) -> pd.Series:
    return (rows[list(condition)] == pd.Series(condition)).all(axis=1)


def distance(rows: pd.DataFrame, exact: pd.DataFrame, condition: dict) -> float:
    found = []
    for name in exact.columns.difference(list(condition)):
        if rows[name].dtype == object:
            shares = [frame[name].value_counts(normalize=True) for frame in (rows, exact)]
            found.append(0.5 * shares[0].subtract(shares[1], fill_value=0).abs().sum())
        else:
            found.append(ks_2samp(rows[name], exact[name]).statistic)
    return float(np.mean(found))


def of_sdv(synthesizer, condition: dict, num: int) -> tuple[pd.DataFrame, float]:
    start = time.process_time()
    try:
        (rows,) = synthesizer.sample_from_conditions([Condition(condition, num_rows=num)]).values()
    except ValueError:
        rows = pd.DataFrame()
    return rows, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("synthesizer")
    parser.add_argument("--draws", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=1000)
    settings = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    synthesizer = load_synthesizer(settings.synthesizer)
    vae = cc.adapters.from_sdv(synthesizer)
    kept = {name: [] for name in CONDITIONS}
    start = time.process_time()
    for rows in prior_rows(vae, settings.draws):
        for name, condition in CONDITIONS.items():
            kept[name].append(rows[meets(rows, condition)])
    print(f"rejection from {settings.draws} draws: {time.process_time() - start:.0f} CPU s")
    print("| condition | exact | SDV rows | CPU s | distance | floor | crosscoding rows | CPU s | "
          "distance | floor |")  # fmt: skip
    for name, condition in CONDITIONS.items():
        exact = pd.concat(kept[name])
        theirs, their_seconds = of_sdv(synthesizer, condition, settings.rows)
        start = time.process_time()
        ours = vae.sample(settings.rows, condition, seed=0, progress=False)
        seconds = time.process_time() - start
        cells = []
        for rows, spent in ((theirs, their_seconds), (ours, seconds)):
            apart, floor = np.nan, np.nan
            if len(rows) and len(exact) > 20:
                apart = distance(rows, exact, condition)
                half = exact.sample(min(len(rows), len(exact) // 2), random_state=0)
                floor = distance(half, exact.drop(half.index, errors="ignore"), condition)
            cells += [str(len(rows)), f"{spent:.1f}", f"{apart:.3f}", f"{floor:.3f}"]
        print(f"| {name} | {len(exact)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
