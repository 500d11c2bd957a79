"""Hamiltonian moves: exact dynamics on a Gaussian, detailed balance, and diverging paths."""

import math
from dataclasses import replace

import pytest
import torch
from problems import mixture_target, seeded
from torch import Tensor

import crosscoding as cc
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.leapfrog import JITTER, Move, regularized_covariance

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.double)


def gaussian() -> cc.DensityTarget:
    precision = torch.linalg.inv(COVARIANCE)
    return cc.DensityTarget(
        lambda z: -0.5 * torch.einsum("...i,ij,...j->...", z, precision, z), 2, like=COVARIANCE
    )


def flat(target: cc.DensityTarget, num: int) -> cc.DensityTarget:
    return target.select(torch.zeros(num, dtype=torch.long))


def steps(num: int, size: float) -> Tensor:
    return torch.full((num,), size, dtype=torch.double)


def test_density_and_gradient_are_those_of_autograd():
    target = flat(mixture_target(torch.double), 3)
    z = torch.randn(5, 3, 2, generator=seeded(0), dtype=torch.double)
    points = evaluated(target, target.log_joint, z)
    at = z.clone().requires_grad_()
    expected = target.log_joint(at)
    (gradient,) = torch.autograd.grad(expected.sum(), at)
    torch.testing.assert_close(points.log_density, expected.detach())
    torch.testing.assert_close(points.gradient, gradient)
    assert not points.log_density.requires_grad


def test_a_density_may_be_evaluated_where_gradients_are_off():
    target = flat(gaussian(), 1)
    with torch.no_grad():
        points = evaluated(target, target.log_joint, torch.ones(1, 1, 2, dtype=torch.double))
    assert points.gradient.abs().sum() > 0


def test_short_steps_keep_the_energy_and_are_accepted():
    target = flat(gaussian(), 3)
    z = torch.randn(50, 3, 2, generator=seeded(0), dtype=torch.double)
    points = evaluated(target, target.log_joint, z)
    errors = []
    for size, count in ((0.1, 10), (0.05, 20)):
        move = Move(target, target.log_joint, None, count)
        _, acceptance = move(points, steps(3, size), 0.0, generator=seeded(1))
        errors.append((-acceptance.log()).max())
    assert errors[0] < 0.1
    # The leapfrog is of second order: half the step is a quarter of the error.
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("factored", [False, True])
def test_exact_draws_stay_exact(factored):
    """Draws from the target remain draws from it, even if steps are so long that many fail."""
    num, target = 4000, flat(gaussian(), 1)
    factor = torch.linalg.cholesky(COVARIANCE)
    z = torch.randn(num, 1, 2, generator=seeded(0), dtype=torch.double) @ factor.mT
    move = Move(target, target.log_joint, factor[None] if factored else None, 3)
    points = evaluated(target, target.log_joint, z)
    generator, size = seeded(1), 1.4 if factored else 0.35
    for _ in range(4):
        points, acceptance = move(points, steps(1, size), 0.2, generator=generator)
    assert 0.3 < acceptance.mean() < 0.99
    moments = points.z[:, 0].mT @ points.z[:, 0] / num
    # 5 standard errors: of a variance, sqrt(2 / num) of it.
    torch.testing.assert_close(moments, COVARIANCE, rtol=0, atol=5 * math.sqrt(2 / num))
    assert points.z.mean(0).abs().max() < 5 / math.sqrt(num)
    torch.testing.assert_close(points.log_density, target.log_joint(points.z))


def test_a_quarter_of_a_period_forgets_the_start():
    """In round coordinates z and momentum change places: short steps, an angle of π / 2."""
    target, factor = flat(gaussian(), 1), torch.linalg.cholesky(COVARIANCE)
    z = torch.full((200, 1, 2), 3.0, dtype=torch.double)
    move = Move(target, target.log_joint, factor[None], 40)
    points, _ = move(
        evaluated(target, target.log_joint, z),
        steps(1, 0.5 * math.pi / 40),
        0.0,
        generator=seeded(1),
    )
    covariance = points.z[:, 0].mT.cov()
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=5 * math.sqrt(2 / 200))
    assert points.z.mean(0).abs().max() < 5 / math.sqrt(200)


