"""Climbs by gradients alone reach the mode, query by query, within the allowed steps."""

import pytest
import torch
from problems import linear_gaussian_problem, mixture_target, seeded
from torch import nn

import crosscoding as cc
from crosscoding.methods.numerics.gauss_newton import climb
from crosscoding.methods.numerics.lbfgs import ascend


@pytest.mark.parametrize("scale", [2.0, 0.3, 0.01])
def test_the_mode_of_a_linear_gaussian_model_is_found(scale):
    problem = linear_gaussian_problem(20, 30, scale, batch=3, dtype=torch.double)
    target = problem.target.flatten()
    z, steps = ascend(target, torch.zeros(3, 20).double(), 400)
    exact = problem.exact_posterior()[0]
    # Below what a step must promise, a hundredth of a nat, it stops.
    assert (target.log_joint(z) > target.log_joint(exact) - 0.05).all()
    assert (steps < 150).all()


def curved(batch: int) -> cc.VAETarget:
    decoder = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 40)).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=seeded(1)))
    vae = cc.VAE(decoder, 12, cc.likelihoods.Gaussian(0.1))
    truth = vae.sample_prior(batch, seed=1)
    return cc.VAETarget(vae, cc.Evidence(truth, cc.random_mask((40,), 0.5, seed=2)))


def test_climbs_on_a_curved_model_get_as_far_as_gauss_newton():
    target = curved(4).flatten()
    start = torch.zeros(4, 12).double()
    z, _ = ascend(target, start, 400)
    modes = climb(target, start[None], 50)
    assert (target.log_joint(z) > modes.log_joint[0] - 0.1).sum() >= 3  # they may end in others


def test_climbs_leave_a_saddle_between_two_modes():
    target = mixture_target(torch.double).select(torch.zeros(1, dtype=torch.long))
    start = torch.tensor([[1.5, 1.8]]).double()
    z, _ = ascend(target, start, 100)
    assert min((z[0] - mean).norm() for mean in mixture_target().means) < 0.5


def test_each_climb_is_what_it_is_alone_and_stays_within_its_steps():
    target = curved(4).flatten()
    start = 0.1 * torch.randn(4, 12, generator=seeded(3)).double()
    together, steps = ascend(target, start, 400)
    assert len(steps.unique()) > 1  # some are over before others
    for query in range(4):
        alone, own = ascend(target.select(torch.tensor([query])), start[[query]], 400)
        assert own == steps[query]
        torch.testing.assert_close(alone[0], together[query], rtol=0, atol=1e-10)
    assert (ascend(target, start, 5)[1] == 5).all()
    z, steps = ascend(target, start, 400, stop=lambda: True)
    assert torch.equal(z, start)
    assert (steps == 1).all()
