"""The target of a VAE: log p(z, x) in every form that methods use, and what it refuses."""

import pytest
import torch
from problems import linear_gaussian_problem, mirrored_problem, mixture_target, points, seeded
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import crosscoding as cc
from crosscoding.target import vae_target as target_module

PROBLEM = linear_gaussian_problem(latent_dim=3, data_dim=8, batch=(2, 3), dtype=torch.double)


def expected_log_likelihood(z: Tensor) -> Tensor:
    evidence = PROBLEM.evidence
    elements = Normal(PROBLEM.vae.decoder(z), 0.5).log_prob(evidence.values)
    return torch.where(evidence.mask, elements, 0.0).sum(-1)


# ---- log p -------------------------------------------------------------------------------------


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


def test_the_bank_of_a_target_is_every_query_at_the_models_points():
    target = PROBLEM.target
    z, log_likelihood = target.log_likelihood_of_bank()
    assert log_likelihood.shape == (len(z), 2, 3)
    torch.testing.assert_close(log_likelihood[:50], target.pairwise_log_likelihood(z[:50]))


# ---- mistakes ----------------------------------------------------------------------------------


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
