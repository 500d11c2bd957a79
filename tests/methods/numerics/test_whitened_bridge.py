"""Particles that go from a Gaussian to p(z|x): log p(x), means, errors, and other modes."""

import math
from dataclasses import replace

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods.numerics.bridge_particles import gaussian_root, stretched
from crosscoding.methods.numerics.crossing import Crossing
from crosscoding.methods.numerics.whitened_bridge import WhitenedBridge

BRIDGE = WhitenedBridge(128, 8, 8, 4, 0.85)


class Elementwise(nn.Module):
    """f(z) = z + ½ sin 2z, element by element."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 0.5 * torch.sin(2 * z)


class Mirrored(nn.Module):
    """f(z) = |z₁|, z₂, …"""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z[..., :1].abs(), z[..., 1:]], -1)


def by_quadrature(values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """log p(x) and E[z|x] of `Elementwise`, element by element, for values (B, D)."""
    grid = torch.linspace(-8, 8, 4001, dtype=torch.double)
    output = Elementwise()(grid)
    residual = (values.double()[..., None] - output) / scale
    log_joint = -0.5 * (residual.square() + grid.square()) - math.log(2 * math.pi * scale)
    weights = (log_joint - log_joint.amax(-1, keepdim=True)).exp()
    log_z = log_joint.amax(-1) + (weights.sum(-1) * (grid[1] - grid[0])).log()
    return log_z.sum(-1), (weights * grid).sum(-1) / weights.sum(-1)


def elementwise_target(dim: int, num: int) -> tuple[cc.VAETarget, Tensor, Tensor]:
    """A target whose p(z|x) is a product of non-Gaussian densities, log p(x), and E[z|x]."""
    vae = cc.VAE(Elementwise(), dim, cc.likelihoods.Gaussian(0.6))
    values = vae.sample_prior(num, seed=3)
    target = cc.VAETarget(vae, cc.Evidence(values, torch.ones_like(values, dtype=torch.bool)))
    return target.flatten(), *by_quadrature(values, 0.6)


def test_from_the_exact_gaussian_log_evidence_is_exact():
    problem = linear_gaussian_problem(100, 120, batch=(2,))
    mean, covariance = problem.exact_posterior()
    gaussian = Gaussian.from_precision(mean, torch.linalg.inv(covariance.double()))
    target = problem.target.flatten()
    found = BRIDGE.run(target, gaussian, mean[None], generator=seeded(0))
    assert found.reached.all()
    torch.testing.assert_close(
        found.log_evidence[0], problem.exact_log_evidence(), atol=1e-2, rtol=0
    )  # float32 rounding of sums of about 150 terms
    assert (found.missed(gaussian_root(gaussian)) == 0).all()
    assert (found.ess > 300).all()  # of 512: trajectories of a quarter period leave no correlation


def test_from_a_wider_gaussian_log_evidence_is_right_within_its_error():
    problem = linear_gaussian_problem(64, 80, batch=(6,))
    mean, covariance = problem.exact_posterior()
    uneven = torch.linspace(0.7, 1.1, 64).double()
    precision = torch.linalg.inv(covariance.double()) * uneven[:, None] * uneven
    gaussian = Gaussian.from_precision(mean + 0.05, precision)
    found = BRIDGE.run(problem.target.flatten(), gaussian, mean[None], generator=seeded(0))
    value, error = found.log_evidence
    standard = (value - problem.exact_log_evidence()) / error
    # Islands have 16 particles, and the start is a width or so off: over six seeds, errors are 0.6
    # on average, and the largest of 36 is 1.3.
    assert (error < 1.5).all()
    assert standard.abs().max() < 3.5  # of 6, by t with 7 degrees of freedom


def test_a_product_of_densities_that_are_not_gaussian_is_right():
    target, log_evidence, mean = elementwise_target(64, 6)
    start = target.like.new_zeros(1, 6, 64) + mean[None].float()
    precision = target.curvature(start)[0]
    gaussian = Gaussian.from_precision(start[0], precision / 1.3)
    found = BRIDGE.run(target, gaussian, start, generator=seeded(1))
    value, error = found.log_evidence
    assert ((value - log_evidence) / error).abs().max() < 3.5
    gap = (found.z.mean(0) - mean) / found.z.std(0)
    assert (gap.square().mean(-1) < 2 / found.ess).all()  # on average 1 / ESS
    assert (found.ess > 100).all()


def test_a_mode_that_particles_do_not_reach_is_reported():
    vae = cc.VAE(Mirrored(), 32, cc.likelihoods.Gaussian(0.1))
    values = torch.full((1, 32), 0.5)
    values[0, 0] = 2.0
    evidence = cc.Evidence(values, torch.ones_like(values, dtype=torch.bool))
    target = cc.VAETarget(vae, evidence).flatten()
    here, there = values[None] / 1.01, values[None] / 1.01
    there = torch.cat([-there[..., :1], there[..., 1:]], -1)
    gaussian = Gaussian.from_precision(here[0], 101 * torch.eye(32).double()[None])
    alone = BRIDGE.run(target, gaussian, here, generator=seeded(0))
    assert (alone.missed(gaussian_root(gaussian)) == 0).all()
    both = BRIDGE.run(target, gaussian, torch.cat([here, there]), generator=seeded(0))
    assert (both.missed(gaussian_root(gaussian)) == 0.5).all()


def test_a_chain_that_stays_elsewhere_counts():
    nothing = torch.zeros(1)
    crossing = Crossing(
        z=torch.randn(64, 1, 3, generator=seeded(0)),
        ends=torch.full((1, 1, 3), 40.0),
        log_islands=torch.zeros(8, 1),
        decodes=nothing,
        reached=nothing == 0,
    )
    assert (crossing.missed(torch.eye(3)[None]) == 1).all()


def test_queries_do_not_depend_on_each_other():
    target, _, mean = elementwise_target(32, 3)
    ends = mean[None].float()
    gaussian = Gaussian.from_precision(ends[0], target.curvature(ends)[0])
    whole = BRIDGE.run(target, gaussian, ends, generator=seeded(0))
    index = torch.tensor([1])
    alone = BRIDGE.run(
        target.select(index), gaussian.select(index), ends[:, index], generator=seeded(0)
    )
    torch.testing.assert_close(whole.z[:, index], alone.z, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole.log_islands[:, index], alone.log_islands, atol=1e-3, rtol=0)


def test_chains_go_on_where_draws_are_few():
    target, _, mean = elementwise_target(64, 4)
    ends = mean[None].float()
    gaussian = Gaussian.from_precision(ends[0], target.curvature(ends)[0] / 1.3)
    short = BRIDGE.run(target, gaussian, ends, generator=seeded(1))
    enough = short.ess.median().item() + 0.1  # so that some go on
    more = replace(BRIDGE, enough=enough).run(target, gaussian, ends, generator=seeded(1))
    goes_on = short.ess < enough
    assert goes_on.any()
    assert not goes_on.all()
    assert (more.ess[goes_on] > short.ess[goes_on]).all()
    assert (more.decodes > short.decodes).equal(goes_on)
    assert more.z[:, ~goes_on].equal(short.z[:, ~goes_on])
    gap = (more.z.mean(0) - mean) / more.z.std(0)
    assert (gap.square().mean(-1) < 2 / more.ess).all()


def test_moves_go_farther_in_wide_directions_only():
    root = torch.linalg.cholesky(torch.eye(32) + 0.3)[None].expand(2, -1, -1)
    white = torch.randn(256, 2, 32, generator=seeded(0))
    white[:, 1, :2] *= 3  # of the second query
    z = 1 + (root @ white.permute(1, 2, 0)).permute(2, 0, 1)
    factor = stretched(root, z, 128)
    torch.testing.assert_close(factor[0], root[0])
    axes = torch.linalg.solve_triangular(root[1], factor[1], upper=False)
    values = torch.linalg.eigvalsh(axes)
    torch.testing.assert_close(values[-2:], torch.full((2,), 3.0), atol=0.5, rtol=0)
    torch.testing.assert_close(values[:-2], torch.ones(30), atol=1e-4, rtol=0)
    assert (axes[:2, :2].diagonal() > 2.5).all()


@pytest.mark.parametrize("dim", [100, 128, 256, 512])
def test_noise_alone_stretches_nothing(dim: int):
    root = torch.eye(dim)[None]
    for seed in range(5):
        z = torch.randn(128, 1, dim, generator=seeded(seed))
        torch.testing.assert_close(stretched(root, z, 64), root, atol=1e-4, rtol=0)


def test_an_interruption_leaves_earlier_draws():
    target, _, mean = elementwise_target(32, 1)
    ends = mean[None].float()
    gaussian = Gaussian.from_precision(ends[0], target.curvature(ends)[0])
    bridge = replace(BRIDGE, enough=1e9)
    crossing = bridge.empty(ends)

    def report(share: float, what: str) -> None:
        if what == "chains" and share > 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bridge.run(target, gaussian, ends, generator=seeded(0), report=report, into=crossing)
    assert crossing.reached.all()
    whole = BRIDGE.run(target, gaussian, ends, generator=seeded(0))
    assert crossing.z.equal(whole.z)


def test_progress_never_falls():
    target, _, mean = elementwise_target(32, 3)
    ends, shares = mean[None].float(), []
    uneven = torch.tensor([1.0, 8.0, 30.0])[:, None, None]  # so that queries arrive one by one
    gaussian = Gaussian.from_precision(ends[0], target.curvature(ends)[0] * uneven)
    bridge = replace(BRIDGE, enough=300.0)
    bridge.run(
        target, gaussian, ends, generator=seeded(0), report=lambda share, _: shares.append(share)
    )
    assert shares == sorted(shares)
    assert shares[-1] > 0.7


@pytest.mark.parametrize("after", [0, 3])
def test_it_stops_when_told_to(after: int):
    target, _, mean = elementwise_target(32, 1)
    ends = mean[None].float()
    gaussian = Gaussian.from_precision(ends[0], target.curvature(ends)[0] * 4)
    asked = iter(range(1000))
    found = BRIDGE.run(
        target, gaussian, ends, generator=seeded(0), stop=lambda: next(asked) >= after
    )
    assert not found.reached.any()
