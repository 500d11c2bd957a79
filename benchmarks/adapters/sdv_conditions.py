"""Compares rows drawn under conditions by SDV and by the adapter with a reference.

    python benchmarks/adapters/sdv_conditions.py synthesizer.pkl table.csv [--draws 2000000]

The synthesizer is one that you trained and trust (it is a pickle), on the table of diamonds: the
columns in CONDITIONS, and depth. For the reference, many draws of z from the prior are resampled
with weights p(conditions|z). The distance of rows to it is the mean, over the other columns, of
Kolmogorov–Smirnov distances (numbers) and total variations (classes); "floor" is the distance of as
many rows of the reference itself. "One in" is how many draws of the model it takes for one that
passes SDV's test of a row, which allows floats an error of 1 %.
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
KNOWN = ["cut", "color", "price"]
SIZE = 50_000
MOST_REFERENCE = 20_000


def prior(vae: cc.VAE, piece: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(piece)
    return torch.randn(SIZE, vae.latent_dim, generator=generator, dtype=vae.dtype)


def weights(vae: cc.VAE, pieces: int) -> torch.Tensor:
    """log p(conditions|z) of all draws, (draws, conditions)."""
    asked = [vae.table.query(c, dtype=vae.dtype) for c in CONDITIONS.values()]
    values, mask = (torch.cat([getattr(e, name) for e in asked]) for name in ("values", "mask"))
    likelihood, found = vae.flat_likelihood, []
    for piece in range(pieces):
        params = vae.decode_flat(prior(vae, piece))[:, None]
        terms = [
            likelihood.masked_log_prob(params, v[None], m[None])
            for v, m in zip(values, mask, strict=True)
        ]
        found.append(torch.cat(terms, 1))
    return torch.cat(found)


def reference(vae: cc.VAE, log_weights: torch.Tensor, condition: dict, num: int) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(log_weights.softmax(0), num, True, generator=generator).sort()[0]
    z = torch.cat(
        [
            prior(vae, int(piece))[chosen[chosen // SIZE == piece] % SIZE]
            for piece in (chosen // SIZE).unique()
        ]
    )
    likelihood, params = vae.flat_likelihood, vae.decode_flat(z)
    noise = likelihood.noise((num, vae.data_size), generator=generator, like=params)
    rows = vae.table.from_tensors(likelihood.draw(params, noise).numpy())
    return rows.assign(**condition)


def distance(rows: pd.DataFrame, exact: pd.DataFrame, condition: dict) -> float:
    found = []
    for name in exact.columns.difference(list(condition)):
        if exact[name].dtype.kind not in "fi":
            shares = [frame[name].value_counts(normalize=True) for frame in (rows, exact)]
            found.append(0.5 * shares[0].subtract(shares[1], fill_value=0).abs().sum())
        else:
            found.append(ks_2samp(rows[name], exact[name]).statistic)
    return float(np.mean(found))


def timed(function, *arguments, **settings):
    """The rows that a function returns, none if SDV gives up, and its CPU seconds."""
    start = time.process_time()
    try:
        rows = function(*arguments, **settings)
    except ValueError:
        rows = pd.DataFrame()
    rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
    return rows, time.process_time() - start


def window(condition: dict) -> float:
    """Volume of the window of numbers in which SDV accepts a row as a match."""
    return float(np.prod([0.02 * v for v in condition.values() if isinstance(v, float)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("synthesizer")
    parser.add_argument("table")
    parser.add_argument("--draws", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=1000)
    settings = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    synthesizer, df = load_synthesizer(settings.synthesizer), pd.read_csv(settings.table)
    vae, num = cc.adapters.from_sdv(synthesizer), settings.rows
    start = time.process_time()
    log_weights = weights(vae, settings.draws // SIZE)
    print(f"{len(log_weights)} draws of the prior: {time.process_time() - start:.0f} CPU s")
    print("| condition | one in | reference ESS | SDV: rows | CPU s | distance | floor |"
          " crosscoding: rows | CPU s | distance | floor |\n" + "| --- " * 11 + "|")  # fmt: skip
    for own, (name, condition) in zip(log_weights.T, CONDITIONS.items(), strict=True):
        ess = (2 * own.logsumexp(0) - (2 * own).logsumexp(0)).exp().item()
        exact = reference(vae, own, condition, MOST_REFERENCE)
        unit = vae.table.query(condition, dtype=vae.dtype).mask[0]
        scales = sum(np.log(c.scale) for c, m in zip(vae.table.columns, unit, strict=True) if m)
        log_prob = own.logsumexp(0).item() - np.log(len(own)) - scales
        asked = [Condition(condition, num_rows=num)]
        cells = []
        for rows, seconds in (
            timed(synthesizer.sample_from_conditions, asked),
            timed(vae.sample, num, condition, seed=0, progress=False),
        ):
            apart, floor = "", ""
            if len(rows):
                half = reference(vae, own, condition, MOST_REFERENCE + len(rows)).iloc[
                    np.random.default_rng(0).permutation(MOST_REFERENCE)[: len(rows)]
                ]
                apart = f"{distance(rows, exact, condition):.3f}"
                floor = f"{distance(half, exact, condition):.3f}"
            cells += [str(len(rows)), f"{seconds:.1f}", apart, floor]
        rarity = f"{1 / (np.exp(log_prob) * window(condition)):.2g}"
        print(f"| {name} | {rarity} | {ess:.0f} | {' | '.join(cells)} |", flush=True)
    known = df[KNOWN].sample(20, random_state=0)
    theirs, their_seconds = timed(synthesizer.sample_remaining_columns, known)
    ours, seconds = timed(vae.sample_remaining, known, seed=0, progress=False)
    print(f"{len(known)} rows with {', '.join(KNOWN)} known:")
    print(f"SDV {len(theirs)} rows, {their_seconds:.0f} CPU s")
    print(f"crosscoding {len(ours)} rows, {seconds:.0f} CPU s")


if __name__ == "__main__":
    main()
