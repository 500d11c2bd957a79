"""The narrowed Gaussian is the multivariate normal of its precision, at any size."""

import pytest
import torch
from problems import seeded
from torch import Tensor
from torch.distributions import MultivariateNormal

from crosscoding.crosscoders import Fitted
from crosscoding.crosscoders.narrowed_gaussian import Narrowed

B, DIM, RANK = 3, 6, 2


def narrowed(dim: int = DIM, rank: int = RANK, dtype: torch.dtype = torch.double) -> Fitted:
    """Members with different scales, narrower in some directions and wider in one."""
    generator = seeded(0)
    wide = torch.randn(B, dim, rank, generator=generator, dtype=torch.double)
    params = {
        "shift": torch.randn(B, dim, generator=generator, dtype=torch.double),
        "log_diagonal": 0.3 * torch.randn(B, dim, generator=generator, dtype=torch.double),
        "directions": torch.linalg.qr(wide).Q,
        "log_widths": 0.5 - 3 * torch.rand(B, rank, generator=generator, dtype=torch.double),
    }
    return Fitted(Narrowed(rank), {name: p.to(dtype) for name, p in params.items()}, dim)


def points(*shape: int, dim: int = DIM) -> Tensor:
    return torch.randn(*shape, B, dim, generator=seeded(1), dtype=torch.double)


def precision(q: Fitted) -> Tensor:
    """D⁻¹ (I + W (1/s² − 1) Wᵀ) D⁻¹."""
    directions, inverse = q.params["directions"], (-q.params["log_diagonal"]).exp()
    added = (directions * (-2 * q.params["log_widths"]).expm1()[:, None]) @ directions.mT
    return inverse[:, :, None] * (torch.eye(q.dim) + added) * inverse[:, None]


@pytest.mark.parametrize("sample", [(), (5,), (2, 3)])
def test_its_density_is_that_of_the_multivariate_normal(sample):
    q, z = narrowed(), points(*sample)
    reference = MultivariateNormal(q.params["shift"], precision_matrix=precision(q))
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
    draws, log_prob = q.rsample_and_log_prob(20_000, generator=seeded(2))
    torch.testing.assert_close(log_prob, reference.log_prob(draws))
    covariance = reference.covariance_matrix
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # five standard errors: of a mean sd / √N, of a covariance at most sqrt(2 / N) sd sd
    assert ((draws.mean(0) - q.params["shift"]).abs() < 5 * scale * 20_000**-0.5).all()
    for b in range(B):
        bound = 5 * (2 / 20_000) ** 0.5 * scale[b, :, None] * scale[b]
        assert ((draws[:, b].mT.cov() - covariance[b]).abs() < bound).all()


def test_the_inverse_undoes_the_map_and_ladj_is_that_of_autograd():
    q, eps = narrowed(), points()
    z, ladj = q.crosscoder.forward_and_ladj(q.params, eps)
    again, ladj_again = q.crosscoder.inverse_and_ladj(q.params, z)
    torch.testing.assert_close(again, eps)
    torch.testing.assert_close(ladj_again, ladj)
    whole = torch.autograd.functional.jacobian(
        lambda e: q.crosscoder.forward_and_ladj(q.params, e)[0], eps
    )
    for b in range(B):
        torch.testing.assert_close(ladj[b], torch.linalg.slogdet(whole[b, :, b]).logabsdet)


def test_columns_of_zeros_have_no_effect():
    q, z = narrowed(), points(4)
    params = q.params | {
        "directions": torch.cat([q.params["directions"], torch.zeros(B, DIM, 3)], -1),
        "log_widths": torch.cat([q.params["log_widths"], torch.zeros(B, 3)], -1),
    }
    more = Fitted(Narrowed(RANK + 3), params, DIM)
    torch.testing.assert_close(more.log_prob(z), q.log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_works_in_thousands_of_dimensions_and_at_a_thousandth_of_the_width(dtype):
    q = narrowed(4096, 30, dtype)
    q.params["log_widths"] -= 7.0
    draws, log_prob = q.rsample_and_log_prob(3, generator=seeded(2))
    # In narrow directions, rounding a draw to 1e-7 is an error of 1e-4 widths.
    torch.testing.assert_close(q.log_prob(draws), log_prob, rtol=1e-5, atol=1e-2)


def test_a_fit_starts_as_the_requested_normal_and_can_be_saved():
    mean, scale = points(dim=4), points(dim=4).exp()
    family = Narrowed(2)
    q = Fitted(family, family.start(mean, scale, generator=seeded(0)), 4)
    reference = MultivariateNormal(mean, torch.diag_embed(scale.square()))
    z = points(7, dim=4)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
    again = Fitted.from_parts(q.to_parts())
    assert torch.equal(again.log_prob(z), q.log_prob(z))
