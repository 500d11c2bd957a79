"""TVAEs of ctgan: p(c|z) against ctgan's own encoding, answers against draws from the prior."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from problems import seeded
from tvae_tables import log_prob_by_prior_draws, table

from crosscoding.adapters import from_ctgan

ctgan = pytest.importorskip("ctgan", reason="needs the extra `ctgan`")

DISCRETE = ["kind", "member"]


def trained(df: pd.DataFrame, discrete=DISCRETE, **settings):
    tvae = ctgan.TVAE(
        **{"epochs": 12, "embedding_dim": 6, "batch_size": 100, "enable_gpu": False} | settings
    )
    tvae.set_random_state(0)
    with torch.random.fork_rng():
        tvae.fit(df, discrete)
    return tvae


@pytest.fixture(scope="module")
def tvae():
    return trained(table())


@pytest.fixture(scope="module")
def vae(tvae):
    return from_ctgan(tvae)


def outputs(tvae, z: torch.Tensor) -> dict[str, np.ndarray]:
    """The network's outputs and σ by column, each (N, outputs of the column)."""
    y, sigma = (part.detach().double().numpy() for part in tvae.decoder(z.float()))
    found, start = {}, 0
    for info in tvae.transformer._column_transform_info_list:
        end = start + info.output_dimensions
        found[info.column_name] = y[:, start:end], sigma[start], info
        start = end
    return found


def test_the_table_is_that_of_the_user(vae):
    df = table()
    assert vae.table.names == tuple(df.columns)
    assert [column.kind for column in vae.table.columns] == ["number", "class", "number", "class"]
    rows = vae.sample(20, seed=0)
    assert list(rows.columns) == list(df.columns)
    assert rows.dtypes.equals(df.dtypes)
    assert set(rows["kind"]) <= {"a", "b", "c"}


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_p_of_a_number_sums_over_the_components_that_ctgan_draws(tvae, power):
    """Σ_k π_k N((c − μ_k) / 4 s_k; tanh m, σ) / 4 s_k, with SciPy and scikit-learn's parameters."""
    vae, z = from_ctgan(tvae, power=power), torch.randn(5, 6, generator=seeded(0)).double()
    y, sigma, info = outputs(tvae, z)["age"]
    mixture, valid = info.transform._bgm_transformer, info.transform.valid_component_indicator
    mu, s = mixture.means_[valid, 0], mixture.covariances_[valid, 0, 0] ** 0.5
    c = np.array([25.0, 31.3, 58.0, 80.0, 12.0])
    weights = scipy.special.softmax(power * y[:, 1:], 1)
    residuals = (c[:, None] - mu) / (4 * s)
    density = scipy.stats.norm.pdf(residuals, np.tanh(y[:, :1]), sigma / power**0.5) / (4 * s)
    expected = np.log((weights * density).sum(1))
    column = vae.table["age"]
    values = torch.full((5, 4), 0.0, dtype=torch.double)
    values[:, 0] = torch.from_numpy(column.to_tensor(c))
    found = vae.flat_likelihood.log_prob(vae.decode_flat(z), values)[:, 0] - np.log(column.scale)
    # ctgan's network in single precision, raised to densities with a σ of 0.01 to 0.1
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-3, atol=1e-2)


def test_ctgans_own_encoding_reproduces_the_density(tvae, vae):
    """The components that ctgan draws for a number have the posterior weights of its mixture, and
    the density of the user's number is that of component and residual, summed over these."""
    z = torch.randn(1, 6, generator=seeded(1)).double()
    y, sigma, info = outputs(tvae, z)["gain"]
    c = 905.0
    with np.errstate(all="ignore"):
        encoded = tvae.transformer._transform_continuous(info, pd.DataFrame({"gain": [c] * 400}))
    kinds = np.unique(encoded.round(9), axis=0)
    total = 0.0
    for row in kinds:
        component = int(row[1:].argmax())
        if abs(row[0]) >= 0.99:  # ctgan clips residuals
            continue
        s = (
            info.transform._bgm_transformer.covariances_[
                info.transform.valid_component_indicator, 0, 0
            ][component]
            ** 0.5
        )
        weight = scipy.special.softmax(y[0, 1:])[component]
        total += weight * scipy.stats.norm.pdf(row[0], np.tanh(y[0, 0]), sigma) / (4 * s)
    column = vae.table["gain"]
    values = torch.zeros(1, 4, dtype=torch.double)
    values[0, 2] = float(column.to_tensor(np.array(c)))
    found = vae.flat_likelihood.log_prob(vae.decode_flat(z), values)[0, 2].exp() / column.scale
    # components that ctgan did not draw add less than their posterior probability, 1 in 400
    assert total == pytest.approx(found.item(), rel=0.02)


def test_p_of_a_class_is_a_softmax(tvae, vae):
    z = torch.randn(3, 6, generator=seeded(0)).double()
    y, _, info = outputs(tvae, z)["kind"]
    expected = scipy.special.log_softmax(y, 1)
    assert vae.table["kind"].categories == tuple(info.transform.dummies)
    for place in range(3):
        values = torch.zeros(3, 4, dtype=torch.double)
        values[:, 1] = place
        found = vae.flat_likelihood.log_prob(vae.decode_flat(z), values)[:, 1]
        torch.testing.assert_close(
            found, torch.from_numpy(expected[:, place]), rtol=1e-4, atol=1e-5
        )


