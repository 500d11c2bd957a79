"""z = L ε + b: the inverse undoes it, and its ladj is that of autograd."""

import pytest
import torch
from problems import seeded

from crosscoding.bijections import affine, affine_inverse
from crosscoding.bijections.affine import scale_matrix

B, D = 3, 4


def parameters():
    generator = seeded(0)
    shift = torch.randn(B, D, generator=generator, dtype=torch.double)
    log_diagonal = 0.5 * torch.randn(B, D, generator=generator, dtype=torch.double)
    lower = torch.randn(B, D, D, generator=generator, dtype=torch.double)
    return shift, log_diagonal, lower


def points(*shape):
    return torch.randn(*shape, B, D, generator=seeded(1), dtype=torch.double)


def test_the_map_is_a_matrix_product():
    eps, (shift, log_diagonal, lower) = points(7), parameters()
    z, _ = affine(eps, shift, log_diagonal, lower)
    for b in range(B):
        matrix = lower[b].tril(-1) + log_diagonal[b].exp().diag()
        torch.testing.assert_close(z[:, b], eps[:, b] @ matrix.mT + shift[b])


def test_the_inverse_undoes_the_map():
    eps, params = points(5, 7), parameters()
    z, ladj = affine(eps, *params)
    again, ladj_again = affine_inverse(z, *params)
    assert z.shape == eps.shape
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    torch.testing.assert_close(again, eps)
    torch.testing.assert_close(ladj_again, ladj)


def test_ladj_is_that_of_autograd():
    eps, params = points(), parameters()
    _, ladj = affine(eps, *params)
    jacobian = torch.autograd.functional.jacobian(lambda e: affine(e, *params)[0], eps)
    for b in range(B):
        expected = torch.linalg.slogdet(jacobian[b, :, b]).logabsdet
        torch.testing.assert_close(ladj[b], expected)


def test_the_matrix_is_lower_triangular_with_a_positive_diagonal():
    _, log_diagonal, lower = parameters()
    matrix = scale_matrix(log_diagonal, lower)
    assert torch.equal(matrix, matrix.tril())
    assert (matrix.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_the_rest_of_the_matrix_is_ignored():
    eps, (shift, log_diagonal, lower) = points(7), parameters()
    z, _ = affine(eps, shift, log_diagonal, lower)
    assert torch.equal(affine(eps, shift, log_diagonal, lower.tril(-1))[0], z)


def test_the_density_integrates_to_one():
    """∫ q = 1 with log q(z) = log N(ε; 0, I) − ladj, over a grid in two dimensions."""
    shift, log_diagonal, lower = (t[:1] for t in parameters())
    shift, log_diagonal, lower = shift[:, :2], log_diagonal[:, :2], lower[:, :2, :2]
    axis = torch.arange(-15, 15, 0.05, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)[:, None]
    eps, ladj = affine_inverse(z, shift, log_diagonal, lower)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(-1) - ladj
    total = log_q.exp().sum(0) * 0.05**2
    # the rectangle rule is exact to rounding for a smooth density that is 0 at the border
    torch.testing.assert_close(total, torch.ones(1, dtype=torch.double))


def test_a_batch_is_what_its_entries_are_alone():
    eps, params = points(7), parameters()
    z, ladj = affine(eps, *params)
    for b in range(B):
        alone = affine(eps[:, b : b + 1], *(p[b : b + 1] for p in params))
        torch.testing.assert_close(alone, (z[:, b : b + 1], ladj[:, b : b + 1]))


@pytest.mark.parametrize("shape", [(), (5,), (5, 7), (0,)], ids=str)
def test_the_inverse_takes_any_shape_of_samples_and_no_queries_at_all(shape):
    z, params = points(*shape), parameters()
    eps, ladj = affine_inverse(z, *params)
    assert eps.shape == z.shape
    assert ladj.shape == z.shape[:-1]
    none, _ = affine_inverse(z[..., :0, :], *(p[:0] for p in params))
    assert none.shape == (*shape, 0, D)
