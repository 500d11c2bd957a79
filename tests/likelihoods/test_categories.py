"""One-hot and numbered classes are the same distribution; Ordinal keeps its order."""

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Likelihood, Ordinal

V, K, B = 4, 3, 5
ONE_HOT, NUMBERED = Categorical(K, one_hot=True), Categorical(K)


def logits(*shape: int, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(*shape, V, K, generator=seeded(seed), dtype=torch.double)


def data(seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Class numbers (B, V), and which of them are observed."""
    values = torch.randint(K, (B, V), generator=seeded(seed)).double()
    mask = torch.rand(B, V, generator=seeded(seed + 1)) < 0.5
    mask[0], mask[1] = False, True
    return values, mask


def as_one_hot(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same data as one-hot classes along the flat last dimension; 0 if unobserved."""
    hot = nn.functional.one_hot(values.long(), K).double() * mask[..., None]
    return hot.flatten(-2), mask[..., None].expand(*mask.shape, K).flatten(-2)


def test_log_prob_of_a_variable_is_that_of_its_number():
    values, everything = data()[0], torch.ones(B, V, dtype=torch.bool)
    hot, _ = as_one_hot(values, everything)
    params = logits(B)
    elements = ONE_HOT.log_prob(params.flatten(-2), hot)
    torch.testing.assert_close(
        elements.unflatten(-1, (V, K)).sum(-1), NUMBERED.log_prob(params, values)
    )


def test_all_sums_are_those_of_the_numbers():
    values, mask = data()
    hot, hot_mask = as_one_hot(values, mask)
    params = logits(7, B)
    expected = NUMBERED.masked_log_prob(params, values, mask)
    flat = params.flatten(-2)
    torch.testing.assert_close(ONE_HOT.masked_log_prob(flat, hot, hot_mask), expected)
    shared = params[:, 0]
    expected = NUMBERED.masked_log_prob(shared[:, None], values, mask)
    for likelihood, own, x, m in (
        (NUMBERED, shared, values, mask),
        (ONE_HOT, shared.flatten(-2), hot, hot_mask),
    ):
        result = likelihood.pairwise_log_prob(likelihood.to_keep(own), x, m)
        torch.testing.assert_close(result, expected)
    general = Likelihood.pairwise_log_prob(ONE_HOT, (shared.flatten(-2),), hot, hot_mask)
    torch.testing.assert_close(general, expected)


def test_many_queries_are_computed_in_pieces(monkeypatch):
    values, mask = data()
    kept = NUMBERED.to_keep(logits(7))
    whole = NUMBERED.pairwise_log_prob(kept, values, mask)
    monkeypatch.setattr("crosscoding.likelihoods.categories._CHUNK_BYTES", 2 * V * K * 8)
    torch.testing.assert_close(NUMBERED.pairwise_log_prob(kept, values, mask), whole)
    monkeypatch.setattr("crosscoding.likelihoods.base._CHUNK_BYTES", 8)
    torch.testing.assert_close(
        Likelihood.pairwise_log_prob(NUMBERED, (logits(7),), values, mask), whole
    )


def test_means_are_probabilities_and_draws_follow_them():
    params, num = logits(), 20_000
    probabilities = params.softmax(-1)
    torch.testing.assert_close(ONE_HOT.mean(params.flatten(-2)), probabilities.flatten(-2))
    variance = (probabilities * (1 - probabilities)).flatten(-2)
    torch.testing.assert_close(ONE_HOT.variance(params.flatten(-2)), variance)
    noise = ONE_HOT.noise((num, V * K), generator=seeded(0), like=params)
    draws = ONE_HOT.draw(params.flatten(-2), noise)
    assert ONE_HOT.in_support(draws).all()
    error = (variance / num).sqrt()
    assert ((draws.mean(0) - probabilities.flatten(-2)).abs() < 5 * error).all()


def test_fisher_couples_only_the_classes_of_one_variable():
    params = logits(1)
    p = params[0].softmax(-1)
    expected = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p])
    units = torch.eye(V * K, dtype=torch.double)[:, None]
    everything = torch.ones(1, V * K, dtype=torch.bool)
    product = ONE_HOT.fisher_product(params.flatten(-2), units, everything)
    torch.testing.assert_close(product[:, 0], expected)
    torch.testing.assert_close(ONE_HOT.fisher(params.flatten(-2))[0], expected.diagonal())
    numbered = NUMBERED.fisher_product(
        params, units.unflatten(-1, (V, K)), torch.ones(1, V, dtype=torch.bool)
    )
    torch.testing.assert_close(numbered.flatten(-2)[:, 0], expected)


