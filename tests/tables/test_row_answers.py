"""Rows under conditions and densities of rows, on a linear-Gaussian table with exact answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Gaussian, Mixed
from crosscoding.tables import Column, Table, row_answers

NAMES = ["height", "weight", "income"]
SHIFT, SCALE, NOISE = np.array([170.0, 70.0, 3e4]), np.array([10.0, 12.0, 8e3]), 0.4
LOADINGS = np.array([[0.9, 0.0], [0.7, 0.5], [0.2, -0.8]])


def linear() -> cc.VAE:
    decoder = nn.Linear(2, 3).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.from_numpy(LOADINGS))
        decoder.bias.zero_()
    columns = [
        Column(name, "number", shift=shift, scale=scale)
        for name, shift, scale in zip(NAMES, SHIFT, SCALE, strict=True)
    ]
    return cc.VAE(decoder, 2, Gaussian(NOISE), table=Table.of(columns))


COVARIANCE = (LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(3)) * SCALE[:, None] * SCALE


def log_normal(places: list[int], values: np.ndarray) -> float:
    """log density of some columns in the users' units."""
    from scipy.stats import multivariate_normal

    own = np.ix_(places, places)
    return multivariate_normal.logpdf(values[places], SHIFT[places], COVARIANCE[own])


@pytest.fixture(scope="module")
def vae() -> cc.VAE:
    return linear()


def test_rows_without_gaps_are_not_asked(vae, monkeypatch):
    df = vae.sample(3, seed=0).set_axis(["x", "y", "z"])
    partly = df.assign(income=df["income"].where(df.index == "y", np.nan))
    asked, condition = [], row_answers.condition

    def counted(vae, evidence, *rest, **more):
        asked.append(len(evidence.values))
        return condition(vae, evidence, *rest, **more)

    monkeypatch.setattr(row_answers, "condition", counted)
    pd.testing.assert_frame_equal(vae.sample_remaining(df, seed=0), df)
    assert asked == []
    done = vae.sample_remaining(partly, seed=0)
    assert asked == [2]
    assert done.notna().all(axis=None)
    assert done.loc["y", "income"] == df.loc["y", "income"]


def test_many_rows_are_answered_in_blocks_that_fit_in_memory(vae, monkeypatch):
    df = vae.sample(7, seed=0)
    df.loc[[0, 2, 3, 5], "income"] = np.nan
    df.loc[[1, 3], "height"] = 180.0
    whole = vae.log_prob(df, given=["height"], seed=0)
    monkeypatch.setattr(row_answers, "_BYTES", 2 * 8 * 1000 * vae.latent_dim)  # of two queries
    asked, condition = [], row_answers.condition

    def counted(vae, evidence, *rest, **more):
        asked.append(len(evidence.values))
        return condition(vae, evidence, *rest, **more)

    monkeypatch.setattr(row_answers, "condition", counted)
    found = vae.log_prob(df, given=["height"], seed=0)
    assert max(asked) == 2
    np.testing.assert_allclose(found.log_prob, whole.log_prob, atol=1e-4)
    asked.clear()
    done = vae.sample_remaining(df, seed=0)
    assert asked == [2, 2]
    assert done.notna().all(axis=None)
    assert done["income"].nunique() == 7
    there = df.notna()
    assert (done.where(there) == df).where(there, True).all(axis=None)


def test_rows_have_the_conditional_moments(vae):
    """A height of 220 is 3.7 standard deviations off, which few draws of the prior reach."""
    rows = vae.sample(6000, {"height": 220.0}, seed=0)
    assert list(rows.columns) == NAMES
    assert (rows["height"] == 220.0).all()
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = SHIFT[1:] + gain * 50
    covariance = COVARIANCE[1:, 1:] - np.outer(gain, COVARIANCE[0, 1:])
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(rows[NAMES[1:]].mean() - mean) < 5 * deviation / 6000**0.5).all()
    np.testing.assert_allclose(rows[NAMES[1:]].cov(), covariance, rtol=0.15, atol=2e3)
    again = vae.sample(6000, {"height": 220.0}, seed=0)
    assert rows.equals(again)


def test_rows_keep_within_intervals(vae):
    rows = vae.sample(3000, {"height": (190, None), "income": (None, 2e4)}, seed=0)
    assert (rows["height"] >= 190).all()
    assert (rows["income"] <= 2e4).all()
    draws = np.random.default_rng(0).multivariate_normal(SHIFT, COVARIANCE, 2_000_000)
    exact = draws[(draws[:, 0] >= 190) & (draws[:, 2] <= 2e4), 1]
    assert rows["weight"].mean() == pytest.approx(exact.mean(), abs=5 * exact.std() / 1000**0.5)


