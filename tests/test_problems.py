"""The problems of problems.py: what they call exact is so."""

import pytest
import torch
from problems import (
    LOG_2PI,
    blocks,
    linear_gaussian_problem,
    mirrored_problem,
    mixture_target,
    points,
    seeded,
)
from torch.distributions import MultivariateNormal

PROBLEM = linear_gaussian_problem(latent_dim=3, data_dim=8, batch=(2, 3), dtype=torch.double)


def test_the_linear_gaussian_problem_is_the_marginal_normal():
    """Its log p(x) and log p(y|x), worked out through z, against the marginal of t."""
    weight, bias = PROBLEM.vae.decoder.weight, PROBLEM.vae.decoder.bias
    covariance = weight @ weight.mT + 0.25 * torch.eye(8, dtype=torch.double)
    whole = MultivariateNormal(bias, covariance).log_prob(PROBLEM.truth)
    for row in range(2):
        for column in range(3):
            m = PROBLEM.evidence.mask[row, column]
            part = MultivariateNormal(bias[m], covariance[m][:, m])
            log_evidence = part.log_prob(PROBLEM.truth[row, column][m])
            torch.testing.assert_close(PROBLEM.exact_log_evidence()[row, column], log_evidence)
            torch.testing.assert_close(
                PROBLEM.exact_query_log_prob()[row, column], whole[row, column] - log_evidence
            )


@pytest.mark.parametrize(
    "target",
    [mixture_target(torch.double), blocks(2, dtype=torch.double)],
    ids=["mixture", "block"],
)
def test_densities_integrate_to_their_log_evidence(target):
    axis = torch.arange(-8, 10, 0.02, dtype=torch.double)
    log_sum = target.log_joint(torch.cartesian_prod(axis, axis)).logsumexp(0)
    total = log_sum + 2 * torch.log(torch.tensor(0.02))
    assert total.item() == pytest.approx(target.log_evidence, abs=1e-5)  # tails beyond the grid


@pytest.mark.parametrize("target", [mixture_target(), blocks(6)], ids=["mixture", "blocks"])
def test_exact_draws_have_the_exact_moments(target):
    draws, num = target.sample(40_000, generator=seeded(0)), 40_000
    error = (draws.mean(0) - target.mean()).abs() / target.covariance().diagonal().sqrt()
    assert (error < 5 * num**-0.5).all()  # five standard errors
    # of products: five times sd(z_i z_j) / √N, and sd(z_i z_j) is below 5 sd(z_i) sd(z_j) here
    scale = target.covariance().diagonal().sqrt()
    bound = 25 * num**-0.5 * scale[:, None] * scale
    assert ((draws.mT.cov() - target.covariance()).abs() < bound).all()


def test_the_mirrored_problem_is_the_same_at_z_and_minus_z():
    problem = mirrored_problem(torch.double)
    z = 2 * points(50, 2)
    torch.testing.assert_close(problem.target.log_joint(z), problem.target.log_joint(-z))
    # at the modes the likelihood is at its height, between them it is far below
    heights = problem.target.log_joint(torch.stack([problem.mode, -problem.mode, 0 * problem.mode]))
    assert (heights[:2] - heights[2] > 5).all()
    assert problem.target.log_likelihood(problem.mode).item() == pytest.approx(
        -5 * (torch.tensor(0.3).log().item() + 0.5 * LOG_2PI)
    )
