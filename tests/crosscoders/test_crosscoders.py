"""Every cross-coder, from one list: its map from noise to z, its density, and saving."""

import copy
import json

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import crosscoding as cc
from crosscoding.crosscoders import (
    FCN,
    Crosscoder,
    Fitted,
    Gaussian,
    InverseAutoregressive,
    Mixture,
    Planar,
    Spline,
)
from crosscoding.crosscoders.base import Map, base_log_prob, pack, unpack

FAMILIES = {
    "Gaussian": Gaussian(),
    "Planar": Planar(4),
    "Planar without affine": Planar(2, affine=False),
    "FCN": FCN((8, 8)),
    "diagonal Gaussian": Gaussian(diagonal=True),
    "low-rank Gaussian": Gaussian(rank=2),
    "Mixture": Mixture(3),
    "Mixture of one": Mixture(1),
    "Spline": Spline(3, bins=4, hidden=5),
    "InverseAutoregressive": InverseAutoregressive(6),
}
MAPS = {name: family for name, family in FAMILIES.items() if isinstance(family, Map)}
DENSITIES = {name: family for name, family in FAMILIES.items() if family.has_density}
BIJECTIVE = {name: family for name, family in MAPS.items() if family.has_density}
MIXTURES = {name: family for name, family in FAMILIES.items() if isinstance(family, Mixture)}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_map = pytest.mark.parametrize("family", MAPS.values(), ids=MAPS)
every_density = pytest.mark.parametrize("family", DENSITIES.values(), ids=DENSITIES)
every_bijective_family = pytest.mark.parametrize("family", BIJECTIVE.values(), ids=BIJECTIVE)
every_mixture = pytest.mark.parametrize("family", MIXTURES.values(), ids=MIXTURES)
B = 3


def fitted(family: Crosscoder, dim: int = 2, noise: float = 0.3, num_queries: int = B) -> Fitted:
    """Members some way from their start, different for each query, in double precision.

    The FCN is kept closer to its start, because it would fold.
    """
    noise = noise if family.has_density else 0.1 * noise
    mean = torch.linspace(-1, 1, num_queries * dim, dtype=torch.double).reshape(num_queries, dim)
    scale = torch.linspace(0.5, 1.2, num_queries * dim, dtype=torch.double).reshape(mean.shape)
    params, generator = family.start(mean, scale, generator=seeded(0)), seeded(1)
    moved = {
        name: p + noise * torch.randn(p.shape, generator=generator, dtype=torch.double)
        for name, p in params.items()
    }
    return Fitted(family, moved, dim)


def points(*shape: int, dim: int = 2) -> Tensor:
    return torch.randn(*shape, B, dim, generator=seeded(2), dtype=torch.double)


def test_every_exported_family_is_tested_here():
    exported = {getattr(cc.crosscoders, name) for name in cc.crosscoders.__all__}
    classes = {c for c in exported if isinstance(c, type)}
    families = {c for c in classes if issubclass(c, Crosscoder)} - {Crosscoder}
    assert families == {type(family) for family in FAMILIES.values()}


# ---- the map ---------------------------------------------------------------------------------


@every_map
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_ladj_is_that_of_autograd(family, dim):
    q, eps = fitted(family, dim), points(dim=dim)
    z, ladj = family.forward_and_ladj(q.params, eps)
    assert z.shape == eps.shape
    assert ladj.shape == (B,)
    jacobian = torch.autograd.functional.jacobian(
        lambda e: family.forward_and_ladj(q.params, e)[0], eps
    )
    for b in range(B):
        sign, expected = torch.linalg.slogdet(jacobian[b, :, b])
        assert sign == 1
        torch.testing.assert_close(ladj[b], expected)
        others = [a for a in range(B) if a != b]
        assert (jacobian[b][:, others] == 0).all()  # no query depends on another


@every_bijective_family
def test_the_inverse_undoes_the_map(family):
    q, eps = fitted(family), points(5, 7)
    z, ladj = family.forward_and_ladj(q.params, eps)
    again, ladj_again = family.inverse_and_ladj(q.params, z)
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    # bisection stops at rounding, of which each planar layer can lose a digit or two
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-6, atol=1e-6)