def test_gradients_are_those_of_finite_differences():
    values, mask = data()
    hot, hot_mask = as_one_hot(values, mask)
    params = logits(B).flatten(-2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ONE_HOT.masked_log_prob(p, hot, hot_mask), (params,))


def network(*shape: int, latent: int = 2) -> nn.Module:
    out = torch.Size(shape).numel()
    decoder = nn.Sequential(nn.Linear(latent, 8), nn.Tanh(), nn.Linear(8, out))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(5)))
    return nn.Sequential(*decoder, nn.Unflatten(1, shape))


def test_a_mask_that_splits_a_variable_is_refused():
    vae = cc.VAE(network(V, K), 2, ONE_HOT)
    values = torch.zeros(2, V, K)
    values[..., 0] = 1
    mask = torch.zeros(2, V, K, dtype=torch.bool)
    mask[:, 1] = True
    cc.VAETarget(vae, cc.Evidence(values, mask))
    mask[1, 2, 1] = True
    with pytest.raises(
        ValueError, match=r"all classes of a one-hot .* 1 observed in part, the first at .*1, 2, 1"
    ):
        cc.VAETarget(vae, cc.Evidence(values, mask))


@pytest.mark.parametrize("shape", [(V, K), (V * K,)])
def test_one_hot_variables_lie_along_the_last_dimension(shape):
    vae = cc.VAE(network(*shape), 2, ONE_HOT)
    assert vae.data_shape == shape
    draws = vae.sample_prior(50, seed=0)
    assert draws.shape == (50, *shape)
    assert (draws.reshape(50, V, K).sum(-1) == 1).all()


def test_numbered_classes_have_a_last_dimension_of_logits():
    vae = cc.VAE(network(V, K), 2, NUMBERED)
    assert vae.data_shape == (V,)
    assert vae.params_size == V * K
    assert vae.sample_prior(50, seed=0).unique().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("likelihood", [ONE_HOT, NUMBERED])
def test_both_forms_give_the_same_answer(likelihood):
    vae = cc.VAE(network(V, K), 2, likelihood)
    values, mask = (part[1:] for part in data())
    if likelihood is ONE_HOT:
        values, mask = (part.unflatten(-1, (V, K)) for part in as_one_hot(values, mask))
    posterior = cc.condition(vae, cc.Evidence(values.float(), mask), cc.methods.Grid(), seed=0)
    numbered = cc.VAE(network(V, K), 2, NUMBERED)
    numbers, observed = (part[1:] for part in data())
    other = cc.condition(
        numbered, cc.Evidence(numbers.float(), observed), cc.methods.Grid(), seed=0
    )
    torch.testing.assert_close(posterior.log_evidence, other.log_evidence, rtol=0, atol=1e-3)


def test_ordinal_needs_only_its_cut_points():
    likelihood = Ordinal([-1, 0, 2])
    assert likelihood.num_classes == 4
    assert likelihood.cut_points == (-1.0, 0.0, 2.0)
    middle = likelihood.log_prob(torch.zeros(4), torch.arange(4.0)).exp()
    cumulative = torch.tensor([-1.0, 0.0, 2.0]).sigmoid()
    torch.testing.assert_close(middle.cumsum(0)[:3], cumulative)


def test_cut_points_belong_to_the_likelihood():
    cuts = torch.tensor([0.0, 1.0])
    likelihood = Ordinal(cuts)
    cuts.fill_(7.0)
    assert likelihood.cut_points.tolist() == [0.0, 1.0]


def test_two_classes_are_a_bernoulli():
    logit, values = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.0])
    bernoulli = cc.likelihoods.Bernoulli().log_prob(logit, values)
    torch.testing.assert_close(Ordinal([0.0]).log_prob(logit, values), bernoulli)
    pairs = torch.stack([torch.zeros(2), logit], -1)
    torch.testing.assert_close(Categorical(2).log_prob(pairs, values), bernoulli)
