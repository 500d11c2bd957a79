"""Mixtures and zero-inflated counts: what decoders may output, and what is refused."""

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import (
    BetaBinomial,
    Categorical,
    Gaussian,
    Laplace,
    Mixed,
    Mixture,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflated,
)

DOUBLE = torch.double


def test_a_mixture_takes_a_tuple_of_logits_and_parameters():
    logits, mean, scale = torch.randn(3, 5, 2, 4, generator=seeded(0)).unbind()
    likelihood = Mixture(Gaussian(None), 4)
    joined = likelihood.join([logits, mean, scale.exp()])
    assert likelihood.data_shape(joined.shape[1:]) == (2,)
    values = torch.randn(5, 2, generator=seeded(1))
    each = torch.distributions.Normal(mean, scale.exp()).log_prob(values[..., None])
    expected = (logits.log_softmax(-1) + each).logsumexp(-1)
    torch.testing.assert_close(likelihood.log_prob(joined, values), expected)
    with pytest.raises(ValueError, match=r"expected 3 tensors \(B, \*data, 4\)"):
        likelihood.join([logits, mean])
    with pytest.raises(ValueError, match=r"expected 3 tensors \(B, \*data, 4\)"):
        likelihood.join([logits, mean, scale[..., :3]])


def test_a_mixture_of_one_is_the_other_and_one_without_extra_zeros_too():
    params = torch.randn(6, 3, generator=seeded(0), dtype=DOUBLE)
    params[:, 2] = params[:, 2].exp()
    values = torch.tensor([0.0, 1.0, 2.0, 0.5, -3.0, 1.0], dtype=DOUBLE)
    one = Mixture(Gaussian(None), 1)
    for name in ("log_prob", "mean", "variance"):
        arguments = [values] if name == "log_prob" else []
        found = getattr(one, name)(params, *arguments)
        torch.testing.assert_close(found, getattr(Gaussian(None), name)(params[:, 1:], *arguments))
    torch.testing.assert_close(
        one.fisher(params)[:, 1:], Gaussian(None).fisher(params[:, 1:]), rtol=1e-6, atol=1e-9
    )
    counts, plain = values.abs().ceil(), NegativeBinomial(None)
    inflated = torch.cat([torch.full((6, 1), -60.0, dtype=DOUBLE), params[:, 1:]], 1)
    for name in ("log_prob", "mean", "variance"):
        arguments = [counts] if name == "log_prob" else []
        found = getattr(ZeroInflated(plain), name)(inflated, *arguments)
        torch.testing.assert_close(found, getattr(plain, name)(params[:, 1:], *arguments))


@pytest.mark.parametrize(
    "other", [StudentT(5.0, None), Laplace(None), BetaBinomial(7, 2.0), Categorical(3), Poisson()]
)
def test_mixtures_of_any_family_have_its_moments_and_draws(other):
    likelihood = Mixture(other, 2)
    params = torch.randn(2, likelihood.param_shape[0], generator=seeded(3), dtype=DOUBLE)
    if likelihood.param_shape[0] == 6 and not isinstance(other, Categorical):
        params[:, 4:] = 0.3 + params[:, 4:].abs()
    num = 40_000
    noise = likelihood.noise((num, 2), generator=seeded(0), like=params)
    draws = likelihood.draw(params, noise)
    error = (likelihood.variance(params) / num).sqrt()
    assert ((draws.mean(0) - likelihood.mean(params)).abs() < 5 * error).all()
    assert (likelihood.fisher(params) > 0).all()


def test_fisher_information_of_a_family_without_a_law_rests_on_draws():
    class Own(Gaussian):
        uncertain = ()

    params = torch.tensor([[0.3, -0.5, -1.0, 1.5, 0.4, 0.8]], dtype=DOUBLE)
    found = Mixture(Own(None), 2).fisher(params)
    torch.testing.assert_close(found, Mixture(Gaussian(None), 2).fisher(params), rtol=0.5, atol=0.1)


