"""Auto: right wherever the exact answer is known."""

import math

import pytest
import torch
from auto_answers import assert_entries_are_those_alone, labels, several_stages, spent
from problems import (
    MixtureTarget,
    ill_conditioned_problem,
    linear_gaussian_problem,
    mixture_target,
    seeded,
)
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.methods import Auto, Grid
from crosscoding.methods.cascade.budget import Budget

CHEAP = {"num_draws": 400}  # for the tests of every method

pytestmark = pytest.mark.usefixtures("without_closed_form")


# ---- right answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent", "data", "scale"),
    [(2, 6, 0.5), (2, 6, 0.05), (8, 20, 0.5), (8, 20, 0.1), (32, 64, 0.1)],
)
def test_linear_gaussian_answers_are_trusted_and_right(latent, data, scale):
    problem = linear_gaussian_problem(latent, data_dim=data, scale=scale, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert labels(posterior) == ["trusted"] * 3
    off = posterior.log_evidence - problem.exact_log_evidence()
    # 4 standard errors; the errors of a fit this good are near 0, and float32 has 1e-4 of 100 nats.
    assert (off.abs() < 4 * posterior.log_evidence_error + 1e-3).all()
    mean, covariance = problem.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # 1,000 draws resampled from 600 effective ones at least: 5 standard errors.
    assert (((posterior.draws.mean(0) - mean) / sd).abs() < 5 / math.sqrt(600)).all()
    assert (posterior.draws.std(0) / sd - 1).abs().max() < 5 / math.sqrt(2 * 600)


@pytest.mark.parametrize("condition", [1e6, 1e8, 1e10, 1e14])
@pytest.mark.parametrize("latent", [5, 20])
@pytest.mark.slow
def test_ill_conditioned_answers_are_right_or_not_trusted(latent, condition):
    """In float32, whose rounding is more than the least eigenvalue from 1e7 on."""
    target, exact = ill_conditioned_problem(latent, condition)
    posterior = cc.infer(target, Auto(), seed=0)
    off = abs(posterior.log_evidence.item() - exact)
    if condition <= 1e10:
        assert off < 0.05
    elif posterior.trusted:
        assert off < 0.2


def test_in_128_dimensions_log_evidence_is_right():
    problem = linear_gaussian_problem(128, data_dim=192, scale=0.5, batch=2)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    # Float32 has 1e-3 of 400 nats.
    torch.testing.assert_close(
        posterior.log_evidence, problem.exact_log_evidence(), rtol=0, atol=1e-2
    )
    assert labels(posterior) == ["trusted"] * 2


@pytest.mark.slow
def test_digits_in_two_dimensions_are_those_of_a_fine_grid(mnist_2d):
    digits = cc.zoo.digits()[0][:4]
    mask = torch.stack([cc.random_mask((28, 28), s, seed=1) for s in (0.02, 0.05, 0.1, 0.3)])
    evidence = cc.Evidence(digits, mask)
    posterior = cc.condition(mnist_2d, evidence, Auto(), seed=0)
    exact = cc.condition(mnist_2d, evidence, Grid(tolerance=1e-4), seed=0)
    assert labels(posterior) == ["trusted"] * 4
    # The cascade's grid has 0.05 nats, and it calls a twentieth of a nat trusted.
    torch.testing.assert_close(posterior.log_evidence, exact.log_evidence, rtol=0, atol=0.05)
    # Means of grey values, 0 to 1, over 1,000 draws: 5 standard errors of the most uncertain.
    torch.testing.assert_close(posterior.mean(), exact.mean(), rtol=0, atol=5 * 0.5 / 600**0.5)


def test_the_mixture_with_a_far_mode_is_right():
    target = mixture_target()
    posterior = cc.infer(target, Auto(), seed=0)
    assert labels(posterior) == ["trusted"]
    assert abs(posterior.log_evidence.item()) < 0.05
    # 5 standard errors of a share of 0.25 in 1,000 draws, which are spread better than at random.
    assert abs(target.masses(posterior.draws)[2] - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 1000)


# ---- many dimensions, large decoders -----------------------------------------------------------


@pytest.mark.parametrize("scale", [20.0, 0.5])
def test_in_very_many_dimensions_there_is_one_fit_and_it_is_not_trusted(scale):
    problem = linear_gaussian_problem(600, data_dim=40, scale=scale, batch=2)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "fit"]
    exact = problem.exact_log_evidence()
    torch.testing.assert_close(posterior.c_elbo, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=0.05)
    assert not posterior.trusted.any()
    reason = "nothing has searched for modes that it may lack"
    assert all(reason in verdict.reasons for verdict in posterior.verdicts)


