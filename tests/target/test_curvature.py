"""The curvature of log p(z, x), as a matrix and along a direction."""

import pytest
import torch
from problems import blocks, linear_gaussian_problem, mixture_target, points, seeded
from torch import Tensor, nn

import crosscoding as cc


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
    with pytest.raises(ValueError, match="decoder that torch can differentiate"):
        target.log_likelihood(torch.ones(1, 2, requires_grad=True))
