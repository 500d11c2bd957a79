"""`Gaussian(None, log_variance=True)`: the distribution of the scale, at any log variance."""

import json
import math
import warnings

import pytest
import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian, Likelihood, Mixed, Poisson

LOG_VARIANCE = Gaussian(None, log_variance=True)


class Heads(nn.Module):
    """Mean and log variance of five elements, or mean and scale, as a pair or as one tensor."""

    def __init__(self, *, scale: bool = False, pair: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 10), nn.Unflatten(1, (2, 5)))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
        self.scale, self.pair = scale, pair

    def forward(self, z: Tensor):
        mean, log_variance = self.layers(z).unbind(1)
        second = (0.5 * log_variance).exp() if self.scale else log_variance
        return (mean, second) if self.pair else torch.stack([mean, second], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", [True, False])
def test_answers_are_those_of_the_scale_itself(dtype, pair):
    by_log = cc.VAE(Heads(pair=pair).to(dtype), 2, LOG_VARIANCE)
    by_scale = cc.VAE(Heads(scale=True).to(dtype), 2, Gaussian(None))
    assert by_log.data_shape == by_scale.data_shape == (5,)
    truth = by_scale.sample_prior(4, seed=1)
    evidence = cc.Evidence(truth, torch.arange(5) < 3)
    method = cc.methods.Grid()
    one, other = (cc.condition(vae, evidence, method, seed=0) for vae in (by_log, by_scale))
    tolerance = {"rtol": 1e-4, "atol": 1e-4}  # a grid that adapts to rounded curvature may differ
    torch.testing.assert_close(one.log_evidence, other.log_evidence, **tolerance)
    torch.testing.assert_close(one.mean(), other.mean(), **tolerance)
    torch.testing.assert_close(one.std(), other.std(), **tolerance)


def test_curvature_in_z_is_that_of_the_scale_itself():
    """Jᵀ F J does not depend on how σ is parametrised; F does."""
    by_log, by_scale = (
        cc.VAE(Heads(scale=scale).double(), 2, likelihood)
        for scale, likelihood in ((False, LOG_VARIANCE), (True, Gaussian(None)))
    )
    z = torch.randn(4, 2, generator=seeded(2), dtype=torch.double)
    evidence = cc.Evidence(by_scale.sample_prior(4, seed=1), torch.arange(5) < 3)
    one, other = (cc.VAETarget(vae, evidence).curvature(z) for vae in (by_log, by_scale))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("residual", "log_variance"), [(1e30, 190.0), (0.0, -400.0), (1e30, 400.0), (2e-30, -137.0)]
)
def test_a_scale_beyond_single_precision_does_not_matter(residual, log_variance):
    standardized = residual * math.exp(-0.5 * log_variance)
    expected = -0.5 * (standardized**2 + log_variance + math.log(2 * math.pi))
    params = torch.tensor([[0.0, log_variance]], requires_grad=True)
    values, mask = torch.tensor([residual]), torch.tensor([True])
    for log_prob in (
        LOG_VARIANCE.log_prob(params, values)[0],
        LOG_VARIANCE.masked_log_prob(params, values, mask),
        LOG_VARIANCE.pairwise_log_prob((params[None].detach(),), values[None], mask[None])[0, 0],
    ):
        assert log_prob.item() == pytest.approx(expected, rel=1e-5)
    (slope,) = torch.autograd.grad(LOG_VARIANCE.log_prob(params, values).sum(), params)
    assert slope.isfinite().all()


def test_wrong_settings_are_refused():
    for scale in (0.1, torch.ones(3)):
        with pytest.raises(ValueError, match=r"expected scale=None with log_variance=True, got"):
            Gaussian(scale, log_variance=True)
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="expected log_variance to be True or False, got"):
            Gaussian(None, log_variance=wrong)
    assert repr(LOG_VARIANCE) == "Gaussian(scale=None, log_variance=True)"
    assert repr(Gaussian(0.1)) == "Gaussian(scale=0.1)"


def test_the_setting_is_saved_and_older_folders_still_load():
    tensors, description = json.loads(json.dumps(LOG_VARIANCE.to_parts()))
    again = Likelihood.from_parts((tensors, description))
    assert isinstance(again, Gaussian)
    assert again.log_variance
    old = {"name": "Gaussian", "settings": {"scale": None}}
    again = Likelihood.from_parts(({}, old))
    assert isinstance(again, Gaussian)
    assert not again.log_variance
    assert again.to_parts() == ({}, old)
    with pytest.raises(cc.ModelFormatError, match="log_variance to be True or False"):
        Likelihood.from_parts(
            ({}, {"name": "Gaussian", "settings": {"scale": None, "log_variance": 0}})
        )


def test_a_loaded_model_keeps_its_log_variances(tmp_path):
    decoder = nn.Sequential(nn.Linear(2, 10), nn.Unflatten(1, (5, 2)))
    vae = cc.VAE(decoder, 2, LOG_VARIANCE)
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    assert torch.equal(again.sample_prior(5, seed=0), vae.sample_prior(5, seed=0))
    evidence = cc.Evidence(vae.sample_prior(2, seed=1), torch.arange(5) < 3)
    cc.condition(vae, evidence, cc.methods.Grid(), seed=0).save(tmp_path / "answer")
    assert cc.Posterior.load(tmp_path / "answer").predict(3).shape == (3, 2, 5)


def test_columns_of_a_table_may_have_log_variances():
    table = Mixed([(LOG_VARIANCE, 2), Poisson()])
    params = torch.randn(4, 5, generator=seeded(0))
    values = torch.tensor([0.3, -1.0, 2.0])
    expected = torch.distributions.Normal(params[:, [0, 2]], (0.5 * params[:, [1, 3]]).exp())
    found = table.log_prob(params, values)[:, :2]
    torch.testing.assert_close(found, expected.log_prob(values[:2]))
    again = Likelihood.from_parts(table.to_parts())
    assert torch.equal(again.log_prob(params, values), table.log_prob(params, values))


def test_negative_scales_suggest_log_variances():
    with pytest.raises(ValueError, match=r"got -.*; .*use Gaussian\(None, log_variance=True\)"):
        cc.VAE(Heads(), 2, Gaussian(None))
    with pytest.raises(ValueError, match=r"use Gaussian\(None, log_variance=True\)"):
        Mixed([(Gaussian(None), 2), Poisson()]).check_params(torch.full((5, 5), -0.5))
    cc.VAE(Heads(), 2, LOG_VARIANCE)


def test_no_log_variance_is_doubted():
    """Not even between 0 and 1, as for ratings from 1 to 5."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cc.VAE(Heads(scale=True), 2, LOG_VARIANCE)
    assert LOG_VARIANCE.doubt(torch.rand(5, 8, 2, generator=seeded(0))) == ""
