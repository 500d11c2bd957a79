"""Targets: log p(z, x) in every form that methods use, with and without a VAE."""

import pytest
import torch
from problems import (
    LOG_2PI,
    blocks,
    linear_gaussian_problem,
    mirrored_problem,
    mixture_target,
    seeded,
)
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import crosscoding as cc
from crosscoding.target import vae_target as target_module

PROBLEM = linear_gaussian_problem(latent_dim=3, data_dim=8, batch=(2, 3), dtype=torch.double)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(0), dtype=torch.double)


def expected_log_likelihood(z: Tensor) -> Tensor:
    evidence = PROBLEM.evidence
    elements = Normal(PROBLEM.vae.decoder(z), 0.5).log_prob(evidence.values)
    return torch.where(evidence.mask, elements, 0.0).sum(-1)


# ---- with a VAE ------------------------------------------------------------------------------


def test_log_prior_is_a_standard_normal():
    z = points(7, 2, 3, 3)
    expected = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(PROBLEM.target.log_prior(z), expected)


def test_log_likelihood_is_the_sum_over_observed_elements():
    z = points(7, 2, 3, 3)
    result = PROBLEM.target.log_likelihood(z)
    assert result.shape == (7, 2, 3)
    torch.testing.assert_close(result, expected_log_likelihood(z))


def test_log_joint_is_prior_times_likelihood():
    target, z = PROBLEM.target, points(7, 2, 3, 3)
    expected = target.log_prior(z) + expected_log_likelihood(z)
    torch.testing.assert_close(target.log_joint(z), expected)


def test_log_joint_over_the_exact_posterior_is_the_log_evidence_everywhere():
    """Bayes' rule, log p(x) = log p(z, x) − log p(z|x), at any z."""
    z = points(7, 2, 3, 3)
    log_posterior = MultivariateNormal(*PROBLEM.exact_posterior()).log_prob(z)
    result = PROBLEM.target.log_joint(z) - log_posterior
    torch.testing.assert_close(result, PROBLEM.exact_log_evidence().expand(7, 2, 3))


def test_there_may_be_any_number_of_sample_dimensions():
    z = points(4, 5, 2, 3, 3)
    result = PROBLEM.target.log_joint(z)
    assert result.shape == (4, 5, 2, 3)
    torch.testing.assert_close(result[1, 2], PROBLEM.target.log_joint(z[1, 2]))


def test_pairwise_is_every_query_at_every_point():
    z = points(7, 3)
    result = PROBLEM.target.pairwise_log_likelihood(z)
    assert result.shape == (7, 2, 3)
    torch.testing.assert_close(result, expected_log_likelihood(z[:, None, None].expand(7, 2, 3, 3)))


def test_log_likelihood_at_pairs_each_point_with_its_query():
    z, query = points(9, 3), torch.tensor([0, 5, 1, 1, 4, 2, 3, 0, 5])
    result = PROBLEM.target.flatten().log_likelihood_at(z, query)
    every = PROBLEM.target.flatten().pairwise_log_likelihood(z)
    torch.testing.assert_close(result, every[torch.arange(9), query])


def test_flatten_and_select_keep_each_query_its_evidence():
    flat, z = PROBLEM.target.flatten(), points(7, 6, 3)
    assert (flat.batch_shape, flat.num_queries) == ((6,), 6)
    expected = expected_log_likelihood(z.reshape(7, 2, 3, 3)).reshape(7, 6)
    torch.testing.assert_close(flat.log_likelihood(z), expected)
    index = torch.tensor([4, 0, 4])
    selected = flat.select(index)
    assert selected.batch_shape == (3,)
    torch.testing.assert_close(selected.log_likelihood(z[:, index]), expected[:, index])


def test_one_query_has_no_batch_and_flattens_to_a_batch_of_one():
    problem = mirrored_problem()
    assert problem.target.batch_shape == ()
    assert problem.target.num_queries == 1
    assert problem.target.log_joint(torch.zeros(4, 2)).shape == (4,)
    assert problem.target.flatten().batch_shape == (1,)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_an_empty_batch_has_empty_answers(batch):
    vae = PROBLEM.vae
    evidence = cc.Evidence(torch.zeros(*batch, 8).double(), torch.tensor(True))
    target = cc.VAETarget(vae, evidence)
    assert target.num_queries == 0
    assert target.log_joint(points(7, *batch, 3)).shape == (7, *batch)
    assert target.pairwise_log_likelihood(points(7, 3)).shape == (7, *batch)


