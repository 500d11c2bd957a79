"""Rubin's rules against formulas by hand and statsmodels."""

import math

import numpy as np
import pytest
import scipy.stats

from crosscoding.tables import rubin


def test_the_rules_by_hand():
    pooled = rubin([1.0, 2.0, 3.0], [0.5, 0.7, 0.6])
    within, between = 0.6, 1.0
    total = within + (1 + 1 / 3) * between
    assert pooled.estimate == pytest.approx(2.0)
    assert pooled.within == pytest.approx(within)
    assert pooled.between == pytest.approx(between)
    assert pooled.variance == pytest.approx(total)
    assert pooled.error == pytest.approx(math.sqrt(total))
    ratio = (4 / 3) * between / within
    df = 2 * (1 + 1 / ratio) ** 2  # Rubin (1987), 3.1.6
    assert pooled.df == pytest.approx(df)
    assert pooled.missing_information == pytest.approx((ratio + 2 / (df + 3)) / (ratio + 1))
    reach = scipy.stats.t.ppf(0.95, df) * math.sqrt(total)
    assert pooled.interval(0.9) == pytest.approx((2 - reach, 2 + reach))


def test_few_degrees_of_freedom_of_the_complete_data():
    pooled = rubin([1.0, 2.0, 3.0], [0.5, 0.7, 0.6], df=20)
    share = (4 / 3) / (0.6 + 4 / 3)
    old, observed = 2 / share**2, 21 / 23 * 20 * (1 - share)  # Barnard and Rubin (1999)
    assert pooled.df == pytest.approx(old * observed / (old + observed))
    assert pooled.df < 20


def test_estimates_that_agree_have_the_error_of_one():
    pooled = rubin([np.array([1.0, 2.0])] * 4, [np.array([0.25, 0.5])] * 4)
    np.testing.assert_allclose(pooled.error, [0.5, math.sqrt(0.5)])
    assert np.isinf(pooled.df).all()
    assert (pooled.missing_information == 0).all()
    np.testing.assert_allclose(pooled.interval(0.95)[1], pooled.estimate + 1.959964 * pooled.error)


def test_series_keep_their_names_and_are_matched_by_them():
    pd = pytest.importorskip("pandas")
    one, other = pd.Series({"a": 1.0, "b": 2.0}), pd.Series({"b": 4.0, "a": 3.0})
    pooled = rubin([one, other], [one, other])
    assert pooled.estimate.to_dict() == {"a": 2.0, "b": 3.0}
    assert pooled.error.index.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="same names"):
        rubin([one, other.rename({"a": "c"})], [one, one])


@pytest.mark.parametrize(
    ("estimates", "variances", "words"),
    [
        ([1.0], [1.0], "m >= 2"),
        ([1.0, 2.0], [1.0], "same m"),
        ([np.zeros(2), np.zeros(3)], [np.zeros(2)] * 2, "one shape"),
        ([np.zeros(2)] * 2, [np.zeros(3)] * 2, "variances of shape"),
        ([1.0, 2.0], [1.0, -1.0], "variances >= 0"),
        ([1.0, math.nan], [1.0, 1.0], "finite estimates"),
    ],
)
def test_what_cannot_be_pooled(estimates, variances, words):
    with pytest.raises(ValueError, match=words):
        rubin(estimates, variances)


def test_it_pools_fits_of_statsmodels_as_its_own_mice_does():
    api = pytest.importorskip("statsmodels.api")
    mice = pytest.importorskip("statsmodels.imputation.mice")
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(80, 2)), columns=["x", "y"])
    df["y"] += df["x"]
    df.loc[::4, "x"] = np.nan
    np.random.seed(0)  # noqa: NPY002 (what statsmodels draws from)
    model = mice.MICE("y ~ x", api.OLS, mice.MICEData(df))
    found = model.fit(2, 6)
    fits = model.results_list
    pooled = rubin([fit.params for fit in fits], [np.asarray(fit.bse) ** 2 for fit in fits])
    np.testing.assert_allclose(pooled.estimate, found.params)
    np.testing.assert_allclose(pooled.error, found.bse, rtol=1e-6)