@every_bijective_family
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_the_inverse_undoes_the_map_in_other_dimensions(family, dim):
    q, eps = fitted(family, dim), points(50, dim=dim)
    z, ladj = family.forward_and_ladj(q.params, eps)
    again, ladj_again = family.inverse_and_ladj(q.params, z)
    # as above
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-6, atol=1e-6)


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


def test_a_fold_of_the_fcn_costs_more_than_its_log_determinant():
    """z = ε + h with dh/dε = −2: the orientation is reversed, |det| = 1 and log |det| = 0.

    If they counted as 0, Algorithm 1 would find such folds and the "C-ELBO" exceed log p(x).
    """
    family, one = FCN((1,)), torch.ones(1, 1, 1, dtype=torch.double)
    params = {
        "shift": 0 * one[0],
        "log_scale": 0 * one[0],
        "weight_0": 1e-3 * one,
        "bias_0": 0 * one[0],
        "weight_1": -2e3 * one,
        "bias_1": 0 * one[0],
    }
    eps = torch.zeros(1, 1, 1, dtype=torch.double, requires_grad=True)
    z, ladj = family.forward_and_ladj(params, eps)
    (slope,) = torch.autograd.grad(z.sum(), eps)
    assert slope.item() == pytest.approx(-1)
    assert ladj.item() < -50
    assert ladj.isfinite().all()


@pytest.mark.parametrize("dim", [1, 2])
def test_the_fcns_log_determinant_is_smooth_where_it_becomes_a_line(dim):
    """Both sides of its kink: a determinant from 0.03 to −0.01, in a map that is linear there."""
    family = FCN((1,))
    zeros, ones = torch.zeros(1, dim).double(), torch.ones(1, 1, dim).double()

    def ladj_at(det: float) -> float:
        """z_1 = det · ε_1 near 0, and z_i = ε_i for the others."""
        first = torch.eye(dim)[0].double()
        params = {
            "shift": zeros,
            "log_scale": zeros,
            "weight_0": 1e-4 * ones * first,
            "bias_0": zeros[:, :1],
            "weight_1": (1e4 * (det - 1) * first).reshape(1, dim, 1),
            "bias_1": zeros,
        }
        return family.forward_and_ladj(params, zeros[None])[1].item()

    dets = torch.linspace(-0.01, 0.03, 401).tolist()
    ladj = torch.tensor([ladj_at(det) for det in dets], dtype=torch.double)
    steps = ladj.diff()
    assert (steps > 0).all()  # always better to unfold
    assert (steps.diff().abs() < 1e-2 * 1.01).all()  # no jump and no corner
    above = torch.tensor(dets) > 0.0101
    expected = torch.tensor(dets).double()[above].log()
    torch.testing.assert_close(ladj[above], expected, rtol=1e-5, atol=1e-5)  # dets are float32


# ---- the density -----------------------------------------------------------------------------


@every_density
def test_log_prob_of_draws_is_the_one_returned_with_them(family):
    q = fitted(family)
    draws, log_prob = q.rsample_and_log_prob(50, generator=seeded(3))
    assert draws.shape == (50, B, 2)
    # bisection in the inverse, as above
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


# ---- mixtures --------------------------------------------------------------------------------


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


# ---- Gaussians -------------------------------------------------------------------------------


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


def test_rank_and_diagonal_together_are_refused():
    with pytest.raises(ValueError, match="expected rank or diagonal, not both, got rank=2"):
        Gaussian(rank=2, diagonal=True)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"expected rank >= 1 or None, got {rank}"):
        Gaussian(rank=rank)


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


# ---- as plain data ---------------------------------------------------------------------------


