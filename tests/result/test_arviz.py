"""A posterior as ArviZ reads it, and the message if ArviZ is not installed."""

import sys

import pytest
import torch
from problems import linear_gaussian_problem, mixture_target
from torch import Tensor

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import HMC, Grid, Rejection, Variational

METHODS = {
    "fit": Variational(Gaussian(), steps=30, num_draws=8, num_fresh=50),
    "chains": HMC(num_chains=3, num_warmup=20, num_draws=10, num_leapfrog=4),
    "rejection": Rejection(40),
    "grid": Grid(tolerance=0.02),
}


@pytest.fixture(scope="module")
def arviz():
    return pytest.importorskip("arviz", reason="arviz is not installed")


def posterior_by(name: str, batch: tuple[int, ...] = (2, 3)) -> cc.Posterior:
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    return cc.condition(problem.vae, problem.evidence, METHODS[name], seed=0)


def tensor(variable) -> Tensor:
    return torch.from_numpy(variable.values.copy())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.usefixtures("arviz")
def test_draws_have_chains_then_the_batch_then_the_latent(name, batch):
    posterior = posterior_by(name, batch)
    z = posterior.to_arviz()["posterior"]["z"]
    assert z.dims == ("chain", "draw", *[f"batch_{i}" for i in range(len(batch))], "latent")
    assert z.sizes["chain"] == (3 if name == "chains" else 1)
    assert torch.equal(tensor(z).flatten(0, 1), posterior.draws)
    assert z.coords["draw"].values.tolist() == list(range(z.sizes["draw"]))


@pytest.mark.usefixtures("arviz")
def test_there_are_weights_only_where_draws_have_them():
    for name in METHODS:
        posterior = posterior_by(name)
        data = posterior.to_arviz()
        groups = list(data.children) if hasattr(data, "children") else data.groups()
        assert ("sample_stats" in groups) == (name == "grid")
    log_weights = data["sample_stats"]["log_weights"]
    assert log_weights.dims == ("chain", "draw", "batch_0", "batch_1")
    assert torch.equal(tensor(log_weights)[0], posterior.log_weights)


@pytest.mark.usefixtures("arviz")
def test_evidence_is_exported_where_observed_and_nan_elsewhere():
    posterior = posterior_by("rejection")
    observed = posterior.to_arviz()["observed_data"]
    assert observed["evidence"].dims == observed["mask"].dims == ("batch_0", "batch_1", "data_0")
    evidence = posterior.target.evidence
    assert torch.equal(tensor(observed["mask"]), evidence.mask)
    values = tensor(observed["evidence"])
    assert torch.equal(values[evidence.mask], evidence.values[evidence.mask])
    assert values[~evidence.mask].isnan().all()


@pytest.mark.usefixtures("arviz")
def test_a_bare_density_has_no_observed_data():
    data = cc.infer(mixture_target(), METHODS["rejection"], seed=0).to_arviz()
    groups = list(data.children) if hasattr(data, "children") else data.groups()
    assert list(groups) == ["posterior"]
    assert data["posterior"]["z"].shape == (1, 40, 2)


@pytest.mark.usefixtures("arviz")
def test_method_and_seconds_are_exported():
    posterior = posterior_by("fit")
    data = posterior.to_arviz()
    for attributes in (data.attrs, data["posterior"].attrs):
        assert attributes["method"] == "Variational"
        assert attributes["seconds"] == posterior.seconds
        assert attributes["inference_library"] == "crosscoding"


def test_arviz_finds_the_chains_r_hat(arviz):
    """Its rank-normalised split R-hat of each latent is the one of the diagnostics."""
    posterior = posterior_by("chains")
    found = tensor(arviz.rhat(posterior.to_arviz(), method="z_scale")["z"]).amax(-1)
    # ranks are divided in float32 here
    torch.testing.assert_close(found, posterior.stats["r_hat"].double(), rtol=1e-4, atol=0)


@pytest.mark.usefixtures("arviz")
def test_chains_stay_separate_after_saving_and_loading(tmp_path):
    posterior = posterior_by("chains")
    posterior.save(tmp_path / "saved")
    z = cc.Posterior.load(tmp_path / "saved").to_arviz()["posterior"]["z"]
    assert torch.equal(tensor(z), posterior.draws.unflatten(0, (3, 10)))


@pytest.mark.parametrize("name", ["chains", "grid"])
def test_the_export_can_be_written_to_netcdf_and_read_again(arviz, name, tmp_path):
    data = posterior_by(name).to_arviz()
    data.to_netcdf(str(tmp_path / "data.nc"), engine="h5netcdf")
    again = arviz.from_netcdf(str(tmp_path / "data.nc"))
    assert again["posterior"]["z"].equals(data["posterior"]["z"])
    assert again["observed_data"]["mask"].equals(data["observed_data"]["mask"])
    assert again["posterior"].attrs["method"] == data["posterior"].attrs["method"]


@pytest.mark.usefixtures("arviz")
def test_an_empty_batch_can_be_exported():
    assert posterior_by("rejection", (0,)).to_arviz()["posterior"]["z"].shape == (1, 40, 0, 2)


def test_without_arviz_the_error_says_how_to_install_it(monkeypatch):
    posterior = posterior_by("rejection")
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'crosscoding\[arviz\]'"):
        posterior.to_arviz()
