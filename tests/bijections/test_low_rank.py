"""A low-rank root of a covariance: the covariance, the inverse and ladj."""

import pytest
import torch
from problems import seeded

from crosscoding.bijections import low_rank, low_rank_inverse

B, D = 3, 4
every_rank = pytest.mark.parametrize("rank", [1, 2, 4, 6])
every_scale = pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])


def parameters(rank, scale=1.0, dim=D):
    generator = seeded(0)
    shift = torch.randn(B, dim, generator=generator, dtype=torch.double)
    log_diagonal = 0.5 * torch.randn(B, dim, generator=generator, dtype=torch.double)
    factor = scale * torch.randn(B, dim, rank, generator=generator, dtype=torch.double)
    return shift, log_diagonal, factor


def points(*shape, dim=D):
    return torch.randn(*shape, B, dim, generator=seeded(1), dtype=torch.double)


def jacobians(params):
    whole = torch.autograd.functional.jacobian(lambda e: low_rank(e, *params)[0], points())
    return torch.stack([whole[b, :, b] for b in range(B)])


@every_rank
@every_scale
def test_its_covariance_is_diagonal_plus_low_rank(rank, scale):
    shift, log_diagonal, factor = params = parameters(rank, scale)
    root = jacobians(params)
    diagonal = log_diagonal.exp()
    columns = diagonal.unsqueeze(-1) * factor
    torch.testing.assert_close(
        root @ root.mT, torch.diag_embed(diagonal.square()) + columns @ columns.mT
    )
    torch.testing.assert_close(low_rank(0 * points(), *params)[0], shift)


@every_rank
@every_scale
def test_ladj_is_that_of_autograd(rank, scale):
    params = parameters(rank, scale)
    sign, expected = torch.linalg.slogdet(jacobians(params))
    assert (sign == 1).all()
    torch.testing.assert_close(low_rank(points(), *params)[1], expected)


@every_rank
@every_scale
def test_the_inverse_undoes_the_map(rank, scale):
    eps, params = points(5, 7), parameters(rank, scale)
    z, ladj = low_rank(eps, *params)
    again, ladj_again = low_rank_inverse(z, *params)
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-8)  # condition numbers up to 1e4
    torch.testing.assert_close(ladj_again, ladj)


def test_gradients_are_finite_where_factors_have_equal_lengths():
    """A symmetric root by eigenvectors has gradients of 1 / 0 there."""
    shift, log_diagonal, _ = parameters(2)
    factor = torch.eye(D).double()[:, :2].repeat(B, 1, 1).requires_grad_()
    z, ladj = low_rank(points(7), shift, log_diagonal, factor)
    (gradient,) = torch.autograd.grad(z.square().sum() + ladj.sum(), factor)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_the_density_integrates_to_one():
    params = [p[:1] for p in parameters(1, dim=2)]
    axis = torch.arange(-15, 15, 0.05, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)[:, None]
    eps, ladj = low_rank_inverse(z, *params)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(-1) - ladj
    total = log_q.exp().sum(0) * 0.05**2
    # the rectangle rule is exact to rounding for a smooth density that is 0 at the border
    torch.testing.assert_close(total, torch.ones(1, dtype=torch.double))


def test_a_batch_is_what_its_entries_are_alone():
    eps, params = points(7), parameters(2)
    z, ladj = low_rank(eps, *params)
    for b in range(B):
        alone = low_rank(eps[:, b : b + 1], *(p[b : b + 1] for p in params))
        torch.testing.assert_close(alone, (z[:, b : b + 1], ladj[:, b : b + 1]))