def test_log_prob_is_the_mean_over_draws_from_the_prior(vae):
    df = table()[["age", "kind"]].iloc[:3]
    found = vae.log_prob(df, seed=0)
    evidence = vae.table.evidence(df, dtype=vae.dtype)
    expected = log_prob_by_prior_draws(vae, evidence) - np.log(vae.table["age"].scale)
    assert ((found.log_prob - expected).abs() < 0.05 + 5 * found.error).all()
    given = vae.log_prob(df, given=["kind"], seed=0)
    alone = vae.log_prob(df[["kind"]], seed=0)
    assert ((found.log_prob - alone.log_prob - given.log_prob).abs() < 0.05).all()
    by_value = vae.log_prob(df[["age"]].iloc[:1], given={"kind": df["kind"].iloc[0]}, seed=0)
    assert (by_value.log_prob - given.log_prob[:1]).abs() < 0.1


def test_rows_are_those_that_rejection_from_the_prior_keeps(vae):
    given = {"kind": "b", "age": (50, 70)}
    rows = vae.sample(2000, given, seed=0)
    assert (rows["kind"] == "b").all()
    assert rows["age"].between(50, 70).all()
    draws = vae.table.from_tensors(vae.sample_prior(100_000, seed=1).numpy())
    exact = draws[(draws["kind"] == "b") & draws["age"].between(50, 70)]
    assert len(exact) > 2000
    for name in ("age", "gain"):
        # 0.043 is exceeded by chance in 1 of 1,000 comparisons of 2,000 independent rows; the rows
        # here share draws of z
        assert scipy.stats.ks_2samp(rows[name], exact[name]).statistic < 0.06
    assert rows["member"].mean() == pytest.approx(exact["member"].mean(), abs=0.05)


def test_a_condition_of_one_prior_draw_in_a_million_gets_its_rows(vae):
    given = {"kind": "c", "age": 22.0, "gain": 960}
    log_prob = vae.log_prob(pd.DataFrame([given]), seed=0).log_prob.item()
    assert log_prob + np.log(0.1 * 1) < np.log(1e-6)  # of age to 0.1 and gain to 1
    rows = vae.sample(1000, given, seed=0)
    assert len(rows) == 1000
    assert (rows[["kind", "age", "gain"]] == pd.Series(given)).all(axis=None)


def test_remaining_columns_are_drawn_row_by_row(vae):
    df = pd.DataFrame(
        {"kind": ["a", None, "b", "a"], "age": [30.0, 61.5, np.nan, 30.0]}, index=[7, 3, 9, 1]
    )
    rows = vae.sample_remaining(df, seed=0)
    assert list(rows.index) == [7, 3, 9, 1]
    assert set(rows.columns) == set(vae.table.names)
    assert rows.loc[[7, 9, 1], "kind"].tolist() == ["a", "b", "a"]
    assert rows.loc[[7, 3, 1], "age"].tolist() == [30.0, 61.5, 30.0]
    assert not rows.isna().any(axis=None)
    many = vae.sample_remaining(pd.DataFrame({"kind": ["a"] * 1500 + ["b"] * 700 + ["c"]}), seed=0)
    expected = {kind: vae.sample(1500, {"kind": kind}, seed=1)["age"].mean() for kind in "ab"}
    means = many.groupby("kind")["age"].mean()
    for kind, mean in expected.items():
        assert means[kind] == pytest.approx(mean, abs=1.2)
    assert len(vae.sample_remaining(df.iloc[:0], seed=0)) == 0
    assert len(vae.sample(0, {"kind": "a"}, seed=0)) == 0


def test_a_set_of_classes_is_a_condition(vae):
    rows = vae.sample(500, {"kind": {"b", "c"}, "gain": (None, 10)}, seed=0)
    assert set(rows["kind"]) <= {"b", "c"}
    assert (rows["gain"] <= 10).all()


def test_columns_without_variety_and_with_missing_classes():
    df = table(300).assign(one="x")
    df.loc[::5, "kind"] = None
    vae = from_ctgan(trained(df, [*DISCRETE, "one"], epochs=2))
    assert vae.table["one"].categories == ("x",)
    assert "(missing)" in vae.table["kind"].categories
    rows = vae.sample(50, {"kind": "(missing)"}, seed=0)
    assert (rows["one"] == "x").all()
    assert (rows["kind"] == "(missing)").all()


def test_a_tvae_of_an_array_has_columns_of_numbers():
    df = table(300)[["age", "gain"]]
    vae = from_ctgan(trained(df.to_numpy(), (), epochs=2))
    assert vae.table.names == ("0", "1")


def test_what_cannot_be_served_is_said():
    with pytest.raises(TypeError, match=r"ctgan\.TVAE, got the path 'model\.pkl'"):
        from_ctgan("model.pkl")
    with pytest.raises(TypeError, match="got CTGAN"):
        from_ctgan(ctgan.CTGAN())
    with pytest.raises(ValueError, match="call its fit first"):
        from_ctgan(ctgan.TVAE())
    df = table(200)
    df.loc[:20, "age"] = np.nan
    with pytest.raises(ValueError, match="column 'age': expected a number without missing values"):
        from_ctgan(trained(df, epochs=1))


@pytest.mark.parametrize(("power", "error"), [("2", TypeError), (0, ValueError), (-1, ValueError)])
def test_a_power_is_a_positive_number(tvae, power, error):
    with pytest.raises(error, match="power"):
        from_ctgan(tvae, power=power)


def test_conditions_that_do_not_suit_a_column_name_it(vae):
    with pytest.raises(ValueError, match="'knid'"):
        vae.sample(3, {"knid": "a"})
    with pytest.raises(ValueError, match=r"column 'kind': .*'z'"):
        vae.sample(3, {"kind": "z"})
    with pytest.raises(ValueError, match="column 'age'"):
        vae.sample(3, {"age": (40, 30)})
    with pytest.raises(TypeError, match="conditions by column"):
        vae.sample(3, ["age"])
    with pytest.raises(ValueError, match="num"):
        vae.sample(-1)
    with pytest.raises(ValueError, match="'height'"):
        vae.log_prob(table()[["age"]], given=["height"])
