"""Every cross-coder, by one list: a map from noise to z, its density, and how it is kept."""

import copy
import json

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import crosscoding as cc
from crosscoding.crosscoders import FCN, Crosscoder, Fitted, Gaussian, Planar
from crosscoding.crosscoders.base import base_log_prob, pack, unpack

FAMILIES = {
    "Gaussian": Gaussian(),
    "Planar": Planar(4),
    "Planar without affine": Planar(2, affine=False),
    "FCN": FCN((8, 8)),
}
BIJECTIVE = {name: family for name, family in FAMILIES.items() if family.bijective}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_bijective_family = pytest.mark.parametrize("family", BIJECTIVE.values(), ids=BIJECTIVE)
B = 3


def fitted(family: Crosscoder, dim: int = 2, noise: float = 0.3, num_queries: int = B) -> Fitted:
    """Members some way off their start, each query its own, in double precision.

    For the FCN not as far: it would fold.
    """
    noise = noise if family.bijective else 0.1 * noise
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
    families = {c for c in exported if issubclass(c, Crosscoder)} - {Crosscoder}
    assert families == {type(family) for family in FAMILIES.values()}


# ---- the map ---------------------------------------------------------------------------------


@every_family
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
        assert (jacobian[b][:, others] == 0).all()  # no query leans on another


@every_bijective_family
def test_the_inverse_undoes_the_map(family):
    q, eps = fitted(family), points(5, 7)
    z, ladj = family.forward_and_ladj(q.params, eps)
    again, ladj_again = family.inverse_and_ladj(q.params, z)
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    # bisection stops at rounding, and each planar layer can lose a digit or two of it
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-6, atol=1e-6)


@every_family
def test_a_batch_is_what_its_entries_are_alone(family):
    q, eps = fitted(family), points(7)
    together = family.forward_and_ladj(q.params, eps)
    for b in range(B):
        alone = {name: p[b : b + 1] for name, p in q.params.items()}
        z, ladj = family.forward_and_ladj(alone, eps[:, b : b + 1])
        torch.testing.assert_close((z[:, 0], ladj[:, 0]), tuple(t[:, b] for t in together))
        draws = Fitted(family, alone, 2).rsample_and_log_prob(5, generator=seeded(3))[0]
        batched = q.rsample_and_log_prob(5, generator=seeded(3))[0]
        torch.testing.assert_close(draws[:, 0], batched[:, b])


@every_family
def test_the_start_is_close_to_the_normal_that_was_asked_for(family):
    mean = torch.tensor([[3.0, -2.0], [0.0, 1.0]], dtype=torch.double)
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.1]], dtype=torch.double)
    if family == FAMILIES["Planar without affine"]:  # it cannot move or scale all of z
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
    q = Fitted(family, family.start(mean, scale, generator=seeded(0)), 2)
    draws, _ = q.rsample_and_log_prob(4000, generator=seeded(1))
    # close: within half of the scale that was asked for, whatever the random parts
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
    """z = ε + h with dh/dε = −2: orientation turned round, |det| = 1 and log |det| = 0.

    Counted as 0, Algorithm 1 goes and finds such folds and the "C-ELBO" exceeds log p(x).
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
def test_the_fcns_log_determinant_goes_on_without_a_step_where_it_turns_into_a_line(dim):
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


@every_bijective_family
def test_log_prob_of_draws_is_what_came_with_them(family):
    q = fitted(family)
    draws, log_prob = q.rsample_and_log_prob(50, generator=seeded(3))
    assert draws.shape == (50, B, 2)
    # bisection in the inverse, as above
    torch.testing.assert_close(q.log_prob(draws), log_prob, rtol=1e-6, atol=1e-6)


@every_bijective_family
def test_the_density_integrates_to_one(family):
    q = fitted(family)
    axis = torch.arange(-7.5, 7.5, 0.12, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)[:, None].expand(-1, B, 2)
    total = q.log_prob(z).exp().sum(0) * 0.12**2
    # the grid's step against the steepest part of the flow, and what lies beyond 7.5
    torch.testing.assert_close(total, torch.ones(B, dtype=torch.double), rtol=0, atol=5e-3)


@every_family
def test_draws_carry_gradients_to_every_parameter(family):
    q = fitted(family)
    params = {name: p.clone().requires_grad_() for name, p in q.params.items()}
    draws, log_prob = Fitted(family, params, 2).rsample_and_log_prob(20, generator=seeded(3))
    objective = (draws.square().sum(-1) + log_prob).sum()
    for gradient in torch.autograd.grad(objective, list(params.values())):
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


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


@every_bijective_family
def test_the_c_elbo_is_never_above_log_evidence(family):
    """Theorem 2, on the exact log evidence, within five of its standard errors."""
    problem = linear_gaussian_problem(latent_dim=2, batch=(B,), dtype=torch.double)
    z, log_q = fitted(family).rsample_and_log_prob(2000, generator=seeded(0))
    weights = problem.target.log_joint(z) - log_q
    excess = weights.mean(0) - problem.exact_log_evidence()
    assert (excess < 5 * weights.std(0) / 2000**0.5).all()


def test_the_fcn_has_no_density():
    q = fitted(FAMILIES["FCN"])
    assert not FCN.bijective
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
def test_parts_of_no_known_cross_coder_are_refused(change):
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
    with pytest.raises(cc.ModelFormatError, match=r"parameters of Gaussian\(\), got others"):
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
def test_a_family_is_a_small_frozen_object(family):
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
