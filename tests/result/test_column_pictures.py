"""`Posterior.plot` of tables: columns in the user's units, with densities of the draws."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import crosscoding as cc
from crosscoding.plots import Panels
from crosscoding.result.column_pictures import _Columns
from crosscoding.result.views import View


def figure_of(panels: Panels) -> Figure:
    figure = panels.figure
    figure.canvas.draw()  # whatever is wrong with it is found when it is drawn
    return figure


def table_model() -> tuple[cc.VAE, pd.DataFrame]:
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        {
            "height $ in cm": rng.normal(170, 10, 40),
            "income": np.exp(rng.normal(10, 1, 40)),
            "children": rng.poisson(2, 40),
            "town": rng.choice(["Bonn", "Ulm", "Köln"], 40),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], 40), ["S", "M", "L"], ordered=True),
            "member": rng.random(40) < 0.5,
            "born": pd.Timestamp("1990-01-01") + pd.to_timedelta(rng.integers(0, 9e3, 40), "D"),
            "commute": pd.to_timedelta(rng.integers(600, 7200, 40), "s"),
        }
    )
    table = cc.tables.Table(df)
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, table.num_params))
    return cc.VAE(decoder, 2, table.likelihood(), table=table), df


@pytest.fixture(scope="module")
def table_posterior():
    vae, df = table_model()
    rows = df.head(3).copy()
    for name in ("height $ in cm", "children", "town", "born"):
        rows[name] = None
    return cc.condition(vae, rows, seed=0)


def test_densities_of_columns_are_those_of_the_draws(table_posterior):
    view = View(table_posterior._of([0, 1, 2]), ["a", "b", "c"], 0)
    columns = _Columns(view, table_posterior.target.model.table, 0.9)
    draws = table_posterior.predict(4000, seed=1).double().numpy()
    for place in (0, 6):  # a number and a date, in tensors' units
        x, density = columns._places[..., place], columns._density[..., place]
        for query in range(3):
            total = np.trapezoid(density[:, query], x[:, query])
            assert total == pytest.approx(1.0, abs=0.02)
            mean = np.trapezoid(density[:, query] * x[:, query], x[:, query])
            own = draws[:, query, place]
            assert mean == pytest.approx(own.mean(), abs=5 * own.std() / 60)
    counts, mass = columns._places[:, 0, 2], columns._density[:, 0, 2]
    assert np.array_equal(counts, np.round(counts))
    for count in range(3):
        share = (draws[:, 0, 2] == count).mean()
        assert mass[counts == count][0] == pytest.approx(share, abs=0.03)


def test_columns_are_drawn_in_the_users_units(table_posterior):
    panels = table_posterior.plot()
    assert panels.shape == (1, 8)
    figure_of(panels)
    low, high = panels[0, 0].get_xlim()
    assert 100 < low < high < 240
    assert panels[0, 0].get_title("left") == r"height \$ in cm"
    given = float(table_posterior.target.evidence.frame["income"].iloc[0])
    assert panels[0, 1].lines[0].get_xdata()[0] == pytest.approx(given, rel=1e-5)
    assert "given: " in panels[0, 1].texts[0].get_text()
    years = [mpl.dates.num2date(x).year for x in panels[0, 6].get_xlim()]
    assert 1950 < years[0] < years[1] < 2060
    bars = panels[0, 3].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(1.0, abs=1e-4)
    assert panels[0, 7].get_xlabel() == "min"


def test_conditions_on_columns_are_shown():
    vae, _ = table_model()
    evidence = vae.table.query(
        {"height $ in cm": (165, 175), "income": (None, 9e4), "children": {0, 2, 4}},
        town={"Bonn", "Ulm"},
        size=("M", None),
    )
    posterior = cc.condition(vae, evidence, seed=0)
    panels = posterior.plot()
    figure_of(panels)
    words = [axes.texts[-1].get_text() for axes in panels.flat]
    assert words[0].startswith("known: 165 to 175\n90%: ")
    assert words[1].startswith("known: ≤ 90,000\n")
    assert words[2].startswith("known: one of 0, 2, 4\n")
    dashed = [line for line in panels[0, 0].lines if line.get_linestyle() == "--"]
    assert sorted(line.get_xdata()[0] for line in dashed) == pytest.approx([165, 175], rel=1e-5)
    inside = panels[0, 0].lines[0].get_xdata()
    assert 164.99 < inside.min() < inside.max() < 175.01
    assert [text.get_text() for text in panels[0, 3].texts].count("excluded") == 1
    assert [text.get_text() for text in panels[0, 4].texts].count("excluded") == 1


def test_columns_by_name_and_several_rows(table_posterior):
    panels = table_posterior.plot(only=["town", "children"], queries=[0, 2])
    assert panels.shape == (2, 2)
    figure_of(panels)
    assert panels[1, 0].get_ylabel() == f"row 2\n{table_posterior.verdicts[2].label}"
    with pytest.raises(ValueError, match=r"expected a column in only among .*, got 'nothing'"):
        table_posterior.plot(only=["nothing"])
    with pytest.raises(ValueError, match="at least one column"):
        table_posterior.plot(only=[])
