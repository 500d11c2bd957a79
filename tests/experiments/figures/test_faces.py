"""The figures on faces, with a small decoder, and with the paper's own if it is available."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import crosscoding as cc
from crosscoding.experiments import faces
from crosscoding.experiments.experiment import Context, UnavailableError
from crosscoding.experiments.figures import (
    face_completions,
    face_methods,
    face_scores,
    face_seconds,
    hmc_acceptance,
    prior_draws,
)
from crosscoding.experiments.recorded_runs import run

TINY = face_methods.Settings(
    num_sets=3,
    gvi_steps=2,
    nf_steps=2,
    natural_steps=2,
    draws_a_step=4,
    nf_layers=2,
    num_chains=2,
    num_warmup=3,
    num_draws=60,
    max_decodes=500,
)


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A data folder of single-coloured pictures, and a linear model of them in the zoo."""
    data = tmp_path / "data"
    data.mkdir()
    for family in ("anime", "celeba"):
        with zipfile.ZipFile(data / f"{family}_64.zip", "w") as archive:
            for index in range(32):
                written = io.BytesIO()
                Image.new("RGB", (64, 64), (8 * index, 0, 255)).save(written, "JPEG", quality=95)
                archive.writestr(f"{index:05}.jpg", written.getvalue())
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3 * 64 * 64)
    nn.init.normal_(linear.weight, std=0.1, generator=generator)
    nn.init.zeros_(linear.bias)
    decoder = nn.Sequential(linear, nn.Tanh(), nn.Unflatten(1, (3, 64, 64)))
    vae = cc.VAE(decoder, 4, cc.likelihoods.Gaussian(0.5))
    real = cc.zoo.load
    known = ["mnist-20d", "mnist-2d"]
    monkeypatch.setattr(faces.zoo, "names", lambda: [*known, "celeba-100d"])
    monkeypatch.setattr(
        faces.zoo, "load", lambda name: vae if name == "celeba-100d" else real(name)
    )
    return Context(tmp_path / "out", data=data)


def test_pictures_are_from_the_last_ones_and_in_minus_one_to_one(context):
    found = faces.pictures(context.data_file("celeba_64.zip"), 4)
    assert found.shape == (4, 3, 64, 64)
    # Thirty of 32 are kept, so the first has index 2; a JPEG is off by a few of 255.
    red = (found[:, 0].mean((1, 2)) + 1) * 127.5
    torch.testing.assert_close(red, torch.tensor([16.0, 24.0, 32.0, 40.0]), atol=4, rtol=0)
    with pytest.raises(ValueError, match="at most 30 pictures, got 31"):
        faces.pictures(context.data_file("celeba_64.zip"), 31)


def test_evidence_is_the_eyes_or_random_pixels_in_turns(context):
    (model,) = faces.models(context, "celeba")
    problem = faces.problem(model, context, "both", 3)
    counts = problem.mask.flatten(1).sum(1).tolist()
    assert counts == [3 * 15 * 34, 3 * round(0.05 * 64 * 64), 3 * 15 * 34]
    assert problem.mask[0, :, 25:40, 16:50].all()


def test_missing_models_are_named(context, tmp_path):
    with pytest.raises(UnavailableError, match="no anime-64d"):
        faces.models(context, "anime")
    with pytest.raises(UnavailableError, match="CROSSCODING_DATA"):
        faces.models(Context(tmp_path))
    assert [model.name for model in faces.models(context)] == ["celeba-100d"]


@pytest.mark.slow
def test_one_evidence_set_is_drawn_with_the_evidence_on_every_picture(context):
    context.folder.mkdir()
    record, _ = run(replace(face_completions.FIG7, full=TINY), context)
    methods = record["numbers"]["models"]["celeba-100d"]
    assert list(methods) == ["GVI", "NF", "HMC", "HMC, 1 chain", "NG", "Auto"]
    assert all(each["picture_diversity"] >= 0 for each in methods.values())
    assert (context.folder / "fig7-celeba-100d.png").stat().st_size > 1000


@pytest.mark.slow
def test_one_face_has_seconds_and_a_bound_for_each_fit(context):
    context.folder.mkdir()
    settings = face_seconds.Settings(
        num_models=1, steps=(2, 4), natural_steps=(2,), nf_layers=2, decodes=(500,), num_draws=20
    )
    record, _ = run(replace(face_seconds.SECONDS, full=settings), context)
    methods = record["numbers"]["models"]["celeba-100d"]
    assert {name: [fit["effort"] for fit in fits] for name, fits in methods.items()} == {
        "GVI": [2, 4],
        "NF": [2, 4],
        "NG": [2],
        "Auto": [500],
    }
    assert all(fit["seconds"] > 0 for fits in methods.values() for fit in fits)
    assert all(fit["c_elbo"] is not None for fit in methods["GVI"])
    assert methods["GVI"][0]["device"] == "cpu"


@pytest.mark.slow
def test_many_evidence_sets_have_scores_and_spreads(context):
    context.folder.mkdir()
    record, _ = run(replace(face_scores.FIG8, full=TINY), context)
    methods = record["numbers"]["models"]["celeba-100d"]
    for name in ("GVI", "NF", "HMC", "HMC, 1 chain", "NG", "Auto"):
        assert len(methods[name]["latent_diversity"]) == 3
        assert len(methods[name]["picture_diversity"]) == 3
    assert len(methods["GVI"]["c_elbo"]) == 3


def test_diversity_is_the_typical_distance_per_element():
    points = torch.randn(4000, 2, 30, generator=torch.Generator().manual_seed(0)) * 3
    # √2 · 3 = 4.243; 120,000 numbers determine a standard deviation to 0.2 %.
    assert face_methods.diversity(points).tolist() == pytest.approx([4.243] * 2, rel=0.01)
    assert face_methods.diversity(torch.ones(5, 1, 3)).item() == 0


def test_acceptance_falls_with_the_step_size(context):
    context.folder.mkdir()
    settings = hmc_acceptance.Settings(
        step_sizes=(1e-4, 1.0), num_leapfrog=(2,), num_chains=3, burn_in=1, num_steps=3
    )
    record, _ = run(replace(hmc_acceptance.FIG5, full=settings), context)
    small, large = record["numbers"]["models"]["celeba-100d"]["2"]["acceptance"]
    assert len(small) == 3
    assert min(small) > 0.9
    assert max(large) < 0.1


def test_prior_draws_of_every_model_are_drawn(context):
    context.folder.mkdir()
    record, _ = run(replace(prior_draws.FIG10, full=prior_draws.Settings(num_draws=4)), context)
    assert list(record["numbers"]["models"]) == ["mnist-2d", "mnist-20d", "celeba-100d"]
    assert "fig10-celeba-100d.png" in record["files"]


def test_the_papers_own_decoder_gives_its_reference_outputs(models_folder):
    folder = models_folder / "celeba-100d"
    vae = faces.papers_own(folder)
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        z, wanted = torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["x"])
    # 1e-4: the reference was computed without PyTorch, with float32 sums in another order.
    torch.testing.assert_close(vae.decode(z), wanted, rtol=0, atol=1e-4)
    assert vae.to_parts() is not None  # a stack of common layers, which can be saved
