"""Completes rows with a trained TVAESynthesizer of SDV, however rare their known values are.

    python examples/adapters/sdv_table.py          (needs crosscoding[sdv])

So that it runs anywhere, the script trains a synthesizer for seconds on invented hotel guests; load
your own instead. Writes sdv_table.png: rates by type of room, in January and in July.
"""

import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sdv.metadata import Metadata
from sdv.single_table import TVAESynthesizer

import crosscoding as cc

ROOMS = ["BASIC", "DELUXE", "SUITE"]


def guests(num: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rates depend on the room and, with a peak in July, on the day of arrival."""
    day, room = rng.integers(0, 365, num), rng.choice(3, num, p=[0.6, 0.3, 0.1])
    season = 60 * np.exp(-(((day - 195) / 50) ** 2))
    return pd.DataFrame(
        {
            "checkin": pd.Timestamp("2020-01-01") + pd.to_timedelta(day, "D"),
            "room_type": np.array(ROOMS)[room],
            "room_rate": (90 + 60 * room + season + 8 * rng.normal(size=num)).round(2),
        }
    )


def main() -> None:
    warnings.simplefilter("ignore")  # from SDV, while it trains
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (SDV uses it)
    data = {"guests": guests(2000, np.random.default_rng(0))}
    metadata = Metadata.detect_from_dataframes(data)
    synthesizer = TVAESynthesizer(metadata, epochs=150, batch_size=200, enable_gpu=False)
    synthesizer.fit(data)

    model = cc.adapters.from_sdv(synthesizer)
    known = pd.DataFrame({"room_type": ["SUITE", "BASIC"], "room_rate": [260.0, None]})
    print(model.sample_remaining(known, seed=0), "\n")

    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
    months = {"January": ("2020-01-01", "2020-01-31"), "July": ("2020-07-01", "2020-07-31")}
    for axis, (month, dates) in zip(axes, months.items(), strict=True):
        for room in ROOMS:
            rows = model.sample(200, {"checkin": dates, "room_type": room}, seed=0)
            axis.hist(rows["room_rate"], bins=np.arange(60, 320, 8), alpha=0.7, label=room)
            median = rows["room_rate"].median()
            print(f"{room} in {month}: median rate {median:.0f}, of {len(rows)} rows")
        axis.set(title=month, xlabel="room rate")
    axes[0].legend(frameon=False)
    figure.savefig("sdv_table.png", dpi=110)


if __name__ == "__main__":
    main()