@pytest.mark.slow
def test_entries_in_very_many_dimensions_are_what_they_are_alone():
    decoder = nn.Sequential(nn.Linear(520, 6), nn.Tanh(), nn.Linear(6, 30)).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(0)))
    vae = cc.VAE(decoder, 520, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(vae.sample_prior(3, seed=1), cc.random_mask((30,), 0.5, seed=2))
    posterior = cc.condition(vae, evidence, Auto(), seed=0)
    assert (posterior.c_elbo_error > 0.01).all()  # it is curved
    assert_entries_are_those_alone(posterior, seed=0)


def test_a_decoder_that_takes_seconds_has_one_fit():
    assert Budget(latent_dim=8, operations=1.1e8).low_rank
    assert not Budget(latent_dim=8, operations=0.9e8).low_rank
    assert Budget(latent_dim=4096, operations=1e12).fit_decodes == 240


# ---- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [2, 8])
def test_an_empty_batch_has_empty_answers(latent):
    problem = linear_gaussian_problem(latent, data_dim=10)
    posterior = cc.condition(problem.vae, problem.evidence[:0], Auto(), seed=0)
    assert posterior.verdicts == posterior.trace == []
    assert posterior.trusted.shape == (0,)
    assert posterior.sample(3).shape == (3, 0, latent)


@pytest.mark.parametrize("latent", [2, 8, 32])
def test_without_evidence_the_answer_is_the_prior(latent):
    problem = linear_gaussian_problem(latent, data_dim=2 * latent, batch=2)
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, Auto(), seed=0)
    assert labels(posterior) == ["trusted"] * 2
    assert posterior.log_evidence.tolist() == [0, 0]
    assert spent(posterior).tolist() == [0, 0]
    # 5 standard errors of 1,000 draws, in the worst of 64 directions.
    assert posterior.draws.mean(0).abs().max() < 5 / math.sqrt(1000)
    assert (posterior.draws.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("latent", [2, 8, 32])
def test_with_everything_observed_log_evidence_is_exact(latent):
    problem = linear_gaussian_problem(latent, data_dim=2 * latent, batch=2)
    everything = cc.Evidence(problem.truth, torch.tensor(True))
    posterior = cc.condition(problem.vae, everything, Auto(), seed=0)
    exact = problem.exact_log_evidence(everything)
    assert ((posterior.log_evidence - exact).abs() < 4 * posterior.log_evidence_error + 1e-3).all()
    assert torch.equal(posterior.mean(), problem.truth)


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_faint_evidence_does_not_raise(scale):
    """The distance from the prior is 0 then."""
    problem = linear_gaussian_problem(6, data_dim=8, scale=scale, batch=4)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    off = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert (off < 4 * posterior.log_evidence_error + 1e-3).all()


def test_a_swarm_next_to_the_prior_does_not_raise():
    """A wide mode and a small one: the bank reaches it in one go, and the first fit is poor."""
    means = torch.tensor([[0.0] * 4, [1.0] * 4])
    scales = torch.tensor([[0.7] * 4, [0.2] * 4])
    target = MixtureTarget(torch.tensor([0.9, 0.1]), means, scales, prior_scale=1.2)
    posterior = cc.infer(target, Auto(), seed=0)
    if posterior.trusted:
        assert posterior.log_evidence.abs() < 0.2


class FarOverflow(nn.Module):
    """Outputs NaN at one prior draw in a hundred, beyond 2.3 along the first axis."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) / (z[:, :1] < 2.3).to(z.dtype) * (z[:, :1] < 2.3)


@pytest.mark.parametrize("latent", [2, 8])
def test_a_decoder_that_outputs_nan_raises(latent):
    decoder = FarOverflow(latent)
    vae = cc.VAE(decoder, latent, cc.likelihoods.Gaussian(0.5))
    evidence = cc.Evidence(torch.zeros(2, 8), torch.tensor(True))
    with pytest.raises(cc.NonFiniteError, match="the decoder outputs"):
        cc.condition(vae, evidence, Auto(), seed=0)


def test_torchs_global_random_state_is_left_alone():
    target, before = several_stages(), torch.random.get_rng_state()
    cc.infer(target, Auto())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_goes_from_0_to_1():
    shares = []
    target = several_stages()
    cc.infer(target, Auto(), seed=0, report=lambda share, what: shares.append(share))
    assert shares
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    "wrong",
    [{"max_seconds": 0}, {"max_seconds": -1.0}, {"max_decodes": 0}, {"num_draws": 1}],
    ids=str,
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} "):
        Auto(**wrong)
