"""Diverging HMC paths do no harm, and models that are NaN near prior draws are refused."""

import pytest
import torch
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.methods import HMC, Variational


class Overflowing(nn.Module):
    """(mean, scale) with a scale that overflows far from the prior."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, z):
        mean = self.linear(z)
        return mean, mean.square().exp()


def test_a_path_of_hmc_that_overflows_is_rejected():
    vae = cc.VAE(Overflowing(), 2, cc.likelihoods.Gaussian(scale=None))
    values = torch.tensor([0.3, float("nan"), 0.1])
    method = HMC(8, 0, 20, step_size=3.0)
    posterior = cc.condition(vae, cc.Evidence.from_nan(values), method, seed=0)
    assert posterior.draws.isfinite().all()
    assert posterior.stats["acceptance"] < 0.5


def test_a_tuple_for_a_likelihood_of_one_parameter_is_refused():
    with pytest.raises(ValueError, match="one tensor from the decoder for Gaussian, got 2"):
        cc.VAE(Overflowing(), 2, cc.likelihoods.Gaussian(0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoder_in_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match="float32 or float64"):
        cc.VAE(nn.Linear(2, 3).to(dtype), 2, cc.likelihoods.Gaussian(0.1))


def test_another_model_than_the_saved_one_is_refused(tmp_path):
    problem = linear_gaussian_problem(2, data_dim=4)
    posterior = cc.condition(problem.vae, problem.evidence, Variational(steps=10), seed=0)
    posterior.save(tmp_path / "saved")
    other = linear_gaussian_problem(2, data_dim=4, seed=7)
    with pytest.raises(ValueError, match="expected the model that the posterior"):
        cc.Posterior.load(tmp_path / "saved", vae=other.vae)
