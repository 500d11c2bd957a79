"""Natural gradients: exact and noiseless on a Gaussian, and never worse than Laplace."""

import pytest
import torch
from problems import linear_gaussian_problem, mirrored_problem, mixture_target, seeded

import crosscoding as cc
from crosscoding.methods import Laplace, NaturalGradient

CHEAP = {"steps": 40, "num_fresh": 100}  # for the tests of every method


@pytest.mark.parametrize("latent", [2, 8, 32])
def test_linear_gaussian_answers_are_exact(latent):
    problem = linear_gaussian_problem(
        latent, data_dim=latent + 6, scale=0.3, batch=3, dtype=torch.double
    )
    posterior = cc.condition(problem.vae, problem.evidence, NaturalGradient(), seed=0)
    exact = problem.exact_log_evidence()
    # Draws come in mirrored pairs, and the precision is exact: only rounding is left.
    torch.testing.assert_close(posterior.c_elbo, exact, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=1e-10, atol=1e-8)
    assert (posterior.c_elbo_error < 1e-8).all()
    assert (posterior.ess > 999.9).all()


def test_every_fit_on_a_gaussian_is_the_same_whatever_the_noise():
    problem = linear_gaussian_problem(6, data_dim=14, scale=0.3, batch=2, dtype=torch.double)
    target = problem.target.flatten()
    mean, covariance = problem.exact_posterior()
    start = mean + 0.5, 2 * torch.linalg.inv(covariance)
    for seed in range(2):
        found, precision, steps = NaturalGradient().fit(target, *start, seeded(seed))
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)
        # Each curvature takes 0.3 off the gap, and it stops where the C-ELBO gains no more:
        # 1e-3 of a variance is 1e-6 nats.
        torch.testing.assert_close(torch.linalg.inv(precision), covariance, rtol=5e-3, atol=1e-4)
        assert (steps <= 400).all()


def curved_problem() -> cc.VAETarget:
    """Evidence under which z lies on a bent ridge of a decoder that is not linear."""
    generator = seeded(3)
    decoder = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12)
    ).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    vae = cc.VAE(decoder, 4, cc.likelihoods.Gaussian(1.0))
    truth = vae.sample_prior(8, seed=1)
    return cc.VAETarget(vae, cc.Evidence(truth, cc.random_mask((12,), 0.5, seed=2)))


def test_the_c_elbo_is_at_least_that_of_one_laplace_mode():
    """It starts there. Both fit one Gaussian; the figures come from fresh draws."""
    target = curved_problem()
    natural = cc.infer(target, NaturalGradient(num_starts=1, num_fresh=4000), seed=0)
    laplace = cc.infer(target, Laplace(num_starts=1, num_fresh=4000), seed=0)
    assert (laplace.stats["modes"] == 1).all()
    error = (natural.c_elbo_error.square() + laplace.c_elbo_error.square()).sqrt()
    assert (natural.c_elbo > laplace.c_elbo - 4 * error).all()
    assert (natural.c_elbo - laplace.c_elbo).mean() > 0.05  # measured 0.1 to 1 nats


def test_the_c_elbo_is_a_lower_bound():
    target = curved_problem()
    posterior = cc.infer(target, NaturalGradient(), seed=0)
    exact = cc.infer(target, cc.methods.TemperedSMC(num_particles=2000), seed=0)
    error = (posterior.c_elbo_error.square() + exact.log_evidence_error.square()).sqrt()
    assert (posterior.c_elbo < exact.log_evidence + 4 * error).all()


def test_one_mode_of_two_is_not_trusted():
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, NaturalGradient(), seed=0)
    assert not posterior.trusted


def test_a_target_whose_curvature_is_not_positive_is_fitted():
    posterior = cc.infer(mixture_target(), NaturalGradient(), seed=0)
    assert posterior.c_elbo.isfinite()
    assert posterior.c_elbo < 5 * posterior.c_elbo_error


def test_a_fit_ends_when_time_is_up():
    target = curved_problem().flatten()
    start = torch.zeros(8, 4).double(), torch.eye(4).double().expand(8, 4, 4)
    asked = []

    def out_of_time():
        asked.append(1)
        return len(asked) == 3

    mean, precision, steps = NaturalGradient().fit(
        target, *start, seeded(0), out_of_time=out_of_time
    )
    assert steps.tolist() == [3] * 8
    assert mean.isfinite().all()
    assert (torch.linalg.eigvalsh(precision) > 0).all()


def test_a_finished_query_leaves_without_changing_the_others():
    target = curved_problem()
    together = cc.infer(target, NaturalGradient(), seed=0)
    assert len(together.stats["steps"].unique()) > 1
    for entry in (0, 5):
        alone = cc.condition(target.vae, target.evidence[[entry]], NaturalGradient(), seed=0)
        # Sums in another order, 1e-16 each, through hundreds of steps.
        torch.testing.assert_close(together.c_elbo[[entry]], alone.c_elbo, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "expected counts >= 1 and num_fresh >= 2"),
        ({"num_starts": 0}, "expected counts >= 1 and num_fresh >= 2"),
        ({"climb_steps": 0}, "expected counts >= 1 and num_fresh >= 2"),
        ({"num_fresh": 1}, "expected counts >= 1 and num_fresh >= 2"),
        ({"num_draws": 3}, "expected an even num_draws >= 2, got 3"),
        ({"num_draws": 0}, "expected an even num_draws >= 2, got 0"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        NaturalGradient(**wrong)
