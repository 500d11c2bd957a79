"""The imputer as an estimator, and its answers against exact ones."""

import pickle
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.tables import Column, Table

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from crosscoding.tables import VAEImputer  # noqa: E402

QUICK = {"max_epochs": 2, "latent_dim": 1, "hidden": 8, "random_state": 0, "progress": False}


def gappy(num: int = 120, share: float = 0.3, seed: int = 0) -> "pd.DataFrame":
    """Mixed columns that depend on one hidden size, with gaps."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=num)
    df = pd.DataFrame(
        {
            "area": 80 + 20 * size + 5 * rng.normal(size=num),
            "city": np.where(size + 0.5 * rng.normal(size=num) > 0, "Bonn", "Ulm"),
            "income": np.exp(8 + size + 0.3 * rng.normal(size=num)),
            "kids": rng.poisson(np.exp(0.5 + 0.4 * size)),
            "size": pd.Categorical(
                np.select([size < -0.5, size < 0.5], ["s", "m"], "l"), ["s", "m", "l"], ordered=True
            ),
        },
        index=np.arange(num) * 2,
    )
    return df.mask(pd.DataFrame(rng.random(df.shape) < share, df.index, df.columns))


def linear(share: float = 0.4, num: int = 400) -> tuple[cc.VAE, "pd.DataFrame", np.ndarray]:
    """A linear-Gaussian model with a table, rows with gaps, and the exact conditional means."""
    names = [Column(name, "number", shift=5.0, scale=2.0) for name in "abcd"]
    table, decoder = Table.of(names), nn.Linear(2, 4).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[1.0, 0], [0.5, 1], [0, -1], [1, 1]]))
        decoder.bias.zero_()
    vae = cc.VAE(decoder, 2, cc.likelihoods.Gaussian(0.5), table=table)
    data = vae.sample_prior(num, seed=0)
    mask = torch.rand(num, 4, generator=torch.Generator().manual_seed(1)) > share
    mean = cc.condition(vae, cc.Evidence(data, mask), cc.methods.Auto(), seed=0).mean()
    covariance = decoder.weight @ decoder.weight.mT + 0.25 * torch.eye(4).double()
    exact = torch.where(mask, data, 0.0)
    for row, seen in enumerate(mask):
        inverse = torch.linalg.inv(covariance[seen][:, seen])
        exact[row, ~seen] = covariance[~seen][:, seen] @ inverse @ data[row, seen]
    torch.testing.assert_close(mean, exact, atol=0.2, rtol=0)
    df = pd.DataFrame(data.numpy() * 2 + 5, columns=list("abcd")).mask(~mask.numpy())
    return vae, df, exact.detach().numpy() * 2 + 5


@pytest.mark.slow
def test_it_passes_scikit_learns_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(VAEImputer(**QUICK))


def test_a_given_model_fills_gaps_with_its_conditional_means():
    vae, df, exact = linear()
    done = VAEImputer(vae, progress=False, random_state=0).fit(df).transform(df)
    observed = df.notna().to_numpy()
    assert (done.to_numpy()[observed] == df.to_numpy()[observed]).all()
    error = (done.to_numpy() - exact)[~observed]
    assert np.abs(error).max() < 0.35  # 1,000 draws of deviations up to 2.7


def test_completed_tables_have_the_conditional_spread_and_independent_rows():
    vae, df, exact = linear()
    tables = VAEImputer(vae, progress=False).fit(df).complete(df, num=8, seed=0)
    gaps = df.isna().to_numpy()
    residuals = np.stack([table.to_numpy() - exact for table in tables])[:, gaps]
    spread = cc.condition(vae, df, seed=0).std().detach().numpy()[gaps] * 2
    scaled = residuals / spread
    assert abs(scaled.std() - 1) < 0.05
    # the mean over gaps of one table, which would be of order 1 if rows shared their noise
    assert np.abs(scaled.mean(1)).max() < 6 / np.sqrt(gaps.any(1).sum())
    assert abs(np.corrcoef(scaled[0], scaled[1])[0, 1]) < 6 / np.sqrt(len(scaled[0]))


@pytest.mark.slow
def test_rubins_interval_covers_the_mean_as_often_as_it_says():
    """With the true model the rules are exact up to the number of tables."""
    inside, total = 0, 60
    vae = linear()[0]
    for seed in range(total):
        data = vae.sample_prior(60, seed=seed)
        mask = torch.rand(60, 4, generator=torch.Generator().manual_seed(seed)) > 0.4
        df = pd.DataFrame(data.numpy() * 2 + 5, columns=list("abcd")).mask(~mask.numpy())
        imputer = VAEImputer(vae, progress=False).fit(df)
        tables = imputer.complete(df, num=10, seed=seed)
        values = [table["d"].mean() for table in tables]
        pooled = cc.tables.rubin(values, [table["d"].var() / 60 for table in tables], df=59)
        low, high = pooled.interval(0.9)
        inside += low <= 5 <= high
    assert 0.9 - 4 * np.sqrt(0.09 / total) < inside / total <= 1.0


@pytest.mark.slow
def test_a_trained_imputer_beats_the_marginals_and_its_intervals_cover():
    df, full = gappy(800), gappy(800, share=0.0)
    imputer = VAEImputer(random_state=0, progress=False).fit(df)
    done = imputer.transform(df)
    interval = imputer.condition(df).frame("interval", seed=0)
    for name in ("area", "income"):
        gaps = df[name].isna()
        truth, found = np.log(full[name][gaps]), np.log(done[name][gaps])
        assert ((truth - found) ** 2).mean() < 0.5 * truth.var()
        low, high = (interval[(name, end)][gaps] for end in ("low", "high"))
        inside = ((low <= full[name][gaps]) & (full[name][gaps] <= high)).mean()
        assert 0.8 < inside < 0.97
    gaps = df["city"].isna()
    assert (done["city"][gaps] == full["city"][gaps]).mean() > 0.75
    assert imputer.bounds_[-1] > imputer.bounds_[0]


def test_frames_come_back_as_they_were():
    df = gappy()
    imputer = VAEImputer(**QUICK).fit(df)
    done = imputer.transform(df[::-1])
    assert done.index.tolist() == df.index.tolist()[::-1]
    assert done.dtypes.to_dict() == df.dtypes.to_dict()
    assert not done.isna().any(axis=None)
    for name in df.columns:
        seen = df[name].notna()
        assert (done[name][::-1][seen] == df[name][seen]).all()
    assert imputer.get_feature_names_out().tolist() == df.columns.tolist()
    assert imputer.table_ == Table(df)


def test_arrays_come_back_as_arrays_and_set_output_makes_frames():
    values = gappy()[["area", "income"]].to_numpy(dtype="float32")
    imputer = VAEImputer(**QUICK).fit(values)
    done = imputer.transform(values)
    assert isinstance(done, np.ndarray)
    assert done.dtype == np.float32
    seen = ~np.isnan(values)
    assert (done[seen] == values[seen]).all()
    frame = clone(imputer).set_output(transform="pandas").fit_transform(values)
    np.testing.assert_array_equal(frame.to_numpy(), done)
    scaled = make_pipeline(VAEImputer(**QUICK), StandardScaler()).fit_transform(values)
    assert np.isfinite(scaled).all()


@pytest.mark.slow
def test_pickled_and_cloned_imputers_give_the_same_answers():
    df = gappy(60)
    imputer = VAEImputer(**QUICK).fit(df)
    done = imputer.transform(df)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(imputer)).transform(df), done)
    pd.testing.assert_frame_equal(clone(imputer).fit(df).transform(df), done)
    given = VAEImputer(imputer.model_, random_state=0, progress=False).fit(df)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(given)).transform(df), done)
    pd.testing.assert_frame_equal(clone(given).fit(df).transform(df), done)


def test_draws_instead_of_means():
    df = gappy(60)
    imputer = VAEImputer(**QUICK, sample_posterior=True).fit(df)
    one, other = imputer.transform(df), imputer.transform(df)
    pd.testing.assert_frame_equal(one, other)  # random_state is an int
    gaps = df["kids"].isna()
    assert (one["kids"][gaps] % 1 == 0).all()
    imputer.set_params(sample_posterior=False)
    assert (imputer.transform(df)["kids"][gaps] % 1 != 0).any()
    tables = imputer.complete(df, num=3, seed=0)
    assert len(tables) == 3
    assert (tables[0]["area"] != tables[1]["area"]).any()


def test_training_stops_early_or_when_time_is_up_and_reports():
    df, shares = gappy(60), []
    imputer = VAEImputer(**{**QUICK, "max_epochs": 400}, patience=3, learning_rate=0.05)
    assert len(imputer.fit(df).bounds_) < 400
    start = time.perf_counter()
    told = {"report": lambda share, what: shares.append(share), "validation": 0.0}
    imputer = VAEImputer(**{**QUICK, "max_epochs": 10**6}, **told, patience=10**6, max_seconds=0.5)
    imputer.fit(df)
    assert time.perf_counter() - start < 10  # the machine may be busy
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_complete_rows_and_columns_without_gaps_in_training():
    df = gappy(share=0.0)
    imputer = VAEImputer(**QUICK).fit(df)
    pd.testing.assert_frame_equal(imputer.transform(df), df)
    assert not imputer.transform(gappy()).isna().any(axis=None)
    assert imputer.transform(df.iloc[:0]).shape == (0, 5)


def test_rows_that_cannot_be_trusted_are_reported():
    vae, df, _ = linear(num=20)
    few = cc.methods.HMC(num_chains=2, num_warmup=0, num_draws=4, step_size=1e-3)
    imputer = VAEImputer(vae, method=few, progress=False).fit(df)
    with pytest.warns(UserWarning, match=r"unreliable ones for .* rows of 20; .condition"):
        imputer.transform(df)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda df: df.assign(city=np.nan), ["column 'city'", "got none"]),
        (lambda df: df.assign(area=np.inf), ["column 'area'", "infinite"]),
        (lambda df: df.set_axis([*"abcd", "a"], axis=1), ["two called 'a'"]),
        (lambda df: df.iloc[:0], ["at least one row"]),
    ],
)
def test_tables_that_cannot_be_fitted(change, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        VAEImputer(**QUICK).fit(change(gappy()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda df: df.drop(columns="kids"), ["kids"]),
        (lambda df: df.rename(columns={"kids": "children"}), ["children"]),
        (lambda df: df[df.columns[::-1]], ["order"]),
        (lambda df: df.assign(kids=-1.0), ["column 'kids'", "whole numbers"]),
        (lambda df: df.assign(city="Rome"), ["column 'city'", "Rome"]),
        (lambda df: df.assign(area="80"), ["column 'area'", "numbers"]),
        (lambda df: df.set_axis([*"abcd", "a"], axis=1), ["two called 'a'"]),
    ],
)
def test_tables_that_cannot_be_transformed(change, words):
    imputer = VAEImputer(**QUICK).fit(gappy())
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, words))):
        imputer.transform(change(gappy()))


def test_columns_that_are_no_frame_of_pandas():
    imputer = VAEImputer(**QUICK)
    with pytest.raises(TypeError, match="pandas DataFrame, got dict"):
        imputer.fit({"area": [80.0, 90.0]})
    polars = type("DataFrame", (), {"to_pandas": None})()
    with pytest.raises(TypeError, match=r"pandas DataFrame, got DataFrame; .*to_pandas"):
        imputer.fit(polars)
    with pytest.raises(TypeError, match="expected seed to be an int >= 0, got 'a'"):
        imputer.fit(gappy()).complete(gappy(), seed="a")  # pyright: ignore


def test_a_single_category_has_all_of_the_probability():
    df = gappy(40)[["area"]].assign(
        kind=pd.Series(["x", None] * 20, dtype=object).to_numpy(),
        rank=pd.Categorical(["low", None] * 20, ordered=True),
    )
    imputer = VAEImputer(**QUICK).fit(df)
    posterior = imputer.condition(df)
    shares = posterior.frame("probabilities")
    assert list(shares.columns) == [("kind", "x"), ("rank", "low")]
    assert (shares == 1).all(axis=None)
    torch.testing.assert_close(posterior.probabilities()[:, 1, 0], torch.ones(40))
    log_prob, _ = imputer.model_.log_prob(df[["kind"]].iloc[:1], seed=0)
    torch.testing.assert_close(log_prob, torch.zeros(1), atol=1e-6, rtol=0)
    own = cc.VAE(
        nn.Linear(2, imputer.table_.num_params),
        2,
        imputer.table_.likelihood(),
        table=imputer.table_,
    )
    assert (cc.condition(own, df, seed=0).frame("probabilities") == 1).all(axis=None)


def test_columns_with_numbers_for_names_are_missed_by_name():
    array = np.random.default_rng(0).normal(size=(30, 3))
    imputer = VAEImputer(**QUICK).fit(array)
    with pytest.raises(ValueError, match="expected the columns of fit, got none called 1 and 1 mo"):
        imputer.transform(pd.DataFrame(array[:1, :1]))
    with pytest.raises(ValueError, match="column 1: expected at least one observed value"):
        VAEImputer(**QUICK).fit(np.where([True, False, True], array, np.nan))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim >= 1"),
        ({"hidden": 0}, ValueError, "hidden >= 1"),
        ({"num_samples": 1.5}, TypeError, "num_samples to be an int"),
        ({"validation": 1.0}, ValueError, "validation < 1"),
        ({"max_seconds": 0}, ValueError, "max_seconds > 0 or None, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate > 0"),
        ({"kinds": {"x": "number"}}, ValueError, "column in kinds"),
        ({"model": "mnist"}, TypeError, "model to be a crosscoding.VAE"),
    ],
)
def test_settings_that_cannot_be(settings, error, words):
    with pytest.raises(error, match=re.escape(words)):
        VAEImputer(**{**QUICK, **settings}).fit(gappy())


def test_a_model_without_a_table_or_with_other_columns():
    df = gappy()[["area", "income"]]
    plain = cc.VAE(nn.Linear(1, 2), 1, cc.likelihoods.Gaussian(0.5))
    with pytest.raises(ValueError, match="model with a table"):
        VAEImputer(plain).fit(df)
    table = Table.of([Column("area", "number"), Column("wealth", "number")])
    other = cc.VAE(nn.Linear(1, 2), 1, cc.likelihoods.Gaussian(0.5), table=table)
    with pytest.raises(ValueError, match="column among area, wealth, got 'income'"):
        VAEImputer(other).fit(df)


def test_it_must_be_fitted_and_give_tables():
    with pytest.raises(NotFittedError):
        VAEImputer().transform(gappy())
    with pytest.raises(ValueError, match="num >= 1"):
        VAEImputer(**QUICK).fit(gappy()).complete(gappy(), num=0)


def test_the_first_lines_of_the_docs_run():
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    lines = page.split("```python\n")[1].split("```")[0]
    names: dict = {"df": gappy(80)}
    exec(lines.replace("random_state=0", "random_state=0, max_epochs=2"), names)
    assert not names["completed"].isna().any(axis=None)
    assert names["intervals"].columns[0] == ("area", "low")
