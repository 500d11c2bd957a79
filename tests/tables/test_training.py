"""The importance-weighted bound of a table VAE, and what is learned of columns."""

import math

import numpy as np
import pytest
import torch
from problems import seeded

import crosscoding as cc
from crosscoding.likelihoods import NegativeBinomial, Ordinal
from crosscoding.progress import Progress, silent
from crosscoding.tables import Table
from crosscoding.tables.dispersion import ColumnOutputs
from crosscoding.tables.training import Training, _Networks, _widen, train

pd = pytest.importorskip("pandas")


def settings(**changes) -> Training:
    usual = {"latent_dim": 1, "hidden": 16, "num_samples": 20, "batch_size": 64, "patience": 20}
    usual |= {"learning_rate": 3e-3, "max_epochs": 30, "validation": 0.1, "max_seconds": None}
    return Training(**usual | changes)


def gappy() -> "pd.DataFrame":
    rng = np.random.default_rng(0)
    size = rng.normal(size=200)
    df = pd.DataFrame(
        {
            "n": size + 0.5 * rng.normal(size=200),
            "p": np.exp(size + 0.3 * rng.normal(size=200)),
            "k": rng.negative_binomial(2, 1 / (1 + np.exp(size))),
            "c": np.where(size > 0, "a", "b"),
            "o": pd.Categorical(np.select([size < -1, size < 1], [0, 1], 2), ordered=True),
            "b": rng.random(200) < 0.7,
            "d": pd.Timestamp("2020-01-01") + pd.to_timedelta(size, unit="D"),
        }
    )
    return df.mask(rng.random(df.shape) < 0.3)


def prepared() -> tuple[Table, torch.Tensor, torch.Tensor]:
    table = Table(gappy())
    return table, *table.to_tensors(gappy())


def test_the_bound_is_below_log_p_of_the_trained_model_and_close_to_it():
    """The same likelihoods in training and in the model: the bound is below the exact log p(x)."""
    table, values, mask = prepared()
    networks = _Networks(table, values, mask, settings(), seeded(0))
    networks.num_samples = 2000
    with torch.no_grad():
        bound = networks.bound(values, mask, seeded(1)).double()
    vae = networks.vae(table)
    posterior = cc.condition(vae, cc.Evidence(torch.nan_to_num(values), mask), seed=0)
    exact = posterior.log_evidence.double()
    # 2,000 samples from an encoder that knows nothing yet are few for one row in ten
    assert float((bound - exact).abs().quantile(0.9)) < 0.1
    torch.testing.assert_close(bound.mean(), exact.mean(), atol=0.02, rtol=0)
    networks.num_samples = 1
    with torch.no_grad():
        loose = torch.stack([networks.bound(values, mask, seeded(n)) for n in range(20)]).mean()
    assert loose < exact.mean()


def test_cells_that_are_missing_change_nothing():
    table, values, mask = prepared()
    networks = _Networks(table, values, mask, settings(), seeded(0))
    for other in (0.0, 1.0, math.nan):
        changed = torch.where(mask, values, other)
        bound = networks.bound(changed, mask, seeded(1))
        torch.testing.assert_close(bound, networks.bound(values, mask, seeded(1)), rtol=0, atol=0)
        bound.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())


def test_columns_start_at_their_own_distributions():
    table, values, mask = prepared()
    outputs = ColumnOutputs(table, values, mask)
    likelihood = outputs.trained()
    params = outputs.start
    flat = likelihood.for_data((len(table),), params)
    mean = flat.mean(params[None])[0]
    for place, name in enumerate(table.names):
        seen = values[mask[:, place], place]
        if name in ("n", "k", "b", "d"):
            torch.testing.assert_close(mean[place], seen.mean(), atol=1e-4, rtol=1e-3)
    assert isinstance(likelihood.pairs[2][0], NegativeBinomial)
    assert isinstance(likelihood.pairs[4][0], Ordinal)
    frequencies = values[mask[:, 3], 3].mean()
    logits = params[5:7] if len(params) > 6 else params
    torch.testing.assert_close(logits.softmax(0)[1], frequencies, atol=0.01, rtol=0)


def test_adjacent_columns_of_a_kind_are_one_part_of_the_likelihood():
    """Each part is a step of its own in all computations; outputs keep their meaning."""
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
    df.insert(2, "k", rng.negative_binomial(2, 0.4, 60))
    df.insert(3, "l", rng.negative_binomial(1, 0.2, 60))
    table = Table(df)
    values, mask = table.to_tensors(df)
    networks = _Networks(table, values, mask, settings(), seeded(0))
    vae = networks.vae(table)
    parts = [(type(part).__name__, num) for part, num in networks.outputs.likelihood.pairs]
    assert parts == [("Gaussian", 2), ("NegativeBinomial", 2), ("Gaussian", 1)]
    assert [num for _, num in vae.likelihood.pairs] == [2, 1, 1, 1]  # total counts differ
    with torch.no_grad():
        output = networks.decoder(torch.randn(60, 1, generator=seeded(1)))
        training = networks.flat_likelihood.log_prob(networks.outputs(output), values)
    torch.testing.assert_close(training, vae.flat_likelihood.log_prob(output, values))


def test_variances_are_raised_where_held_out_rows_ask_for_it():
    """Values that are larger by a factor f raise log variances by 2 log f, from 0 to 1."""
    df = pd.DataFrame({"x": np.random.default_rng(0).normal(size=400)})
    table = Table(df)
    values, mask = table.to_tensors(df)
    networks = _Networks(table, values, mask, settings(), seeded(0))
    before = networks._last.bias[1].item()
    for factor, least, most in ((2.0, 0.95, 1.05), (1.25, 0.3, 0.6), (0.5, -0.01, 0.01)):
        with torch.no_grad():
            networks.decoder[-1].weight.zero_()
            networks._last.bias[1] = before
        _widen(networks, factor * values, mask, 64)
        assert least < networks._last.bias[1].item() - before < most


@pytest.mark.slow
def test_training_raises_the_bound_and_learns_dispersions():
    table, values, mask = prepared()
    progress = Progress(silent)
    trained = train(table, values, mask, settings(), seeded(0), progress)
    assert trained.bounds[-1] > trained.bounds[0] + 0.5
    start = ColumnOutputs(table, values, mask).trained()
    end = trained.vae.likelihood
    assert end.pairs[2][0].total_count != start.pairs[2][0].total_count
    cuts = end.pairs[4][0].cut_points
    assert list(cuts) == sorted(cuts) != list(start.pairs[4][0].cut_points)


@pytest.mark.slow
def test_the_same_seed_trains_the_same_model():
    table, values, mask = prepared()
    few = settings(max_epochs=2)
    one, other = (
        train(table, values, mask, few, seeded(5), Progress(silent)).vae for _ in range(2)
    )
    for a, b in zip(one.decoder.parameters(), other.decoder.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_column_of_one_value_does_not_end_in_a_spike():
    df = pd.DataFrame({"x": [3.5] * 50, "y": np.random.default_rng(0).normal(size=50)})
    table = Table(df)
    values, mask = table.to_tensors(df)
    trained = train(table, values, mask, settings(max_epochs=60), seeded(0), Progress(silent))
    scale = cc.condition(trained.vae, pd.DataFrame({"y": [0.1]}), seed=0).std()[0, 0]
    assert 0.01 < float(scale) < 0.5
