"""Runs: right answers, the same whatever the shards, resumed, and refused where they must be."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from small_runs import CHEAP, TABLE, answers, rejected, rows, run, table_model, write_csv
from torch import nn

import crosscoding as cc
from crosscoding.batch import SourceChangedError

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def linear_model():
    torch.manual_seed(1)
    return cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))


@pytest.fixture
def csv(tmp_path):
    return write_csv(tmp_path / "rows.csv", rows(30))


@pytest.fixture(scope="module")
def vae():
    return table_model()


def test_answers_are_those_of_the_closed_form(tmp_path):
    vae, data = linear_model(), np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    data[:, 2] = np.nan
    np.save(tmp_path / "rows.npy", data)
    cc.batch.run(vae, tmp_path / "rows.npy", tmp_path / "out", shard_rows=20, progress=False)
    found = answers(tmp_path / "out")
    W, b = vae.own_decoder.weight.double().numpy(), vae.own_decoder.bias.double().numpy()
    cov = W @ W.T + 0.25 * np.eye(3)
    x = data[:, :2].astype(float) - b[:2]
    gain = cov[2, :2] @ np.linalg.inv(cov[:2, :2])
    mean, std = b[2] + x @ gain, np.sqrt(cov[2, 2] - gain @ cov[:2, 2])
    log_evidence = -0.5 * (
        np.einsum("ni,ij,nj->n", x, np.linalg.inv(cov[:2, :2]), x)
        + np.linalg.slogdet(2 * np.pi * cov[:2, :2])[1]
    )
    assert found["row"].tolist() == list(range(50))
    assert set(found["interval_verdict"]) == {"trusted"}
    lists = {name: np.stack(found[name]) for name in ("mean", "low", "high")}
    np.testing.assert_array_equal(lists["mean"][:, :2], data[:, :2])
    np.testing.assert_allclose(found["log_evidence"], log_evidence, atol=1e-3)
    # 1000 draws: 5 standard errors of a mean, and of a quantile of 0.05 (2.1 σ / √1000)
    np.testing.assert_allclose(lists["mean"][:, 2], mean, atol=5 * std / 1000**0.5)
    for name, sign in (("low", -1), ("high", 1)):
        wanted = mean + sign * 1.6449 * std
        np.testing.assert_allclose(lists[name][:, 2], wanted, atol=5 * 2.1 * std / 1000**0.5)


def test_shards_of_any_size_give_the_same_answers(tmp_path, vae, csv):
    options = {"method": None, "draws": 2, "quantiles": [0.25]}
    found = []
    for size in (7, 16, 1000):
        run(vae, csv, tmp_path / f"{size}", shard_rows=size, **options)
        found.append(answers(tmp_path / f"{size}"))
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other, rtol=1e-4, atol=1e-6)


def test_seconds_are_those_of_the_shard_and_not_part_of_the_checksum(tmp_path, vae, csv):
    manifests = [run(vae, csv, tmp_path / name, shard_rows=30).manifest for name in ("a", "b")]
    seconds = pd.read_parquet(tmp_path / "a" / "shards")["seconds"]
    record = json.loads((tmp_path / "a" / "records" / "00000000.json").read_text())["record"]
    assert (seconds > 0).all()
    assert 0.1 * record["seconds"] < seconds.sum() <= record["seconds"]
    assert manifests[0] == manifests[1]
    assert manifests[0]["shards"][0]["answers_sha256"] == record["answers_sha256"]
    assert manifests[0]["schema"]["seconds"] == "double"
    assert manifests[0]["schema"]["sold_low"] == "timestamp[us]"


@pytest.mark.slow
def test_in_double_precision_a_shard_of_many_is_many_shards_of_one(tmp_path):
    """So what differs in single precision is rounding, which decisions of the method amplify."""
    own = cc.zoo.load("mnist-20d")
    vae = cc.VAE(copy.deepcopy(own.own_decoder).double(), 20, own.likelihood)
    np.save(tmp_path / "digits.npy", cc.zoo.digits()[0][:3].double().numpy())
    options = {"observe": cc.rectangle_mask((28, 28), rows=(0, 13)), "method": None}
    for size in (1, 3):
        run(vae, tmp_path / "digits.npy", tmp_path / f"{size}", shard_rows=size, **options)
    one, many = answers(tmp_path / "1"), answers(tmp_path / "3")
    pd.testing.assert_frame_equal(one, many, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_shards_of_any_size_agree_to_monte_carlo_error_in_20_dimensions(tmp_path):
    """Rounding differs with the size of a batch, and may decide when a method stops."""
    digits = cc.zoo.digits()[0][:12].numpy()
    np.save(tmp_path / "digits.npy", digits)
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    options = {"observe": mask, "method": None}
    for size in (1, 12):
        run("mnist-20d", tmp_path / "digits.npy", tmp_path / f"{size}", shard_rows=size, **options)
    one, many = answers(tmp_path / "1"), answers(tmp_path / "12")
    # estimates of 1000 draws or so, of numbers in [0, 1]: 5 standard errors of a mean
    means = [np.stack(found["mean"]) for found in (one, many)]
    np.testing.assert_allclose(*means, atol=5 * 0.5 / 1000**0.5)
    np.testing.assert_allclose(one["log_evidence"], many["log_evidence"], atol=0.05)
    assert one["interval_verdict"].tolist() == many["interval_verdict"].tolist()


def test_answers_are_those_of_condition(tmp_path, vae, csv):
    run(vae, csv, tmp_path / "out", quantiles=[0.25])
    cells = [[cell or None for cell in row] for row in rows(30)]
    frame = pd.DataFrame(cells, columns=list(TABLE.names))
    frame = frame.astype({"age": float, "rooms": "Int64", "price": float})
    frame["rooms"] = frame["rooms"].astype(object).where(frame["rooms"].notna(), None)
    frame["sold"] = pd.to_datetime(frame["sold"])
    posterior = cc.condition(vae, frame, CHEAP, seed=0)
    found = answers(tmp_path / "out")
    np.testing.assert_allclose(found["log_evidence"], posterior.log_evidence, rtol=1e-4)
    means = posterior.frame("mean")
    np.testing.assert_allclose(found["age_mean"], means["age"].astype(float), rtol=1e-4)
    assert found["city_mean"].tolist() == means["city"].tolist()
    assert found["rooms_mean"].tolist() == means["rooms"].tolist()
    lower = posterior.frame("quantile", q=0.25, seed=0)
    np.testing.assert_allclose(found["price_q0.25"], lower["price"].astype(float), rtol=1e-4)
    assert (found["sold_q0.25"] == lower["sold"].to_numpy("datetime64[us]")).all()
    observed = frame["age"].notna()
    assert (found["age_mean"][observed] == frame["age"][observed]).all()
    assert (found["age_low"][observed] == frame["age"][observed]).all()


def test_draws_of_rows_alike_are_different_and_spread_like_the_posterior(tmp_path):
    np.save(tmp_path / "rows.npy", np.full((400, 3), np.nan, dtype=np.float32))
    vae = linear_model()
    run(vae, tmp_path / "rows.npy", tmp_path / "out", method=None, draws=1, shard_rows=400)
    drawn = np.stack(answers(tmp_path / "out")["draw_0"])
    W, b = vae.own_decoder.weight.double().numpy(), vae.own_decoder.bias.double().numpy()
    std = np.sqrt((W @ W.T + 0.25 * np.eye(3)).diagonal())
    assert len(np.unique(drawn[:, 0])) > 300  # of 400 places among 1000, 330 are distinct
    np.testing.assert_allclose(drawn.mean(0), b, atol=(5 * std / 300**0.5).max())
    np.testing.assert_allclose(drawn.std(0), std, rtol=5 / 600**0.5)


def test_the_same_run_writes_the_same_manifest_and_a_finished_one_is_skipped(tmp_path, vae, csv):
    first = run(vae, csv, tmp_path / "one")
    again = run(vae, csv, tmp_path / "two")
    assert first.manifest == again.manifest
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "shards").iterdir()}
    resumed = run(vae, csv, tmp_path / "one")
    assert resumed.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in before} == before
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest == first.manifest
    assert manifest["complete"]
    assert [shard["start"] for shard in manifest["shards"]] == [0, 10, 20]


@pytest.mark.parametrize("harm", ["one byte", "cut", "removed", "record"])
def test_a_damaged_shard_is_answered_again(tmp_path, vae, csv, harm):
    out = tmp_path / "out"
    whole = run(vae, csv, out)
    shard = out / "shards" / "shard-00000001.parquet"
    content = bytearray(shard.read_bytes())
    if harm == "one byte":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif harm == "cut":
        shard.write_bytes(content[:-1])
    elif harm == "removed":
        shard.unlink()
    else:
        record = out / "records" / "00000001.json"
        record.write_text(record.read_text().replace('"answered": 10', '"answered": 11'))
    resumed = run(vae, csv, out)
    assert resumed.manifest == whole.manifest
    assert len(resumed.notes) == (harm != "record")
    assert (out / "shards" / "shard-00000001.parquet").read_bytes() != content or harm != "one byte"


def test_another_model_seed_setting_or_source_is_refused_by_name(tmp_path, vae, csv):
    out = tmp_path / "out"
    run(vae, csv, out)
    other = table_model()
    other.decoder[0].bias.data += 1  # frozen copies share no storage
    for words, args, options in (
        ("fingerprint of the model", (other, csv), {}),
        ("seed as in the run in .*, 0, got 1", (vae, csv), {"seed": 1}),
        ("draws as in", (vae, csv), {"draws": 3}),
        ("method as in", (vae, csv), {"method": cc.methods.Importance(num_draws=200)}),
        ("shard_rows as in .*, 10, got 11", (vae, csv), {"shard_rows": 11}),
        ("observe as in", (vae, csv), {"observe": np.array([True, *[False] * 4])}),
        ("max_bytes as in the run", (vae, csv), {"max_bytes": 10**8}),
        ("device as in the run in .*, 'cpu', got 'meta'", (vae, csv), {"device": "meta"}),
        ("path of the source", (vae, write_csv(tmp_path / "b.csv", rows(30))), {}),
    ):
        with pytest.raises(ValueError, match=words):
            run(*args, out, **options)


def test_more_rows_than_before_are_another_source(tmp_path, vae, csv):
    run(vae, csv, tmp_path / "out")
    write_csv(csv, rows(31))
    with pytest.raises(ValueError, match=r"rows of the source as in the run in .*, 30, got 31"):
        run(vae, csv, tmp_path / "out")


def test_a_source_may_be_touched_but_not_changed(tmp_path, vae, csv):
    whole = run(vae, csv, tmp_path / "out")
    os.utime(csv, ns=(1, 1))
    assert run(vae, csv, tmp_path / "out").manifest == whole.manifest
    write_csv(csv, [*rows(30)[:29], ["1", "Ulm", "1", "", "2"]])
    with pytest.raises(SourceChangedError, match=r"rows 20 to 29, which are .* changed"):
        run(vae, csv, tmp_path / "out")


@pytest.mark.parametrize("hidden", ["time", "stamp"])
def test_a_changed_source_of_the_same_size_and_time_is_noticed(tmp_path, monkeypatch, hidden):
    """As after `cp -p`; and where the file system tells no difference at all, in the first rows."""
    from crosscoding.batch.sources import base

    if hidden == "stamp":
        monkeypatch.setattr(base, "stamp_of", lambda path: (1, 1, 1, 1))
    path, data = tmp_path / "rows.npy", np.full((40, 3), 0.1, dtype=np.float32)
    np.save(path, data)
    before = path.stat()
    run(linear_model(), path, tmp_path / "out")
    data[0 if hidden == "stamp" else -1] = 0.9
    np.save(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "out" / "shards" / "shard-00000001.parquet").unlink()
    with pytest.raises(SourceChangedError, match=r"have changed; choose another folder"):
        run(linear_model(), path, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(tmp_path, vae, csv):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"got .* with thesis.tex in it"):
        run(vae, csv, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON in .*choose another folder"):
        run(vae, csv, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected a manifest in .*choose another folder"):
        run(vae, csv, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a writable folder"):
        run(vae, csv, tmp_path / "file")


def test_only_one_run_at_a_time(tmp_path, vae, csv):
    def second(progress):
        with pytest.raises(ValueError, match=f"no other run in .*, but process {os.getpid()} on"):
            run(vae, csv, tmp_path / "out")
        seen.append(progress)

    seen = []
    run(vae, csv, tmp_path / "out", on_progress=second)
    assert [now.rows for now in seen] == [0, 10, 20, 30]
    assert seen[0].rows_per_second is None
    assert seen[-1].seconds_left == 0


def test_bad_rows_are_set_apart_with_the_reason(tmp_path, vae):
    cells = rows(24)
    cells[3][0], cells[7][1], cells[9][4], cells[11][3] = "old", "Rome", "-3", "yesterday"
    cells[12], cells[20][0] = ["1"], "1e999"
    result = run(vae, write_csv(tmp_path / "rows.csv", cells), tmp_path / "out")
    assert (result.answered, result.rejected, result.rows) == (18, 6, 24)
    assert result.manifest["rejected"] == 6
    found = rejected(tmp_path / "out")
    assert found[3].startswith("column 'age': expected a number in row 3")
    assert found[7].startswith("column 'city': expected a category among")
    assert found[9].startswith("column 'price': expected numbers > 0, got -3")
    assert found[11].startswith("column 'sold': expected dates")
    assert found[12] == "expected 5 cells, got 1"
    assert found[20].startswith("column 'age': expected finite numbers")
    others = [row for row in range(24) if row not in found]
    assert answers(tmp_path / "out")["row"].tolist() == others
    good = write_csv(tmp_path / "good.csv", [cells[row] for row in others])
    run(vae, good, tmp_path / "good", shard_rows=18)
    one, two = answers(tmp_path / "out"), answers(tmp_path / "good")
    pd.testing.assert_frame_equal(one.drop(columns="row"), two.drop(columns="row"), rtol=1e-4)


def test_bad_numbers_are_set_apart_too(tmp_path):
    data = np.zeros((5, 3), dtype=np.float32)
    data[1, 2], data[2, 0], data[3, 1] = np.inf, np.nan, 0.5
    np.save(tmp_path / "rows.npy", data)
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Poisson())
    result = run(
        vae, tmp_path / "rows.npy", tmp_path / "out", observe=np.array([True, True, False])
    )
    assert result.answered == 2
    found = rejected(tmp_path / "out")
    assert found[1].startswith("element 2: expected a finite number")
    assert found[2] == "element 0: expected a value, as it should be observed, got a gap"
    assert found[3].startswith("element 1: expected a value")
    assert list(found) == [1, 2, 3]


def test_rows_that_the_method_cannot_answer_are_set_apart(tmp_path, monkeypatch):
    from crosscoding.batch import answers as module

    original = module.condition

    def fails_for_large_values(vae, evidence, *args, **options):
        if (evidence.values > 4).any():
            raise cc.BudgetError("no answer within the limits")
        return original(vae, evidence, *args, **options)

    monkeypatch.setattr(module, "condition", fails_for_large_values)
    data = np.zeros((8, 3), dtype=np.float32)
    data[2, 0] = data[5, 1] = 5
    np.save(tmp_path / "rows.npy", data)
    result = run(linear_model(), tmp_path / "rows.npy", tmp_path / "out")
    assert rejected(tmp_path / "out") == dict.fromkeys((2, 5), "no answer within the limits")
    assert result.answered == 6


def test_a_run_of_bad_rows_only_ends_with_empty_shards(tmp_path, vae):
    path = write_csv(tmp_path / "rows.csv", [["x", "", "", "", ""]] * 12)
    result = run(vae, path, tmp_path / "out")
    assert (result.complete, result.answered, result.rejected) == (True, 0, 12)
    assert len(answers(tmp_path / "out")) == 0


def test_zarr_shards_hold_arrays_in_the_shape_of_the_data(tmp_path, mnist_2d):
    zarr = pytest.importorskip("zarr")
    digits = cc.zoo.digits()[0][:6].numpy()
    np.save(tmp_path / "digits.npy", digits)
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    options = {"observe": mask, "format": "zarr", "shard_rows": 4, "draws": 1}
    result = run(mnist_2d, tmp_path / "digits.npy", tmp_path / "out", **options)
    groups = [zarr.open_group(path) for path in sorted((tmp_path / "out" / "shards").iterdir())]
    mean = np.concatenate([group["mean"][:] for group in groups])
    assert mean.shape == (6, 28, 28)
    np.testing.assert_array_equal(mean[:, :14], digits[:, :14])
    assert np.concatenate([group["row"][:] for group in groups]).tolist() == list(range(6))
    assert groups[0].attrs["verdicts"] == ["trusted", "approximate", "unreliable"]
    assert groups[0]["interval_verdict"].shape == (4,)
    file = next(path for path in (tmp_path / "out" / "shards").rglob("c/*") if path.is_file())
    file.write_bytes(b"other")
    again = run(mnist_2d, tmp_path / "digits.npy", tmp_path / "out", **options)
    assert again.manifest == result.manifest
    assert len(again.notes) == 1


def test_columns_of_numbers_keep_their_names_and_keys(tmp_path):
    frame = pd.DataFrame({"key": ["a", "b"], "x": [0.5, None], "y": [1, 2], "z": [None, 0.25]})
    frame.to_parquet(tmp_path / "rows.parquet")
    run(linear_model(), tmp_path / "rows.parquet", tmp_path / "out", keep=["key"])
    found = answers(tmp_path / "out")
    assert found["key"].tolist() == ["a", "b"]
    assert found["y_mean"].tolist() == [1, 2]
    assert found["x_low"][1] < found["x_high"][1]


def test_an_estimate_writes_nothing_and_counts(tmp_path, vae, csv):
    found = cc.batch.estimate(vae, csv, method=CHEAP, shard_rows=10)
    assert (found.rows, found.shards, found.sample, found.rejected) == (30, 3, 10, 0)
    assert found.seconds > 0
    assert found.bytes > 1000
    assert list(tmp_path.iterdir()) == [csv]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "hmc"}, "expected method to be one of"),
        ({"method": cc.methods.Auto(max_seconds=1)}, "without max_seconds"),
        ({"method": cc.methods.Discrete()}, "for continuous latents"),
        ({"seed": -1}, "seed >= 0"),
        ({"level": 1.5}, "level from 0 to 1"),
        ({"quantiles": [0.1, 2]}, "quantiles from 0 to 1"),
        ({"quantiles": [0.1, 0.1]}, "distinct quantiles"),
        ({"draws": 1001}, "at most 1000 draws"),
        ({"shard_rows": 0}, "shard_rows >= 1"),
        ({"format": "feather"}, "expected a format among parquet, zarr"),
        ({"format": "zarr"}, "expected format='parquet' for the columns of a table"),
        ({"keep": ["a", "a"]}, "distinct columns to keep"),
        ({"observe": [1, 0]}, "observe as booleans of shape"),
        ({"workers": 0}, "workers >= 1"),
        ({"workers": (1, 2)}, "only on Ray"),
        ({"max_bytes": 0}, "max_bytes >= 1"),
        ({"device": "abacus"}, "expected a device such as"),
    ],
)
def test_settings_that_cannot_be(tmp_path, vae, csv, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        run(vae, csv, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_blocks_of_any_size_give_the_same_answers(tmp_path, vae, csv):
    run(vae, csv, tmp_path / "one", max_bytes=10**9)
    run(vae, csv, tmp_path / "two", max_bytes=10**6)
    pd.testing.assert_frame_equal(answers(tmp_path / "one"), answers(tmp_path / "two"), rtol=1e-4)