@every_family
def test_parts_describe_the_fit(family):
    q = fitted(family)
    tensors, description = q.to_parts()
    again = Fitted.from_parts((tensors, json.loads(json.dumps(description))))
    assert again.crosscoder == family
    assert again.dim == 2
    expected = q.rsample_and_log_prob(5, generator=seeded(3))
    torch.testing.assert_close(
        again.rsample_and_log_prob(5, generator=seeded(3)), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Spline7"},
        {"name": ["Gaussian"]},
        {"settings": {"layers": 3}},
        {"settings": None},
        {"settings": [1]},
        {"dim": None},
        {"dim": "two"},
        {"dim": -1},
        {"dim": 10**15},
        {"dim": 10**30},
    ],
    ids=str,
)
def test_parts_of_an_unknown_cross_coder_are_refused(change):
    tensors, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder, got"):
        Fitted.from_parts((tensors, description | change))


@pytest.mark.parametrize("missing", ["name", "settings", "dim"])
def test_parts_that_lack_an_entry_are_refused(missing):
    tensors, description = fitted(Gaussian()).to_parts()
    del description[missing]
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder"):
        Fitted.from_parts((tensors, description))


def test_parts_without_parameters_are_refused():
    _, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder"):
        Fitted.from_parts(({}, description))


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_parameters_of_another_dimension_are_refused(dim):
    tensors, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match=r"parameters of Gaussian\(.*got others"):
        Fitted.from_parts((tensors, {**description, "dim": dim}))


def test_parameters_of_another_family_are_refused():
    tensors, _ = fitted(Gaussian()).to_parts()
    _, description = fitted(FAMILIES["Planar"]).to_parts()
    with pytest.raises(cc.ModelFormatError, match=r"parameters of Planar\(layers=4.*got others"):
        Fitted.from_parts((tensors, description))


@every_family
def test_parameters_are_packed_into_one_tensor_and_taken_apart(family):
    params = fitted(family).params
    packed, layout = pack(params)
    assert packed.shape[0] == B
    again = unpack(packed, layout)
    assert list(again) == list(params)
    assert all(torch.equal(again[name], params[name]) for name in params)
    part = unpack(packed[1:2], layout)
    assert all(torch.equal(part[name], params[name][1:2]) for name in params)


@every_family
def test_a_family_is_frozen_and_comparable(family):
    assert family == copy.deepcopy(family)
    assert hash(family) == hash(copy.deepcopy(family))
    with pytest.raises(AttributeError):
        family.layers = 7


@pytest.mark.parametrize("layers", [0, -1])
def test_a_planar_flow_of_no_layers_is_refused(layers):
    with pytest.raises(ValueError, match=f"layers >= 1, got {layers}"):
        Planar(layers)


@pytest.mark.parametrize("hidden", [(), (0,), (8, -1)])
def test_an_fcn_of_no_width_is_refused(hidden):
    with pytest.raises(ValueError, match="at least one hidden width >= 1"):
        FCN(hidden)


@pytest.mark.parametrize("components", [0, -1])
def test_a_mixture_without_components_is_refused(components):
    with pytest.raises(ValueError, match=f"components >= 1, got {components}"):
        Mixture(components)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"bins": 1}, {"hidden": 0}], ids=str)
def test_a_spline_flow_without_a_part_is_refused(wrong):
    with pytest.raises(ValueError, match="layers >= 1, bins >= 2 and hidden >= 1, got"):
        Spline(**wrong)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"hidden": 0}], ids=str)
def test_an_autoregressive_flow_without_a_part_is_refused(wrong):
    with pytest.raises(ValueError, match="hidden >= 1 and layers >= 1, got"):
        InverseAutoregressive(**wrong)


def test_an_autoregressive_flow_depends_only_on_earlier_elements():
    family, dim = InverseAutoregressive(12, layers=1), 5
    q, eps = fitted(family, dim), points(dim=dim)
    jacobian = torch.autograd.functional.jacobian(
        lambda e: family.forward_and_ladj(q.params | {"lower": 0 * q.params["lower"]}, e)[0], eps
    )
    for b in range(B):
        own = jacobian[b, :, b]
        assert torch.equal(own, own.tril())
        assert (own.tril()[torch.ones(dim, dim).tril().bool()] != 0).all()