def test_without_evidence_the_prior_is_left():
    evidence = cc.Evidence(PROBLEM.truth, torch.tensor(False))
    target, z = cc.VAETarget(PROBLEM.vae, evidence), points(7, 2, 3, 3)
    assert torch.equal(target.log_joint(z), target.log_prior(z))


def test_gradients_for_z_are_finite_where_unobserved_values_were_nan():
    values = torch.where(PROBLEM.evidence.mask, PROBLEM.truth, torch.nan)
    target = cc.VAETarget(PROBLEM.vae, cc.Evidence.from_nan(values))
    z = points(7, 2, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_joint(z).sum(), z)
    expected = torch.autograd.grad(PROBLEM.target.log_joint(z).sum(), z)[0]
    torch.testing.assert_close(gradient, expected)


def test_changing_one_query_does_not_change_the_others():
    z, values = points(7, 2, 3, 3), PROBLEM.truth.clone()
    values[1, 1] += 100.0
    changed = cc.VAETarget(PROBLEM.vae, cc.Evidence(values, PROBLEM.evidence.mask))
    same = changed.log_joint(z) == PROBLEM.target.log_joint(z)
    wanted = torch.ones(2, 3, dtype=torch.bool)
    wanted[1, 1] = False
    assert torch.equal(same, wanted.expand(7, 2, 3))


def test_chunks_do_not_change_answers(monkeypatch):
    z = points(7, 3)
    whole = PROBLEM.target.pairwise_log_likelihood(z)
    monkeypatch.setattr(target_module, "CHUNK_BYTES", 200)  # a few rows of 8 doubles at most
    torch.testing.assert_close(PROBLEM.target.pairwise_log_likelihood(z), whole)


def test_dtype_follows_the_model():
    problem = linear_gaussian_problem(dtype=torch.double)
    draws = problem.target.draw_prior(3, generator=seeded(0))
    assert draws.dtype == problem.target.log_joint(draws[:, None].expand(3, 4, 3)).dtype
    assert draws.dtype == torch.double


@pytest.mark.parametrize(
    "target", [PROBLEM.target, mixture_target(torch.double)], ids=["vae", "2-d"]
)
def test_prior_draws_have_the_priors_moments(target):
    draws, num = target.draw_prior(20_000, generator=seeded(0)), 20_000
    scale = target.prior_scale
    assert draws.shape == (num, target.latent_dim)
    # five standard errors: of a mean sd / √N, of a variance sqrt(2 / N) relative
    assert (draws.mean(0).abs() < 5 * scale * num**-0.5).all()
    assert ((draws.var(0) / scale**2 - 1).abs() < 5 * (2 / num) ** 0.5).all()


# ---- mistakes --------------------------------------------------------------------------------


