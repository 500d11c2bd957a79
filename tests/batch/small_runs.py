"""A small model of a table, files of rows for it, and runs on them."""

import json

import numpy as np
import torch
from torch import nn

import crosscoding as cc
from crosscoding.tables import Column, Table

TABLE = Table.of(
    [
        Column("age", "number", shift=40.0, scale=10.0, step=1.0, dtype="int64"),
        Column("city", "class", ("Bonn", "Ulm", "01067"), dtype="str"),
        Column("rooms", "ordinal", (1, 2, 3)),
        Column("sold", "date", shift=1.5e9, scale=86400.0 * 300, step=86400.0),
        Column("price", "positive", scale=2e5),
    ]
)
CHEAP = cc.methods.Importance(num_draws=300)


def table_model():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, TABLE.num_params))
    return cc.VAE(decoder, 2, TABLE.likelihood(), table=TABLE)


def rows(num, *, seed=0):
    """Rows of the table with gaps, as cells of text, one list for each row."""
    random = np.random.default_rng(seed)
    ages = random.integers(20, 80, num)
    cities = random.choice(["Bonn", "Ulm", "01067"], num)
    rooms = random.integers(1, 4, num)
    days = random.integers(1, 29, num)
    prices = random.lognormal(12, 0.5, num).round(2)
    cells = [
        [str(age), city, str(room), f"2017-03-{day:02d}", str(price)]
        for age, city, room, day, price in zip(ages, cities, rooms, days, prices, strict=True)
    ]
    for row, gaps in zip(cells, random.random((num, 5)) < 0.4, strict=True):
        row[:] = ["" if gap else cell for cell, gap in zip(row, gaps, strict=True)]
    return cells


def write_csv(path, cells, names=TABLE.names):
    lines = [",".join(map(str, names)), *(",".join(row) for row in cells)]
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(out):
    """The shards of a run as a DataFrame, without the seconds, which no two runs share."""
    import pandas as pd

    return pd.read_parquet(out / "shards").drop(columns="seconds")


def rejected(out):
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {row["row"]: row["reason"] for row in map(json.loads, lines)}


def run(model, source, out, **options):
    options = {"method": CHEAP, "shard_rows": 10, "progress": False, **options}
    return cc.batch.run(model, source, out, **options)
