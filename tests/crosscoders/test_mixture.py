"""Mixtures against those of torch, the gradients of their C-ELBO, and their components' shares."""

import pytest
import torch
from crosscoder_families import B, every_mixture, fitted, points
from problems import seeded
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from crosscoding.crosscoders import Fitted, Mixture


def reference_mixture(q: Fitted, query: int) -> MixtureSameFamily:
    lower, log_diagonal = q.params["lower"][query], q.params["log_diagonal"][query]
    root = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    parts = MultivariateNormal(q.params["shift"][query], scale_tril=root)
    return MixtureSameFamily(Categorical(logits=q.params["logits"][query]), parts)


@every_mixture
def test_a_mixture_is_that_of_torch(family):
    q, z = fitted(family, dim=3), points(50, dim=3)
    for b in range(B):
        expected = reference_mixture(q, b).log_prob(z[:, b])
        torch.testing.assert_close(q.log_prob(z)[:, b], expected)


def test_a_mixture_has_gradients_of_the_c_elbo_without_bias():
    """Gradients from weighted draws against the derivative of the C-ELBO by quadrature."""
    family, log_scale = Mixture(3), torch.tensor(0.4).double()
    names = list(family.start(*torch.ones(2, 1, 1).double(), generator=seeded(0)))
    params = {name: p[:1] for name, p in fitted(family, dim=1).params.items()}
    params = {name: params[name].clone().requires_grad_() for name in names}
    target = Normal(0.3, log_scale.exp())
    grid = torch.arange(-12, 12, 0.01, dtype=torch.double)[:, None, None]
    log_q = family.log_prob(params, grid)
    exact = (log_q.exp() * (target.log_prob(grid)[..., 0] - log_q)).sum() * 0.01
    expected = torch.autograd.grad(exact, list(params.values()))
    rounds = []
    for seed in range(200):
        noise = torch.randn(60, 1, 1, generator=seeded(seed), dtype=torch.double)
        z, log_q, log_weights = family.weighted_draws(params, noise)
        objective = (log_weights.exp() * (target.log_prob(z)[..., 0] - log_q)).sum()
        gradients = torch.autograd.grad(objective, list(params.values()))
        rounds.append(torch.cat([g.flatten() for g in gradients]))
    found = torch.stack(rounds)
    difference = found.mean(0) - torch.cat([g.flatten() for g in expected])
    # five standard errors of 200 rounds; what lies above a diagonal has no gradient at all
    assert (difference.abs() <= 5 * found.std(0) / 200**0.5 + 1e-9).all()
    assert (found.std(0)[:3] > 0).all()


def test_every_component_has_its_share_of_draws_query_by_query():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.01, 0.99, 0.0]]).double()
    means = 100.0 * torch.arange(3).double().reshape(1, 3, 1).repeat(2, 1, 1)
    q = Mixture.from_components(
        weights.log().clamp_min(-50), means, torch.ones(2, 3, 1, 1).double()
    )
    draws, _ = q.rsample_and_log_prob(1000, generator=seeded(0))
    nearest = (draws / 100).round().squeeze(-1)
    counts = torch.stack([(nearest == k).sum(0) for k in range(3)], dim=-1)
    assert ((counts - 1000 * weights).abs() <= 1).all()  # rounded up or down
    assert not (nearest.diff(dim=0) >= 0).all()  # and not in their order


def test_fewer_draws_than_components_are_refused():
    with pytest.raises(ValueError, match="at least one draw for each of 3 components, got 2"):
        Mixture(3).weighted_draws(fitted(Mixture(3)).params, points(2))


def test_a_mixture_of_given_components_has_them():
    generator = seeded(3)
    log_weights = torch.randn(B, 4, generator=generator).double()
    means = torch.randn(B, 4, 2, generator=generator).double()
    root = torch.randn(B, 4, 2, 3, generator=generator).double()
    covariances = root @ root.mT + 0.1 * torch.eye(2)
    q = Mixture.from_components(log_weights, means, torch.linalg.inv(covariances))
    for b in range(B):
        parts = MultivariateNormal(means[b], covariances[b])
        expected = MixtureSameFamily(Categorical(logits=log_weights[b]), parts)
        torch.testing.assert_close(q.log_prob(points(7))[:, b], expected.log_prob(points(7)[:, b]))