class Fragile(nn.Module):
    """NaN from `edge` on."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z.abs() < self.edge, z, torch.nan)


def test_a_decoder_that_is_nan_at_prior_draws_raises():
    vae = cc.VAE(Fragile(4.0), 2, cc.likelihoods.Gaussian())
    target = cc.VAETarget(vae, cc.Evidence(torch.zeros(1, 2), torch.tensor(True)))
    z = torch.full((3, 1, 2), 4.5)
    with pytest.raises(cc.NonFiniteError, match=r"finite log-likelihood, got NaN.*norm 6.36"):
        target.log_likelihood(z)
    with pytest.raises(cc.NonFiniteError, match="finite log-likelihood"):
        target.pairwise_log_likelihood(z[:, 0])
    with pytest.raises(cc.NonFiniteError, match="finite log-likelihood"):
        target.log_likelihood_at(z[:, 0], torch.zeros(3, dtype=torch.long))


def test_nan_far_from_all_prior_draws_means_no_mass():
    vae = cc.VAE(Fragile(5.5), 2, cc.likelihoods.Gaussian(0.5))
    evidence = cc.Evidence(torch.full((2, 2), 0.7), torch.tensor(True))
    target = cc.VAETarget(vae, evidence)
    z = torch.zeros(3, 2, 2)
    z[1, 1, 0] = 7.0
    expected = torch.zeros(3, 2, dtype=torch.bool)
    expected[1, 1] = True
    assert torch.equal(target.log_likelihood(z) == -torch.inf, expected)
    assert torch.equal(target.pairwise_log_likelihood(z[:, 1]) == -torch.inf, expected[:, [1, 1]])
    at = target.log_likelihood_at(z[:, 1], torch.tensor([0, 1, 0]))
    assert torch.equal(at == -torch.inf, expected[:, 1])


def test_the_error_names_the_query_of_the_whole_batch():
    vae = cc.VAE(Fragile(4.0), 2, cc.likelihoods.Gaussian())
    target = cc.VAETarget(vae, cc.Evidence(torch.zeros(4, 2), torch.tensor(True)))
    z = torch.zeros(3, 4, 2)
    z[1, 2] = 4.5
    with pytest.raises(
        cc.NonFiniteError,
        match=r"got NaN for query 2: at a z of norm 6\.36 the decoder outputs nan",
    ):
        target.log_likelihood(z)
    some = torch.tensor([0, 2, 3])
    with pytest.raises(cc.NonFiniteError, match="for query 2:"):
        target.select(some).log_likelihood(z[:, some])
    with pytest.raises(cc.NonFiniteError, match="for query 3:"):
        target.log_likelihood_at(z[1], torch.tensor([1, 2, 3, 0]))


def test_something_other_than_a_vae_is_refused():
    with pytest.raises(TypeError, match=r"crosscoding\.VAE, got Linear"):
        cc.VAETarget(nn.Linear(2, 5), PROBLEM.evidence)


def test_something_other_than_evidence_is_refused():
    with pytest.raises(TypeError, match=r"crosscoding\.Evidence, got Tensor; build it with"):
        cc.VAETarget(PROBLEM.vae, PROBLEM.truth)


def test_evidence_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"evidence of shape \(\*batch, 8\), got \(4, 5\)"):
        cc.VAETarget(PROBLEM.vae, cc.Evidence(torch.zeros(4, 5).double(), torch.tensor(True)))


def test_evidence_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"evidence of the model's dtype torch\.float64"):
        cc.VAETarget(PROBLEM.vae, cc.Evidence(torch.zeros(4, 8), torch.tensor(True)))


def test_observed_values_outside_the_support_are_refused_and_counted():
    """0-to-255 images for a Bernoulli model; what is not observed is not looked at."""
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Bernoulli())
    values, mask = torch.tensor([255.0, 128.0, 64.0]), torch.tensor([True, True, False])
    with pytest.raises(
        ValueError, match=r"between 0 and 1 for Bernoulli, got 255 and 1 more.*scale"
    ):
        cc.VAETarget(vae, cc.Evidence(values, mask))
    cc.VAETarget(vae, cc.Evidence(values, torch.tensor(False)))


# ---- bare densities --------------------------------------------------------------------------


def test_a_bare_density_is_its_own_log_joint():
    target, z = mixture_target(torch.double), 2 * points(7, 5, 2)
    torch.testing.assert_close(target.log_joint(z), target.log_prob(z))


def test_a_bare_density_is_split_into_a_wide_prior_and_the_rest():
    target, z = mixture_target(torch.double), 2 * points(7, 5, 2)
    log_prior = Normal(0.0, 3.0).log_prob(z).sum(-1)
    torch.testing.assert_close(target.log_prior(z), log_prior)
    torch.testing.assert_close(target.log_likelihood(z), target.log_prob(z) - log_prior)


def test_a_bare_density_is_the_same_for_every_query():
    target, z = mixture_target(torch.double), 2 * points(7, 2)
    flat = target.flatten()
    assert (target.batch_shape, flat.batch_shape) == ((), (1,))
    assert target.pairwise_log_likelihood(z).shape == (7,)
    expected = target.log_likelihood(z)
    torch.testing.assert_close(flat.pairwise_log_likelihood(z), expected[:, None])
    at = flat.log_likelihood_at(z, torch.zeros(7, dtype=torch.long))
    torch.testing.assert_close(at, expected)
    selected = flat.select(torch.tensor([0, 0, 0]))
    assert (selected.batch_shape, selected.prior_scale) == ((3,), 3.0)
    three = z[:, None].expand(7, 3, 2)
    torch.testing.assert_close(selected.log_joint(three), target.log_joint(three))


def test_flatten_keeps_the_number_of_queries_of_a_bare_density():
    target = mixture_target().flatten().select(torch.tensor([0, 0, 0]))
    assert target.flatten().batch_shape == (3,)


def test_a_bare_density_has_the_dtype_it_is_given():
    assert mixture_target(torch.double).draw_prior(2, generator=seeded(0)).dtype == torch.double
    assert mixture_target().draw_prior(2, generator=seeded(0)).dtype == torch.float32


@pytest.mark.parametrize(("latent_dim", "prior_scale"), [(0, 1.0), (2, 0.0), (2, -1.0)])
def test_a_bare_density_of_no_dimension_or_scale_is_refused(latent_dim, prior_scale):
    with pytest.raises(ValueError, match="latent_dim >= 1 and prior_scale > 0"):
        cc.DensityTarget(lambda z: z.sum(-1), latent_dim, prior_scale=prior_scale)


def test_a_bare_density_that_is_nan_raises():
    target = cc.DensityTarget(lambda z: z.sum(-1).log(), 2)
    with pytest.raises(cc.NonFiniteError, match="finite log-density, got NaN from log_density"):
        target.log_joint(-torch.ones(3, 2))


def test_a_bare_density_that_was_not_summed_is_refused():
    """−z² in place of −Σ z² would broadcast its way through where sample and latent sizes agree."""
    target = cc.DensityTarget(lambda z: -z.square(), 2)
    with pytest.raises(ValueError, match=r"log_density.*shape \(2,\), got \(2, 2\)"):
        target.log_joint(torch.zeros(2, 2))


# ---- the problems themselves -----------------------------------------------------------------


def test_the_linear_gaussian_problem_is_the_marginal_normal():
    """Its log p(x) and log p(y|x), worked out through z, against the marginal of t."""
    weight, bias = PROBLEM.vae.decoder.weight, PROBLEM.vae.decoder.bias
    covariance = weight @ weight.mT + 0.25 * torch.eye(8, dtype=torch.double)
    whole = MultivariateNormal(bias, covariance).log_prob(PROBLEM.truth)
    for row in range(2):
        for column in range(3):
            m = PROBLEM.evidence.mask[row, column]
            part = MultivariateNormal(bias[m], covariance[m][:, m])
            log_evidence = part.log_prob(PROBLEM.truth[row, column][m])
            torch.testing.assert_close(PROBLEM.exact_log_evidence()[row, column], log_evidence)
            torch.testing.assert_close(
                PROBLEM.exact_query_log_prob()[row, column], whole[row, column] - log_evidence
            )


@pytest.mark.parametrize(
    "target",
    [mixture_target(torch.double), blocks(2, dtype=torch.double)],
    ids=["mixture", "block"],
)
def test_densities_integrate_to_their_log_evidence(target):
    axis = torch.arange(-8, 10, 0.02, dtype=torch.double)
    log_sum = target.log_joint(torch.cartesian_prod(axis, axis)).logsumexp(0)
    total = log_sum + 2 * torch.log(torch.tensor(0.02))
    assert total.item() == pytest.approx(target.log_evidence, abs=1e-5)  # tails beyond the grid


@pytest.mark.parametrize("target", [mixture_target(), blocks(6)], ids=["mixture", "blocks"])
def test_exact_draws_have_the_exact_moments(target):
    draws, num = target.sample(40_000, generator=seeded(0)), 40_000
    error = (draws.mean(0) - target.mean()).abs() / target.covariance().diagonal().sqrt()
    assert (error < 5 * num**-0.5).all()  # five standard errors
    # of products: five times sd(z_i z_j) / √N, and sd(z_i z_j) is below 5 sd(z_i) sd(z_j) here
    scale = target.covariance().diagonal().sqrt()
    bound = 25 * num**-0.5 * scale[:, None] * scale
    assert ((draws.mT.cov() - target.covariance()).abs() < bound).all()


def test_the_mirrored_problem_is_the_same_at_z_and_minus_z():
    problem = mirrored_problem(torch.double)
    z = 2 * points(50, 2)
    torch.testing.assert_close(problem.target.log_joint(z), problem.target.log_joint(-z))
    # at the modes the likelihood is at its height, between them it is far below
    heights = problem.target.log_joint(torch.stack([problem.mode, -problem.mode, 0 * problem.mode]))
    assert (heights[:2] - heights[2] > 5).all()
    assert problem.target.log_likelihood(problem.mode).item() == pytest.approx(
        -5 * (torch.tensor(0.3).log().item() + 0.5 * LOG_2PI)
    )


# ---- curvature -----------------------------------------------------------------------------------


def negated_hessians(log_joint, z: Tensor) -> Tensor:
    """−∇² of a log-density of one z, at each of z (B, latent)."""
    hessian = torch.autograd.functional.hessian
    return torch.stack(
        [-hessian(lambda point, b=b: log_joint(point, b), z[b]) for b in range(len(z))]
    )


def test_the_curvature_of_a_linear_gaussian_model_is_its_precision_everywhere():
    problem = linear_gaussian_problem(3, data_dim=8, batch=5, dtype=torch.double)
    exact = torch.linalg.inv(problem.exact_posterior()[1])
    for scale in (0.0, 1.0, 10.0):
        torch.testing.assert_close(problem.target.curvature(scale * points(5, 3)), exact)


def test_the_curvature_uses_each_elements_scale():
    scale = torch.linspace(0.2, 2.0, 8, dtype=torch.double)
    problem = linear_gaussian_problem(3, data_dim=8, scale=scale, batch=5, dtype=torch.double)
    exact = torch.linalg.inv(problem.exact_posterior()[1])
    torch.testing.assert_close(problem.target.curvature(points(5, 3)), exact)


@pytest.mark.parametrize("target", [mixture_target(torch.double), blocks(4, dtype=torch.double)])
def test_the_curvature_of_a_bare_density_is_its_hessian(target):
    z = points(6, target.latent_dim)
    flat = target.select(torch.zeros(6, dtype=torch.long))
    expected = negated_hessians(lambda point, _: target.log_density(point), z)
    torch.testing.assert_close(flat.curvature(z), expected)


@pytest.mark.parametrize("likelihood", ["logits", "probabilities", "decoded scale"])
def test_the_curvature_is_that_of_the_expected_log_likelihood(likelihood):
    """−∇² at z of E_{t ~ p(t|z)}[log p(t|·)] is Jᵀ F J, whatever the decoder."""
    width = 12 if likelihood == "decoded scale" else 6
    layers = [nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, width)]
    layers += {
        "logits": [],
        "probabilities": [nn.Sigmoid()],
        "decoded scale": [nn.Unflatten(1, (6, 2)), nn.Softplus()],
    }[likelihood]
    decoder = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(1)))
    kind = {
        "logits": cc.likelihoods.Bernoulli(),
        "probabilities": cc.likelihoods.Bernoulli(logits=False),
        "decoded scale": cc.likelihoods.Gaussian(None),
    }[likelihood]
    vae = cc.VAE(decoder, 3, kind)
    mask = torch.rand(4, 6, generator=seeded(2)) < 0.6
    values = (torch.randn(4, 6, generator=seeded(3)) > 0).double()
    z = points(4, 3)

    def expected_log_joint(point: Tensor, b: int) -> Tensor:
        fixed, moving = vae.decode(z[b]).detach(), vae.decode(point)
        mean, variance = kind.mean(fixed), kind.variance(fixed)
        if likelihood == "decoded scale":  # E log N(t; m, s) over t ~ N(mean, variance)
            m, s = moving[..., 0], moving[..., 1]
            elements = -((mean - m).square() + variance) / (2 * s.square()) - s.log()
        else:
            elements = kind.log_prob(moving, mean)  # linear in t
        return elements[mask[b]].sum() - 0.5 * point.square().sum()

    target = cc.VAETarget(vae, cc.Evidence(values, mask))
    expected = negated_hessians(expected_log_joint, z)
    torch.testing.assert_close(target.curvature(z), expected)
    torch.testing.assert_close(target.flatten().curvature(z), expected)


def test_the_curvature_without_evidence_is_the_priors():
    problem = linear_gaussian_problem(3, data_dim=8, batch=5, dtype=torch.double)
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    curvature = cc.VAETarget(problem.vae, nothing).curvature(points(5, 3))
    torch.testing.assert_close(curvature, torch.eye(3, dtype=torch.double).expand(5, 3, 3))


class Doubled(torch.autograd.Function):
    """Without a rule for forward mode, as fused attention is."""

    @staticmethod
    def forward(context, z):
        return 2 * z

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


@pytest.mark.parametrize("dear", [False, True])
def test_products_with_the_curvature_are_those_of_the_matrix(dear, monkeypatch):
    """By forward mode; and of decoders where that takes long, by differences."""
    monkeypatch.setattr("crosscoding.target.vae_target._EXPENSIVE", 0.0 if dear else 1e7)
    decoder = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 6), nn.Sigmoid()).double()
    vae = cc.VAE(decoder, 3, cc.likelihoods.Bernoulli(logits=False))
    mask = torch.arange(6) < torch.tensor([0, 1, 4, 6])[:, None]
    values = (torch.randn(4, 6, generator=seeded(3)) > 0).double()
    z, directions = points(5, 4, 3), points(5, 4, 3).flip(0)
    for target in (
        cc.VAETarget(vae, cc.Evidence(values, mask)),
        cc.VAETarget(vae, cc.Evidence(values, mask)).flatten().prepare(),
        cc.DensityTarget(lambda z: -z.pow(4).sum(-1), 3).select(torch.zeros(4, dtype=torch.long)),
    ):
        expected = (target.curvature(z) @ directions[..., None])[..., 0]
        product = target.curvature_along(z, directions)
        # Central differences in double have 1e-10 or so.
        torch.testing.assert_close(product, expected, rtol=1e-7, atol=1e-7)
        assert product.dtype == torch.double


def test_differences_replace_a_missing_forward_derivative_along_a_direction():
    class Decoder(nn.Module):
        def forward(self, z):
            return Doubled.apply(z)

    target = cc.VAETarget(
        cc.VAE(nn.Sequential(Decoder(), nn.Linear(2, 4)), 2, cc.likelihoods.Gaussian(0.5)),
        cc.Evidence(torch.zeros(2, 4), torch.tensor(True)),
    )
    z, directions = torch.ones(3, 2, 2), torch.randn(3, 2, 2, generator=seeded(0))
    expected = (target.curvature(z) @ directions.double()[..., None])[..., 0]
    product = target.curvature_along(z, directions)
    torch.testing.assert_close(product, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("num", [1, 20])
def test_a_decoder_without_a_forward_derivative_has_a_curvature(num):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 4)

        def forward(self, z):
            return self.linear(Doubled.apply(z))

    vae = cc.VAE(Decoder(), 2, cc.likelihoods.Gaussian(0.5))
    target = cc.VAETarget(vae, cc.Evidence(torch.zeros(2, 4), torch.tensor(True)))
    weight = vae.decoder.linear.weight.double()
    exact = torch.eye(2) + 16 * weight.mT @ weight
    curvature = target.curvature(torch.ones(num, 2, 2))
    # Central differences in float32 have 1e-4 or so.
    torch.testing.assert_close(curvature, exact.expand(num, 2, 2, 2), rtol=1e-3, atol=1e-3)


def test_a_decoder_without_a_gradient_is_refused():
    class Decoder(nn.Module):
        def forward(self, z):
            return torch.cat([z, z], 1).detach()

    vae = cc.VAE(Decoder(), 2, cc.likelihoods.Gaussian(0.5))
    target = cc.VAETarget(vae, cc.Evidence(torch.zeros(1, 4), torch.tensor(True)))
    with pytest.raises(ValueError, match="differentiate by z"):
        target.log_likelihood(torch.ones(1, 2, requires_grad=True))


# ---- the bank ------------------------------------------------------------------------------------


def test_the_bank_of_a_target_is_every_query_at_the_models_points():
    target = PROBLEM.target
    z, log_likelihood = target.log_likelihood_of_bank()
    assert log_likelihood.shape == (len(z), 2, 3)
    torch.testing.assert_close(log_likelihood[:50], target.pairwise_log_likelihood(z[:50]))


def test_the_bank_of_a_bare_density_is_spread_as_its_prior():
    target = mixture_target(torch.double)
    z, log_likelihood = target.select(torch.zeros(3, dtype=torch.long)).log_likelihood_of_bank()
    assert log_likelihood.shape == (len(z), 3)
    # Evenly spread: nearer than 16,384 independent draws come in one standard error.
    assert (z.std(0) - 3.0).abs().max() < 3.0 / (2 * len(z)) ** 0.5
    torch.testing.assert_close(log_likelihood[:, 1], target.log_joint(z) - target.log_prior(z))