def test_queries_have_their_own_steps_and_factors():
    target = flat(gaussian(), 2)
    z = torch.randn(6, 1, 2, generator=seeded(0), dtype=torch.double).expand(6, 2, 2)
    factor = torch.stack([torch.eye(2, dtype=torch.double), torch.linalg.cholesky(COVARIANCE)])
    size = torch.tensor([0.3, 0.7], dtype=torch.double)
    move = Move(target, target.log_joint, factor, 4)
    together, _ = move(evaluated(target, target.log_joint, z), size, 0.2, generator=seeded(1))
    for query in range(2):
        one = flat(gaussian(), 1)
        alone = Move(one, one.log_joint, factor[[query]], 4)
        start = evaluated(one, one.log_joint, z[:, [query]])
        moved, _ = alone(start, size[[query]], 0.2, generator=seeded(1))
        torch.testing.assert_close(together.z[:, [query]], moved.z)


def test_a_path_that_diverges_is_rejected():
    target = flat(gaussian(), 1)
    points = evaluated(target, target.log_joint, torch.ones(5, 1, 2, dtype=torch.double))
    moved, acceptance = Move(target, target.log_joint, None, 30)(
        points, steps(1, 50.0), 0.0, generator=seeded(0)
    )
    assert acceptance.tolist() == [[0.0]] * 5
    assert torch.equal(moved.z, points.z)
    assert moved.log_density.isfinite().all()


def test_nan_far_out_is_a_diverged_path_and_nearby_an_error():
    def log_density(z: Tensor) -> Tensor:
        inside = -0.5 * z.square().sum(-1)
        return torch.where(z[..., 0] > limit, math.nan, inside)

    target = flat(cc.DensityTarget(log_density, 2), 1)

    def density(z: Tensor) -> Tensor:
        return target.log_joint(z, checked=False)

    z = torch.tensor([[[3.0, 0.0]], [[7.0, 0.0]], [[2000.0, 0.0]]])
    limit = 6.0
    points = evaluated(target, density, z)
    assert points.log_density.flatten().tolist() == [-4.5, -math.inf, -math.inf]
    assert points.gradient.isfinite().all()
    limit = 2.0
    with pytest.raises(
        cc.NonFiniteError,
        match=r"in the region of prior draws, got NaN at 1 of 3 points.* query 0:",
    ):
        evaluated(target, density, z)


def test_select_and_where_take_points_apart():
    target = flat(gaussian(), 3)
    z = torch.randn(4, 3, 2, generator=seeded(0), dtype=torch.double)
    first, second = (evaluated(target, target.log_joint, point) for point in (z, z + 1))
    some = first.select(torch.tensor([2, 0]))
    assert torch.equal(some.z, z[:, [2, 0]])
    assert torch.equal(some.gradient, first.gradient[:, [2, 0]])
    accepted = torch.rand(4, 3, generator=seeded(1)) < 0.5
    mixed = first.where(accepted, second)
    for name in ("z", "log_density", "gradient"):
        part = getattr(mixed, name)
        assert torch.equal(part[accepted], getattr(second, name)[accepted])
        assert torch.equal(part[~accepted], getattr(first, name)[~accepted])


def test_the_shrunk_covariance_is_the_covariance_of_many_draws():
    factor = torch.linalg.cholesky(COVARIANCE)
    draws = torch.randn(20_000, 3, 2, generator=seeded(0), dtype=torch.double) @ factor.mT
    torch.testing.assert_close(
        regularized_covariance(draws, 1e-10), COVARIANCE.expand(3, 2, 2), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_shrunk_covariance_of_few_draws_is_positive_definite(count):
    draws = torch.randn(count, 2, 10, generator=seeded(0), dtype=torch.double)
    draws[..., 4] = 1.0  # an axis without spread
    covariance = regularized_covariance(draws, 1e-6)
    assert (torch.linalg.eigvalsh(covariance) > 0).all()
    if count > 1:  # the variances stay as they are
        spread = draws.var(0, correction=0).clamp_min(1e-6)
        torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), spread)


def test_coarse_gradients_leave_the_density_invariant():
    target = cc.DensityTarget(lambda z: -0.5 * z.square().sum(-1), 4).flatten()

    def coarse(z: Tensor) -> Tensor:
        return -0.35 * z.square().sum(-1) + 0.2 * z.sum(-1)

    points = evaluated(target, coarse, torch.randn(4000, 1, 4, generator=seeded(0)))
    points = replace(points, log_density=target.log_joint(points.z))
    move = Move(target, target.log_joint, None, 4, coarse)
    for step in range(10):
        points, accepted = move(points, torch.tensor([0.35]), JITTER, generator=seeded(step + 1))
    assert accepted.mean() < 0.98  # the gradients are noticeably wrong
    assert points.z.mean().abs() < 0.04  # 4 standard errors of 16,000 numbers: 0.032
    assert (points.z.var() - 1).abs() < 0.05  # 4 standard errors: 0.045