def test_remaining_cells_are_drawn_row_by_row(vae):
    num = 4000
    known = pd.DataFrame({"height": np.random.default_rng(0).normal(170, 10, num).round(1)})
    known.loc[:1999, "height"] = 180.0  # as many rows that ask the same
    known.index = np.arange(num)[::-1]
    rows = vae.sample_remaining(known, seed=0)
    assert rows[["height"]].equals(known)
    gain = COVARIANCE[1, 0] / COVARIANCE[0, 0]
    residual = (rows["weight"] - 70 - gain * (rows["height"] - 170)).to_numpy()
    deviation = (COVARIANCE[1, 1] - gain * COVARIANCE[0, 1]) ** 0.5
    for part in (residual[:2000], residual[2000:]):
        assert abs(part.mean()) < 5 * deviation / 2000**0.5
        assert part.std() == pytest.approx(deviation, rel=0.1)
    # rows are independent of one another
    assert abs(np.corrcoef(residual[:-1], residual[1:])[0, 1]) < 5 / num**0.5


def test_log_prob_is_a_density_in_the_users_units(vae):
    df = pd.DataFrame([[181.0, 90.0, 2.5e4], [160.0, 61.0, 4e4]], columns=NAMES)
    found = vae.log_prob(df, seed=0)
    expected = [log_normal([0, 1, 2], row) for row in df.to_numpy()]
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-3)
    assert (found.error < 1e-3).all()
    some = vae.log_prob(df[["weight"]], seed=0)
    np.testing.assert_allclose(
        some.log_prob, [log_normal([1], row) for row in df.to_numpy()], atol=1e-3
    )
    given = vae.log_prob(df, given=["height", "income"], seed=0)
    known = [log_normal([0, 2], row) for row in df.to_numpy()]
    np.testing.assert_allclose(given.log_prob, np.subtract(expected, known), atol=2e-3)
    by_name = vae.log_prob(df, given="height", seed=0)
    by_value = vae.log_prob(df[NAMES[1:]].iloc[:1], given={"height": 181.0}, seed=0)
    np.testing.assert_allclose(by_name.log_prob[:1], by_value.log_prob, atol=2e-3)


def test_an_answer_that_is_not_trusted_warns(vae):
    method = cc.methods.Laplace()
    with pytest.warns(UserWarning, match=r"1 of 1 answer is not trusted for rows"):
        vae.sample(10, {"height": 180.0}, method=method, seed=0)
    with pytest.warns(UserWarning, match="not trusted for log p"):
        vae.log_prob(pd.DataFrame({"height": [180.0]}), method=method, seed=0)


def test_conditions_take_the_dtype_of_their_column():
    columns = [Column("x", "number", dtype="float64"), Column("kind", "class", ("a", "b"))]
    vae = cc.VAE(
        nn.Linear(2, 3), 2, Mixed([Gaussian(0.3), Categorical(2)]), table=Table.of(columns)
    )
    rows = vae.sample(5, {"x": 1}, seed=0)
    assert rows["x"].dtype == np.float64
    assert set(rows["kind"]) <= {"a", "b"}
    assert (vae.sample(5, {"kind": {"b"}}, seed=0)["kind"] == "b").all()
    assert len(vae.sample(0, seed=0)) == 0


def test_what_is_asked_wrongly_is_said(vae):
    with pytest.raises(TypeError, match="a model with a table"):
        cc.VAE(nn.Linear(2, 3), 2, Gaussian(0.1)).sample(3)
    with pytest.raises(ValueError, match="num"):
        vae.sample(2.5)
    with pytest.raises(TypeError, match="pandas DataFrame"):
        vae.sample_remaining({"height": [180.0]})
    for nothing in (None, [1.0], np.ones((1, 3))):
        with pytest.raises(TypeError, match="pandas DataFrame"):
            vae.sample_remaining(nothing)
        with pytest.raises(TypeError, match="pandas DataFrame"):
            vae.log_prob(nothing)
    with pytest.raises(ValueError, match="name columns of the DataFrame, got 5"):
        vae.log_prob(pd.DataFrame({"height": [180.0]}), given=5)
    with pytest.raises(TypeError, match="conditions by column"):
        vae.sample(2, given=["height"])
    with pytest.raises(ValueError, match="name columns of the DataFrame, got 'age'"):
        vae.log_prob(pd.DataFrame({"height": [180.0]}), given=["age"])
