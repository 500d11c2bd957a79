"""Masks and covariates of each row, beside the source or in its columns."""

import pickle

import numpy as np
import pytest
import torch
from small_runs import TABLE, answers, rejected, rows, run, table_model, write_csv
from torch import nn

import crosscoding as cc
from crosscoding.batch import SourceChangedError
from crosscoding.batch.sources.covariate_sources import CovariateArrays

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


class Shifted(nn.Module):
    """A linear decoder whose outputs are shifted by a label's row and by a dose."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(2, 3), nn.Embedding(4, 3)

    def forward(self, z, given):
        return self.linear(z) + self.shift(given["label"]) + given["dose"]


def shifted_model():
    torch.manual_seed(0)
    examples = {"label": torch.arange(4), "dose": torch.zeros(4, 1)}
    return cc.VAE(Shifted(), 2, cc.likelihoods.Gaussian(0.5), given=examples)


def sample(num=24):
    random = np.random.default_rng(0)
    values = random.normal(size=(num, 3)).astype(np.float32)
    values[:, 2] = np.nan
    return values, random.integers(0, 4, num), random.normal(size=num).astype(np.float32)


def of_condition(vae, values, labels, doses):
    given = {"label": torch.from_numpy(labels), "dose": torch.from_numpy(doses)[:, None]}
    evidence = cc.Evidence.from_nan(torch.from_numpy(values), given=given)
    return cc.condition(vae, evidence, cc.methods.Importance(num_draws=300), seed=0)


def frame_of(values, labels, doses):
    frame = pd.DataFrame(values, columns=list("xyz"))
    return frame.assign(site=labels, dose=doses, key=[f"k{n}" for n in range(len(frame))])


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "zarr"])
def test_covariates_reach_the_decoder(tmp_path, kind):
    vae, (values, labels, doses) = shifted_model(), sample()
    source, options = tmp_path / f"rows.{kind}", {"given": ["site", "dose"], "keep": ["key"]}
    if kind == "csv":
        frame_of(values, labels, doses).to_csv(source, index=False)
    elif kind == "parquet":
        frame_of(values, labels, doses).to_parquet(source)
    else:
        source, options = tmp_path / "rows.npy", {"given": tmp_path / f"beside.{kind}"}
        np.save(source, values)
        if kind == "npz":
            np.savez(tmp_path / "beside.npz", label=labels, dose=doses)
        else:
            zarr = pytest.importorskip("zarr")
            group = zarr.open_group(tmp_path / "beside.zarr", mode="w")
            group.create_array("label", data=labels)
            group.create_array("dose", data=doses[:, None])
    result = run(vae, source, tmp_path / "out", **options)
    found, wanted = answers(tmp_path / "out"), of_condition(vae, values, labels, doses)
    assert result.answered == 24
    np.testing.assert_allclose(found["log_evidence"], wanted.log_evidence, rtol=1e-4)
    means = np.stack(found["mean"]) if "mean" in found else found[["x_mean", "y_mean", "z_mean"]]
    np.testing.assert_allclose(means, wanted.mean(), rtol=1e-3, atol=1e-4)
    if kind in ("csv", "parquet"):
        assert found["key"][23] == "k23"
        assert "site" not in found


@pytest.mark.parametrize("workers", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_prior_may_take_covariates(tmp_path, workers):
    """z ~ N(c, 1) and x = z + noise: given nothing else, the mean of x is c."""
    torch.manual_seed(0)
    shift, decoder = nn.Linear(1, 1), nn.Linear(1, 1)
    for network in (shift, decoder):
        network.weight.data.fill_(1.0)
        network.bias.data.zero_()
    prior = cc.priors.Gaussian(shift, 1.0, latent_dim=1)
    likelihood = cc.likelihoods.Gaussian(0.5)
    vae = cc.VAE(decoder, 1, likelihood, prior=prior, given=torch.zeros(1, 1))
    frame = pd.DataFrame({"x": [None, None, 3.0], "c": [-4.0, 5.0, 1.0]})
    frame.to_parquet(tmp_path / "rows.parquet")
    options = {"given": "c", "method": None, "shard_rows": 2, "workers": workers}
    run(vae, tmp_path / "rows.parquet", tmp_path / "out", **options)
    found = answers(tmp_path / "out")
    # 1000 draws of a deviation of 1: 5 standard errors
    np.testing.assert_allclose(found["x_mean"], [-4, 5, 3], atol=5 / 1000**0.5)
    exact = torch.distributions.Normal(1.0, 1.25**0.5).log_prob(torch.tensor(3.0))
    np.testing.assert_allclose(found["log_evidence"], [0, 0, exact], atol=1e-2)


def test_rows_whose_covariates_no_decoder_takes_are_set_apart(tmp_path):
    vae, (values, labels, doses) = shifted_model(), sample()
    frame = frame_of(values, labels, doses).astype({"site": str, "dose": str})
    frame.loc[1, "site"], frame.loc[2, "dose"], frame.loc[3, "site"] = "Bonn", "", "1.5"
    frame.loc[4, "site"], frame.loc[5, "dose"] = "9", "inf"
    frame.to_csv(tmp_path / "rows.csv", index=False)
    options = {"given": ["site", "dose"], "keep": ["key", "site"]}
    result = run(vae, tmp_path / "rows.csv", tmp_path / "out", **options)
    assert (result.answered, result.rejected) == (19, 5)
    found, whole = rejected(tmp_path / "out"), "column 'site': expected a whole number"
    gap = "a gap, text, or a whole number of 2^53 or more"
    assert found[1] == f"{whole} (torch.int64) for the decoder, got {gap}"
    assert found[2].startswith("column 'dose': expected a number (torch.float32)")
    assert found[3].startswith(whole)
    assert found[4].startswith("expected covariates that the decoder takes, but it failed")
    assert found[5].endswith("got inf")
    assert answers(tmp_path / "out")["site"][0] == str(labels[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, r"expected given, as .* takes covariates beside z \(label, dose\)"),
        (["site"], r"expected 2 columns of covariates \(1 of label, 1 of dose\), got site"),
        (["site", "site"], "distinct columns"),
        (["site", "key2"], "expected a column 'key2'"),
        ("short.npz", "expected a row in .*short.npz for each of the 24 rows of .*, got 23 rows"),
        ("other.npz", "expected an array 'dose'"),
        (["short.npz", "site"], "columns or one file of arrays"),
    ],
)
def test_covariates_that_cannot_be(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    frame_of(*sample()).to_parquet("rows.parquet")
    np.savez("short.npz", label=np.zeros(23, dtype=int), dose=np.zeros(23))
    np.savez("other.npz", label=np.zeros(24, dtype=int))
    keep = ["key"] if isinstance(given, list) else ["key", "site", "dose"]
    with pytest.raises(ValueError, match=words):
        run(shifted_model(), "rows.parquet", "out", given=given, keep=keep)


def test_covariates_of_dates_of_arrays_and_of_models_without_any(tmp_path):
    values, labels, doses = sample()
    frame = frame_of(values, labels, doses).assign(dose=pd.Timestamp("2020-01-01"))
    frame.to_parquet(tmp_path / "rows.parquet")
    options = {"given": ["site", "dose"], "keep": ["key"]}
    with pytest.raises(ValueError, match="expected numbers in column 'dose', which is a cov"):
        run(shifted_model(), tmp_path / "rows.parquet", tmp_path / "out", **options)
    np.save(tmp_path / "rows.npy", values)
    with pytest.raises(ValueError, match="columns, here 'site', only from CSV or Parquet"):
        run(shifted_model(), tmp_path / "rows.npy", tmp_path / "out", given=["site", "dose"])
    csv = write_csv(tmp_path / "rows.csv", rows(3))
    with pytest.raises(ValueError, match="expected given only for a model whose decoder takes"):
        run(table_model(), csv, tmp_path / "out", given="age")


def test_nested_covariates_are_found_by_their_names(tmp_path):
    examples = {
        "site": (torch.zeros(2, dtype=torch.long), torch.zeros(2, 3)),
        "flag": torch.zeros(2, dtype=torch.bool),
    }
    arrays = {"site.0": np.arange(5), "site.1": np.ones((5, 3)), "flag": np.eye(5)[0]}
    np.savez(tmp_path / "beside.npz", **arrays)
    source = pickle.loads(pickle.dumps(CovariateArrays(str(tmp_path / "beside.npz"), examples)))
    given, faults = source.read(np.array([0, 3]), None)
    assert not faults
    assert given["site"][0].tolist() == [0, 3]
    assert given["site"][1].shape == (2, 3)
    assert given["flag"].tolist() == [True, False]
    assert given["site"][1].dtype == torch.float32
    none, _ = source.read(np.array([], dtype=np.int64), None)
    assert none["site"][1].shape == (0, 3)


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_masks_of_each_row(tmp_path, kind):
    torch.manual_seed(1)
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    masks = np.random.default_rng(1).random((12, 3)) < 0.5
    masks[:4] = [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]
    values[4, 1], masks[4, 1] = np.nan, True  # a gap that is called observed
    source, observe = tmp_path / "rows.npy", tmp_path / "masks.npy"
    np.save(observe, masks)
    if kind == "csv":
        source = tmp_path / "rows.csv"
        pd.DataFrame(values, columns=list("xyz")).to_csv(source, index=False)
    elif kind == "npz":
        source, observe = f"{tmp_path}/all.npz:rows", f"{tmp_path}/all.npz:masks"
        np.savez(tmp_path / "all.npz", rows=values, masks=masks.astype(np.uint8))
    else:
        np.save(source, values)
    result = run(vae, source, tmp_path / "out", observe=observe, shard_rows=5)
    assert (result.answered, list(rejected(tmp_path / "out"))) == (11, [4])
    assert "expected a value, as it should be observed, got a gap" in rejected(tmp_path / "out")[4]
    good = np.delete(np.arange(12), 4)
    method = cc.methods.Importance(num_draws=300)
    evidence = cc.Evidence(torch.from_numpy(values[good]), torch.from_numpy(masks[good]))
    wanted = cc.condition(vae, evidence, method, seed=0)
    found = answers(tmp_path / "out")
    np.testing.assert_allclose(found["log_evidence"], wanted.log_evidence, rtol=1e-4, atol=1e-5)
    np.save(tmp_path / "masks.npy", ~masks)
    if kind == "npy":
        with pytest.raises(SourceChangedError, match="have changed"):
            run(vae, source, tmp_path / "out", observe=observe, shard_rows=5)


def test_masks_that_cannot_be(tmp_path):
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), dtype=np.float32))
    np.save(tmp_path / "masks.npy", np.array([[0, 1, 1], [0, 255, 1], [0, 0, 0], [1, 1, 1]]))
    run(vae, tmp_path / "rows.npy", tmp_path / "out", observe=tmp_path / "masks.npy")
    assert list(rejected(tmp_path / "out")) == [1]
    assert rejected(tmp_path / "out")[1].endswith("masks.npy, got 255")
    np.save(tmp_path / "few.npy", np.ones((3, 3)))
    for name, words in (("few.npy", "got 3 rows"), ("none.npy", "expected an array in .*none.npy")):
        with pytest.raises(ValueError, match=words):
            run(vae, tmp_path / "rows.npy", tmp_path / "other", observe=tmp_path / name)


def test_masks_hide_cells_of_a_table(tmp_path):
    """A row whose cells are all hidden is answered as one without any."""
    vae, cells = table_model(), [["41", "Ulm", "2", "2017-03-04", "1.5"], [""] * len(TABLE)]
    source = write_csv(tmp_path / "rows.csv", cells)
    np.save(tmp_path / "masks.npy", np.zeros((2, len(TABLE)), dtype=bool))
    run(vae, source, tmp_path / "out", observe=tmp_path / "masks.npy")
    found = answers(tmp_path / "out").drop(columns="row")
    pd.testing.assert_series_equal(found.iloc[0], found.iloc[1], check_names=False)


def test_other_masks_in_the_same_file_are_another_run(tmp_path):
    vae, values = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5)), np.zeros((4, 3))
    np.save(tmp_path / "rows.npy", values.astype(np.float32))
    masks = np.ones((2, *values.shape), dtype=np.uint8)
    masks[1, 3] = 0
    np.savez(tmp_path / "m.npz", first=masks[0], second=masks[1])
    source, out = tmp_path / "rows.npy", tmp_path / "out"
    run(vae, source, out, observe=f"{tmp_path}/m.npz:first")
    with pytest.raises(ValueError, match="expected masks of the source as in the run in"):
        run(vae, source, out, observe=f"{tmp_path}/m.npz:second")
    with pytest.raises(ValueError, match="expected masks of the source as in the run in"):
        run(vae, source, out)


@pytest.mark.parametrize("kind", ["column", "array"])
def test_whole_numbers_that_floats_round_set_their_row_apart(tmp_path, kind):
    vae, (values, labels, doses) = shifted_model(), sample(4)
    labels[1] = 2**53 + 1
    if kind == "column":
        source, given = tmp_path / "rows.parquet", ["site", "dose"]
        frame_of(values, labels, doses).drop(columns="key").to_parquet(source)
    else:
        source, given = tmp_path / "rows.npy", tmp_path / "beside.npz"
        np.save(source, values)
        np.savez(given, label=labels, dose=doses)
    assert run(vae, source, tmp_path / "out", given=given).answered == 3
    assert "a whole number of 2^53 or more" in rejected(tmp_path / "out")[1]
