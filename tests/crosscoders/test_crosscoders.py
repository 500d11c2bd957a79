"""What holds for every cross-coder: its start, its batches, its density and its draws."""

import pytest
import torch
from crosscoder_families import FAMILIES, B, every_density, every_family, fitted, points
from problems import linear_gaussian_problem, seeded

import crosscoding as cc
from crosscoding.crosscoders import FCN, Crosscoder, Fitted, InverseAutoregressive, Mixture, Spline


def test_every_exported_family_is_tested_here():
    exported = {getattr(cc.crosscoders, name) for name in cc.crosscoders.__all__}
    classes = {c for c in exported if isinstance(c, type)}
    families = {c for c in classes if issubclass(c, Crosscoder)} - {Crosscoder}
    assert families == {type(family) for family in FAMILIES.values()}


# ---- the start and the batch -------------------------------------------------------------------


@every_family
def test_a_batch_is_what_its_entries_are_alone(family):
    q, eps = fitted(family), points(7)
    together = family.weighted_draws(q.params, eps)
    for b in range(B):
        alone = {name: p[b : b + 1] for name, p in q.params.items()}
        parts = family.weighted_draws(alone, eps[:, b : b + 1])
        torch.testing.assert_close(tuple(t[:, 0] for t in parts), tuple(t[:, b] for t in together))
        draws = Fitted(family, alone, 2).rsample_and_log_prob(5, generator=seeded(3))[0]
        batched = q.rsample_and_log_prob(5, generator=seeded(3))[0]
        torch.testing.assert_close(draws[:, 0], batched[:, b])


@every_family
def test_the_start_is_close_to_the_requested_normal(family):
    mean = torch.tensor([[3.0, -2.0], [0.0, 1.0]], dtype=torch.double)
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.1]], dtype=torch.double)
    if family == FAMILIES["Planar without affine"]:  # it cannot move or scale all of z
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
    q = Fitted(family, family.start(mean, scale, generator=seeded(0)), 2)
    draws, _ = q.rsample_and_log_prob(4000, generator=seeded(1))
    # close: within half of the requested scale, whatever the random parameters
    assert ((draws.mean(0) - mean).abs() < 0.5 * scale).all()
    assert ((draws.std(0) / scale).log().abs() < 0.5).all()


@every_family
def test_the_start_is_the_same_for_a_query_alone(family):
    mean, scale = torch.randn(B, 2, generator=seeded(0)), torch.ones(B, 2)
    together = family.start(mean, scale, generator=seeded(1))
    alone = family.start(mean[1:2], scale[1:2], generator=seeded(1))
    for name, tensor in alone.items():
        assert torch.equal(tensor[0], together[name][1])


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_start(family, dtype):
    ones = torch.ones(B, 2, dtype=dtype)
    q = Fitted(family, family.start(ones, ones, generator=seeded(0)), 2)
    draws, log_prob = q.rsample_and_log_prob(5, generator=seeded(1))
    assert {draws.dtype, log_prob.dtype} == {dtype}


# ---- the density -------------------------------------------------------------------------------


@every_density
def test_log_prob_of_draws_is_the_one_returned_with_them(family):
    q = fitted(family)
    draws, log_prob = q.rsample_and_log_prob(50, generator=seeded(3))
    assert draws.shape == (50, B, 2)
    # bisection in the inverse stops at rounding, of which each planar layer can lose a digit or two
    torch.testing.assert_close(q.log_prob(draws), log_prob, rtol=1e-6, atol=1e-6)


@every_density
@pytest.mark.slow
def test_the_density_integrates_to_one(family):
    q = fitted(family)
    wide = isinstance(family, Spline | InverseAutoregressive)
    side, step = (20, 0.06) if wide else (7.5, 0.12)
    axis = torch.arange(-side, side, step, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)[:, None].expand(-1, B, 2)
    total = sum(q.log_prob(piece).exp().sum(0) for piece in z.split(50_000)) * step**2
    # errors: the grid's step at the steepest part of the flow, and the mass outside the grid
    torch.testing.assert_close(total, torch.ones(B, dtype=torch.double), rtol=0, atol=5e-3)


@every_family
def test_draws_carry_gradients_to_every_parameter(family):
    q = fitted(family)
    params = {name: p.clone().requires_grad_() for name, p in q.params.items()}
    draws, log_prob = Fitted(family, params, 2).rsample_and_log_prob(20, generator=seeded(3))
    objective = (draws.square().sum(-1) + log_prob).sum()
    gradients = torch.autograd.grad(objective, list(params.values()))
    for name, gradient in zip(params, gradients, strict=True):
        assert gradient.isfinite().all()
        # the weight of a single component is 1, whatever its logit
        assert (gradient != 0).any() or (family == Mixture(1) and name == "logits")


@every_density
@pytest.mark.slow
def test_log_prob_carries_the_gradients_of_finite_differences(family):
    """In z and in every parameter: fits to draws follow them."""
    q, z = fitted(family), points(4).requires_grad_()
    names = list(q.params)
    params = [q.params[name].clone().requires_grad_() for name in names]
    torch.autograd.gradcheck(
        lambda z, *p: family.log_prob(dict(zip(names, p, strict=True)), z), (z, *params), atol=1e-4
    )


@every_family
def test_the_weights_of_weighted_draws_sum_to_one(family):
    _, _, log_weights = family.weighted_draws(fitted(family).params, points(7))
    torch.testing.assert_close(log_weights.exp().sum(0), torch.ones(B).double())


@every_density
def test_weighted_draws_stand_for_the_distribution(family):
    """Their moments against those of draws of equal weight, and their log q against log_prob."""
    q, num = fitted(family), 20_000
    eps = torch.randn(num, 1, 2, generator=seeded(5), dtype=torch.double).expand(-1, B, -1)
    z, log_q, log_weights = family.weighted_draws(q.params, eps)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-6, atol=1e-6)
    draws, _ = q.rsample_and_log_prob(num, generator=seeded(6))
    for power in (1, 2):
        one, other = (log_weights.exp().unsqueeze(-1) * z**power).sum(0), (draws**power).mean(0)
        # five standard errors of a difference of two means; weights here differ by at most 4
        assert ((one - other).abs() < 5 * (draws**power).std(0) * (5 / num) ** 0.5).all()


@every_density
def test_the_c_elbo_is_never_above_log_evidence(family):
    """Theorem 2, on the exact log evidence, within five of its standard errors."""
    problem = linear_gaussian_problem(latent_dim=2, batch=(B,), dtype=torch.double)
    z, log_q = fitted(family).rsample_and_log_prob(2000, generator=seeded(0))
    weights = problem.target.log_joint(z) - log_q
    excess = weights.mean(0) - problem.exact_log_evidence()
    assert (excess < 5 * weights.std(0) / 2000**0.5).all()


def test_the_fcn_has_no_density():
    q = fitted(FAMILIES["FCN"])
    assert not FCN.has_density
    with pytest.raises(NotImplementedError, match=r"FCN is not one-to-one.*use Gaussian or Planar"):
        q.log_prob(points(5))
