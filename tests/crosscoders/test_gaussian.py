"""Gaussians against those of torch, of any rank and from given moments."""

import pytest
import torch
from crosscoder_families import fitted, points
from problems import linear_gaussian_problem, seeded
from torch.distributions import MultivariateNormal, Normal

from crosscoding.crosscoders import Fitted, Gaussian
from crosscoding.crosscoders.base import base_log_prob


@pytest.mark.parametrize("family", [Gaussian(rank=2), Gaussian(rank=5), Gaussian(diagonal=True)])
def test_a_diagonal_or_low_rank_gaussian_is_the_multivariate_normal(family):
    q, z = fitted(family, dim=4), points(50, dim=4)
    diagonal = q.params["log_diagonal"].exp()
    covariance = torch.diag_embed(diagonal.square())
    if family.rank:
        columns = diagonal.unsqueeze(-1) * q.params["factor"]
        covariance = covariance + columns @ columns.mT
    reference = MultivariateNormal(q.params["shift"], covariance)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_rank_gaussian_works_in_thousands_of_dimensions(dtype):
    mean = torch.zeros(2, 4096, dtype=dtype)
    family = Gaussian(rank=10)
    params = family.start(mean, mean + 0.5, generator=seeded(0))
    params["factor"] = 3 * params["factor"]
    q = Fitted(family, params, 4096)
    draws, log_prob = q.rsample_and_log_prob(3, generator=seeded(1))
    # sums of 4,096 squares: float32 keeps 7 digits of them
    torch.testing.assert_close(q.log_prob(draws), log_prob, rtol=1e-5, atol=1e-5)
    assert sum(p[0].numel() for p in params.values()) == 12 * 4096


def test_base_log_prob_is_a_standard_normal():
    eps = points(7)
    torch.testing.assert_close(base_log_prob(eps), Normal(0.0, 1.0).log_prob(eps).sum(-1))


def test_a_gaussian_from_moments_is_the_multivariate_normal():
    mean, covariance = linear_gaussian_problem(
        latent_dim=4, batch=(3,), dtype=torch.double
    ).exact_posterior()
    q, reference = Gaussian.from_moments(mean, covariance), MultivariateNormal(mean, covariance)
    z = points(7, dim=4)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
    draws, log_prob = q.rsample_and_log_prob(20_000, generator=seeded(0))
    torch.testing.assert_close(log_prob, reference.log_prob(draws))
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # five standard errors: of a mean sd / √N, of a covariance at most sqrt(2 / N) sd sd
    assert ((draws.mean(0) - mean).abs() < 5 * scale * 20_000**-0.5).all()
    for b in range(3):
        bound = 5 * (2 / 20_000) ** 0.5 * scale[b, :, None] * scale[b]
        assert ((draws[:, b].mT.cov() - covariance[b]).abs() < bound).all()


def test_a_gaussian_from_moments_of_one_query_has_a_batch_of_one():
    q = Gaussian.from_moments(torch.zeros(2), torch.eye(2))
    assert q.log_prob(torch.zeros(5, 1, 2)).shape == (5, 1)


def test_c_elbo_equals_log_evidence_at_the_exact_posterior():
    problem = linear_gaussian_problem(latent_dim=3, batch=(4,), dtype=torch.double)
    q = Gaussian.from_moments(*problem.exact_posterior())
    z, log_q = q.rsample_and_log_prob(7, generator=seeded(0))
    weights = problem.target.log_joint(z) - log_q
    expected = problem.exact_log_evidence().expand(7, 4)
    torch.testing.assert_close(weights, expected)  # zero variance