def test_zero_inflated_mixtures_nest():
    likelihood = ZeroInflated(Mixture(Poisson(), 2))
    params = torch.tensor([[-1.0, 0.2, -0.3, 0.5, 2.0]], dtype=DOUBLE)
    counts = torch.arange(60, dtype=DOUBLE)[:, None]
    mass = likelihood.log_prob(params, counts).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(1, dtype=DOUBLE))
    torch.testing.assert_close((mass * counts).sum(0), likelihood.mean(params))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ZeroInflated(Gaussian(0.1)), TypeError, "likelihood of counts"),
        (lambda: ZeroInflated(Categorical(3)), TypeError, "likelihood of counts"),
        (lambda: ZeroInflated("poisson"), TypeError, "crosscoding.likelihoods"),
        (lambda: Mixture(Categorical(3, one_hot=True), 2), TypeError, "single elements"),
        (lambda: Mixture(Mixed([Poisson()]), 2), TypeError, "single elements"),
        (lambda: Mixture(Poisson(), 0), ValueError, "num >= 1"),
        (lambda: Mixture(Poisson(), 2.0), TypeError, "num to be an int"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_decoder_with_heads_serves_a_table_with_mixtures():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number, self.count = nn.Linear(2, 6), nn.Linear(2, 2)

        def forward(self, z):
            logits, mean, raw = self.number(z).split(2, -1)
            return (logits, mean, raw.exp()), self.count(z)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = Heads()
    likelihood = Mixed([Mixture(Gaussian(None), 2), ZeroInflated(Poisson())])
    vae = cc.VAE(decoder, 2, likelihood)
    truth = vae.sample_prior(300, seed=0)
    assert vae.data_shape == (2,)
    assert vae.check(truth).ok
    evidence = cc.Evidence(truth[:3], torch.tensor([True, False]))
    posterior = cc.condition(vae, evidence, seed=0)
    assert posterior.trusted.all()
    assert vae.likelihood.in_support(posterior.predict(9, seed=0)).all()


def units_and_products(likelihood, params, name):
    """What a product of `likelihood` makes of all unit tangents: matrices (E, P, P)."""
    num = params.shape[-1]
    units = torch.eye(num, dtype=DOUBLE)[:, None, None].expand(num, 1, *params.shape[-2:])
    mask = torch.ones(params.shape[-2], dtype=torch.bool)
    return getattr(likelihood, name)(params[None], units, mask[None])[:, 0].movedim(0, -1)


@pytest.mark.parametrize("other", [Gaussian(None), StudentT(4.0, None), Poisson(), Categorical(3)])
def test_curvature_of_a_mixture_is_at_least_its_fisher_matrix(other):
    likelihood = Mixture(other, 3)
    params = torch.randn(5, likelihood.param_shape[0], generator=seeded(3), dtype=DOUBLE).abs()
    bound = units_and_products(likelihood, params, "curvature_product")
    fisher = units_and_products(likelihood, params, "fisher_product")
    torch.testing.assert_close(bound, bound.mT)
    least = torch.linalg.eigvalsh(bound - fisher).amin()
    assert least > -0.01 * fisher.abs().max()  # the quadrature's error
    assert (bound - fisher).abs().max() > 0.05 * fisher.abs().max()  # they overlap


def test_curvature_of_separate_distributions_is_the_fisher_matrix():
    likelihood = Mixture(Gaussian(None), 3)
    params = torch.tensor([[0.3, -0.5, 1.0, -50.0, 2.0, 60.0, 1.0, 0.5, 2.0]], dtype=DOUBLE)
    bound = units_and_products(likelihood, params, "curvature_product")
    fisher = units_and_products(likelihood, params, "fisher_product")
    torch.testing.assert_close(bound, fisher, rtol=1e-6, atol=1e-6)


def test_curvature_of_a_part_leaves_out_what_is_not_observed():
    mixture = Mixture(Gaussian(None), 2)
    table = Mixed([(mixture, 2), (Poisson(), 1)])
    params = torch.randn(1, 1, 13, generator=seeded(0), dtype=DOUBLE).abs()
    tangents = torch.randn(4, 1, 1, 13, generator=seeded(1), dtype=DOUBLE)
    mask = torch.tensor([[False, True, True]])
    product = table.curvature_product(params, tangents, mask)
    own = params[..., 6:12].unflatten(-1, (1, 6)), tangents[..., 6:12].unflatten(-1, (1, 6))
    assert (product[..., :6] == 0).all()
    expected = mixture.curvature_product(*own, mask[:, 1:2]).flatten(-2)
    torch.testing.assert_close(product[..., 6:12], expected)
    torch.testing.assert_close(product[..., 12], params[..., 12].exp() * tangents[..., 12])
