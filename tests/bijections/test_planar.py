"""The planar map: invertible under wᵀu > −1 (trap 6), its ladj against autograd."""

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.bijections import constrained, planar, planar_inverse

B, D = 4, 3


def free_parameters(scale: float = 1.0, dim: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """v, w, bias of four maps, with wᵀv of either sign and of a size that grows with scale."""
    generator = seeded(0)
    v = scale * torch.randn(B, dim, generator=generator, dtype=torch.double)
    w = scale * torch.randn(B, dim, generator=generator, dtype=torch.double)
    v[0] -= 2 * w[0]  # one that folds without the constraint
    return v, w, torch.randn(B, generator=generator, dtype=torch.double)


def parameters(scale: float = 1.0, dim: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """u, w, bias of the same four maps."""
    v, w, bias = free_parameters(scale, dim)
    return constrained(v, w), w, bias


def points(*shape: int, dim: int = D) -> Tensor:
    return 2 * torch.randn(*shape, B, dim, generator=seeded(1), dtype=torch.double)


def test_the_map_is_the_papers():
    """h + u tanh(wᵀh + b), query by query."""
    h, (u, w, bias) = points(7), parameters()
    z, _ = planar(h, u, w, bias)
    for b in range(B):
        expected = h[:, b] + u[b] * (h[:, b] @ w[b] + bias[b]).tanh()[:, None]
        torch.testing.assert_close(z[:, b], expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_ladj_is_that_of_autograd(scale):
    h, params = points(), parameters(scale)
    _, ladj = planar(h, *params)
    jacobian = torch.autograd.functional.jacobian(lambda x: planar(x, *params)[0], h)
    for b in range(B):
        sign, expected = torch.linalg.slogdet(jacobian[b, :, b])
        assert sign == 1
        torch.testing.assert_close(ladj[b], expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_the_inverse_undoes_the_map(scale):
    h, params = points(5, 7), parameters(scale)
    z, ladj = planar(h, *params)
    again, ladj_again = planar_inverse(z, *params)
    assert z.shape == h.shape
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    # bisection finds s up to rounding; where the map is flat, the error of h grows by 1 / slope
    torch.testing.assert_close(again, h, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(planar(again, *params)[0], z)


def test_u_is_above_the_bound_with_the_squared_norm_in_the_denominator():
    """wᵀu = −1 + softplus(wᵀv): with ‖w‖ in place of ‖w‖² this fails for every ‖w‖ ≠ 1."""
    v, w, _ = free_parameters(2.0)
    along = (w * constrained(v, w)).sum(-1)
    expected = -1 + torch.nn.functional.softplus((w * v).sum(-1))
    assert ((w.norm(dim=-1) - 1).abs() > 0.1).all()
    assert (along > -1).all()
    # a margin of up to 1e-3 keeps rounding away from the bound
    torch.testing.assert_close(along, expected, rtol=0, atol=2e-3)


def test_u_is_moved_only_along_w():
    v, w, _ = free_parameters()
    moved = constrained(v, w) - v
    across = moved - (moved * w).sum(-1, keepdim=True) * w / w.square().sum(-1, keepdim=True)
    torch.testing.assert_close(across, torch.zeros_like(across))


def test_without_the_constraint_this_map_folds():
    """The first parameters have wᵀv < −1, so the tests above do reach the bound."""
    v, w, bias = free_parameters()
    assert (w * v).sum(-1)[0] < -1
    h = torch.zeros_like(w) - bias[:, None] * w / w.square().sum(-1, keepdim=True)  # wᵀh + b = 0
    jacobian = torch.autograd.functional.jacobian(lambda x: planar(x, v, w, bias)[0], h)
    assert torch.linalg.det(jacobian[0, :, 0]) < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("along", [-15.0, -40.0, -80.0])
@pytest.mark.parametrize("direction", range(5))
def test_rounding_does_not_cross_the_bound(along, dtype, direction):
    """−1 + softplus(−20) is −1 in float32, wᵀu then −1 or less: a ladj of −inf or NaN."""
    generator = seeded(direction)
    w = torch.randn(1, 2, generator=generator, dtype=dtype)
    v = along * w / w.square().sum() + torch.randn(1, 2, generator=generator, dtype=dtype)
    h, bias = torch.zeros(1, 2, dtype=dtype), torch.zeros(1, dtype=dtype)
    u = constrained(v, w)
    z, ladj = planar(h, u, w, bias)
    assert ladj.isfinite().all()
    assert planar_inverse(z, u, w, bias)[1].isfinite().all()


def test_w_of_zero_is_a_shift():
    h, (v, w, bias) = points(7), free_parameters()
    w = torch.zeros_like(w)
    u = constrained(v, w)
    z, ladj = planar(h, u, w, bias)
    torch.testing.assert_close(z, h + v * bias.tanh()[:, None])
    assert torch.equal(ladj, torch.zeros_like(ladj))
    torch.testing.assert_close(planar_inverse(z, u, w, bias)[0], h)


@pytest.mark.parametrize("query", range(B))
def test_the_density_integrates_to_one(query):
    """∫ q = 1 with log q(z) = log N(h; 0, I) − ladj, over a grid in two dimensions."""
    params = [p[query : query + 1] for p in parameters(dim=2)]
    axis = torch.arange(-8, 8, 0.1, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)[:, None]
    h, ladj = planar_inverse(z, *params)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(h).sum(-1) - ladj
    total = log_q.exp().sum().item() * 0.1**2
    assert total == pytest.approx(1, abs=2e-3)  # the grid's step against the map's steepest part


def test_a_batch_is_what_its_entries_are_alone():
    h, params = points(7), parameters()
    z, ladj = planar(h, *params)
    for b in range(B):
        alone = planar(h[:, b : b + 1], *(p[b : b + 1] for p in params))
        torch.testing.assert_close(alone, (z[:, b : b + 1], ladj[:, b : b + 1]))


def test_the_inverse_carries_the_gradients_of_finite_differences():
    """In the points and the parameters; bisection alone carries no correct gradients."""
    leaves = [t.requires_grad_() for t in (points(5), *free_parameters())]

    def inverse(z, v, w, bias):
        return planar_inverse(z, constrained(v, w), w, bias)

    torch.autograd.gradcheck(inverse, leaves, atol=1e-5)
