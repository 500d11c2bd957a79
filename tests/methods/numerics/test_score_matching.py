"""A fit by scores is exact for a Gaussian, wherever its points lie."""

import pytest
import torch

from crosscoding.methods.numerics.score_matching import match_score


def gaussians(dim, num, generator):
    """Means and covariances of `num` Gaussians, with condition numbers of about 100."""
    mean = torch.randn(num, dim, generator=generator, dtype=torch.double)
    axes = torch.linalg.qr(torch.randn(num, dim, dim, generator=generator, dtype=torch.double))[0]
    variances = 10 ** (torch.rand(num, 1, dim, generator=generator, dtype=torch.double) * 2 - 1)
    return mean, (axes * variances) @ axes.mT


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_it_is_exact_for_a_gaussian_from_few_points_of_another_one(dim):
    generator = torch.Generator().manual_seed(0)
    mean, covariance = gaussians(dim, 4, generator)
    num = 3 * dim + 5
    points = 0.5 + 2 * torch.randn(num, 4, dim, generator=generator, dtype=torch.double)
    centred = (points - mean).transpose(0, 1).mT
    gradients = -torch.linalg.solve(covariance, centred).mT.transpose(0, 1)
    log_weights = 0.5 * torch.randn(num, 4, generator=generator, dtype=torch.double)
    start = 1.5 * torch.linalg.cholesky(covariance)
    found, root = match_score(points, gradients, log_weights, mean + 0.5, start)
    # Up to the floor of 1e-4 of the earlier fit's variances.
    torch.testing.assert_close(found, mean, rtol=0, atol=0.02)
    torch.testing.assert_close(root @ root.mT, covariance, rtol=0.02, atol=0.02)


def test_directions_that_no_point_informs_keep_the_earlier_fit():
    points = torch.zeros(5, 1, 3)
    points[:, 0, 0] = torch.linspace(-1, 1, 5)
    gradients = -4 * points
    mean, root = torch.zeros(1, 3, dtype=torch.double), 2 * torch.eye(3, dtype=torch.double)[None]
    found, factor = match_score(points, gradients, torch.zeros(5, 1), mean, root)
    expected = torch.tensor([0.25, 4.0, 4.0], dtype=torch.double)
    torch.testing.assert_close((factor @ factor.mT)[0].diagonal(), expected, rtol=0.01, atol=0)
    assert found.abs().amax() < 1e-6
