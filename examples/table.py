"""Completes a table with gaps, gives intervals, and pools an analysis of completed tables.

    python examples/table.py

So that it runs anywhere, the script invents houses and hides a quarter of their cells. It needs the
extra `tables`: pip install 'crosscoding[tables]'.
"""

import numpy as np
import pandas as pd

from crosscoding.tables import VAEImputer, rubin


def houses(num: int, rng: np.random.Generator) -> pd.DataFrame:
    """A table of numbers, counts, classes and dates that all depend on size and place."""
    size, place = rng.normal(size=(2, num))
    return pd.DataFrame(
        {
            "area": 90 + 25 * size + 5 * rng.normal(size=num),
            "price": np.exp(12.5 + 0.4 * size + 0.3 * place + 0.1 * rng.normal(size=num)),
            "rooms": rng.poisson(np.exp(1.2 + 0.3 * size)),
            "garden": rng.random(num) < 1 / (1 + np.exp(3 * place - 2 * size)),
            "district": np.select([place > 0.7, place > -0.7], ["centre", "ring"], "village"),
            "built": pd.Timestamp("1985-01-01")
            + pd.to_timedelta(4000 * place, unit="D").round("D"),
        }
    )


def main() -> None:
    rng = np.random.default_rng(0)
    truth = houses(500, rng)
    hidden = rng.random(truth.shape) < 0.25
    df = truth.mask(hidden)

    imputer = VAEImputer(random_state=0, max_seconds=10).fit(df)
    print(imputer.table_, "\n")
    some = df.head(6)
    print("with gaps:", some, "completed:", imputer.transform(some), sep="\n")
    print("90 % intervals:", imputer.condition(some).frame("interval", level=0.9), sep="\n")

    intervals = imputer.condition(df).frame("interval", level=0.9)
    for name in ("area", "price", "rooms"):
        gaps = df[name].isna()
        low, high = intervals[(name, "low")][gaps], intervals[(name, "high")][gaps]
        inside = truth[name][gaps].between(low, high).mean()
        print(f"{name}: 90 % intervals contain {inside:.0%} of the hidden values")

    tables = imputer.complete(df, num=10)
    means = [table["price"].mean() for table in tables]
    pooled = rubin(means, [table["price"].var() / len(table) for table in tables])
    low, high = pooled.interval(0.95)
    print(f"mean price: {pooled.estimate:.0f}, 95 % between {low:.0f} and {high:.0f}")
    print(f"with nothing hidden, it is {truth['price'].mean():.0f}")


if __name__ == "__main__":
    main()
