"""Draws rows under conditions from a trained TVAE of ctgan, whose own `sample` takes none.

    python examples/adapters/ctgan_table.py        (needs crosscoding[ctgan])

So that it runs anywhere, the script trains a TVAE for seconds on invented houses; load your own
instead. Writes ctgan_table.png: all rows of the model, and rows under two conditions.
"""

import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ctgan import TVAE

import crosscoding as cc


def houses(num: int, rng: np.random.Generator) -> pd.DataFrame:
    size, place = rng.normal(size=(2, num))
    garden = rng.random(num) < 1 / (1 + np.exp(3 * place - 2 * size))
    return pd.DataFrame(
        {
            "area": (90 + 25 * size + 5 * rng.normal(size=num)).round(1),
            "price": np.exp(12.5 + 0.4 * size + 0.3 * place + 0.1 * rng.normal(size=num)).round(),
            "garden": np.where(garden, "yes", "no"),
            "district": np.select([place > 0.7, place > -0.7], ["centre", "ring"], "village"),
        }
    )


def main() -> None:
    warnings.simplefilter("ignore")  # from ctgan, while it trains
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (ctgan uses it)
    tvae = TVAE(epochs=60, batch_size=200, embedding_dim=16, enable_gpu=False)
    tvae.fit(houses(3000, np.random.default_rng(0)), ["garden", "district"])

    model = cc.adapters.from_ctgan(tvae)
    conditions = {"district": "centre", "price": (200_000, 250_000)}
    rows = model.sample(500, conditions, seed=0)
    print(rows.head(), "\n")

    known = pd.DataFrame({"area": [70.0, 130.0], "district": ["centre", "village"]})
    posterior = cc.condition(model, known, cc.methods.Auto(purpose="interval"), seed=0)
    print(posterior.frame("interval", level=0.9, seed=0)["price"].round(-3), "\n")
    for verdict in posterior.verdicts:
        print(f"intervals: {verdict.purposes['interval']}; {verdict.reasons[0]}")

    everything = model.sample(500, seed=0)
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    kinds = {"all rows": everything, "in the centre, 200 to 250 thousand": rows}
    for (label, drawn), colour in zip(kinds.items(), ("0.75", "tab:blue"), strict=True):
        axis.scatter(drawn["area"], drawn["price"] / 1000, s=8, color=colour, label=label)
    axis.set(xlabel="area, m²", ylabel="price, thousands", ylim=(0, 900))
    axis.legend(frameon=False)
    figure.savefig("ctgan_table.png", dpi=110)


if __name__ == "__main__":
    main()
