"""Every fault of a decoder alone, and the check that finds it."""

import math

import pytest
import torch
from faults import LATENT, network, right, status, wrapped
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed


@pytest.mark.parametrize("likelihood", [Bernoulli(), cc.likelihoods.ContinuousBernoulli()])
def test_probabilities_where_logits_are_expected(likelihood):
    with pytest.warns(UserWarning, match=r"if they are probabilities, use \w+\(logits=False\)"):
        vae = cc.VAE(network(last=nn.Sigmoid()), LATENT, likelihood)
    finding = vae.check()["output"]
    assert finding.status == "error"
    assert "(logits=False)" in finding.message
    right_one = type(likelihood)(logits=False)
    assert status(cc.VAE(network(last=nn.Sigmoid()), LATENT, right_one), "output") == "ok"


@pytest.mark.parametrize("size", [1, 3])
def test_a_few_probabilities_where_logits_are_expected(size):
    decoder = nn.Sequential(nn.Linear(LATENT, 2), nn.Tanh(), nn.Linear(2, size), nn.Sigmoid())
    with pytest.warns(UserWarning, match="if they are probabilities"):
        vae = cc.VAE(decoder, LATENT, Bernoulli())
    assert status(vae, "output") == "error"
    assert status(cc.VAE(decoder, LATENT, Bernoulli(logits=False)), "output") == "ok"
    assert status(cc.VAE(decoder[:3], LATENT, Bernoulli()), "output") == "ok"


def test_probabilities_where_logits_of_classes_are_expected():
    decoder = nn.Sequential(network(), nn.Unflatten(1, (4, 3)), nn.Softmax(-1))
    with pytest.warns(UserWarning, match="leave softmax out"):
        vae = cc.VAE(decoder, LATENT, Categorical(3))
    assert status(vae, "output") == "error"
    decoder[-1] = nn.LogSoftmax(-1)
    assert status(cc.VAE(decoder, LATENT, Categorical(3)), "output") == "ok"


def test_probabilities_in_one_part_of_a_table():
    likelihood = Mixed([(Gaussian(0.1), 2), (Bernoulli(), 10)])

    def half(net, z):
        return torch.cat([net(z)[:, :2], net(z)[:, 2:].sigmoid()], -1)

    with pytest.warns(UserWarning, match="expected logits"):
        assert status(wrapped(half, likelihood), "output") == "error"


def test_nan_at_some_draws_of_the_prior():
    vae = wrapped(lambda net, z: torch.where(z[:, :1] > 2, math.nan, net(z)))
    finding = vae.check()["output"]
    assert finding.status == "error"
    assert "no p(t|z) at" in finding.message


def test_probabilities_above_1_at_some_draws():
    vae = wrapped(lambda net, z: 0.5 + 0.2 * z[:, :1].expand(-1, 12), Bernoulli(logits=False))
    finding = vae.check()["output"]
    assert finding.status == "error"
    assert "between 0 and 1" in finding.message


def test_noise_that_begins_later():
    calls = []

    def noisy(net, z):
        calls.append(1)
        return net(z) + (len(calls) > 20) * torch.randn(12, generator=generator)

    generator = seeded(0)
    vae = wrapped(noisy)
    calls.extend([1] * 20)
    assert "decoded again" in vae.check()["repeatability"].message
    assert status(vae, "repeatability") == "error"


def test_batches_that_mix_when_they_are_large():
    vae = wrapped(lambda net, z: net(z) - (net(z).mean(0) if len(z) > 8 else 0.0))
    finding = vae.check()["repeatability"]
    assert finding.status == "error"
    assert "when it is decoded alone" in finding.message


def test_parts_that_stay_in_training_mode():
    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True):
            return self

    decoder = nn.Sequential(network(), Stubborn(nn.Dropout(0.0)))
    finding = cc.VAE(decoder, LATENT, Gaussian(0.3)).check()["repeatability"]
    assert finding.status == "warning"
    assert finding.message.startswith("1, 1.0 stayed in training mode")


def with_batch_norm() -> nn.Sequential:
    layers = network()
    return nn.Sequential(layers[0], nn.BatchNorm1d(16), layers[1], layers[2])


def estimated() -> nn.Sequential:
    """The same with the statistics of the prior."""
    decoder = with_batch_norm().train()
    decoder[1].momentum = None
    for _ in range(20):
        decoder(torch.randn(200, LATENT, generator=seeded(7)))
    return decoder


def test_batch_norm_that_was_never_estimated():
    finding = cc.VAE(with_batch_norm(), LATENT, Gaussian(0.3)).check()["batch norm"]
    assert finding.status == "error"
    assert "running mean and variance are 0 and 1 in 1 of 1 layers (first 1)" in finding.message


def test_batch_norm_that_was_estimated():
    assert status(cc.VAE(estimated(), LATENT, Gaussian(0.3)), "batch norm") == "ok"


@pytest.mark.parametrize(
    "change", [lambda m: m.running_mean.add_(3), lambda m: m.running_var.mul_(9)]
)
def test_batch_norm_of_other_statistics(change):
    decoder = estimated()
    change(decoder[1])
    finding = cc.VAE(decoder, LATENT, Gaussian(0.3)).check()["batch norm"]
    assert finding.status == "warning"
    assert finding.figures["worst_drift"] > 0.5


def test_infinity_far_out():
    vae = wrapped(lambda net, z: net(z) + 1 / (z.norm(dim=-1, keepdim=True) < 5).float() - 1)
    finding = vae.check()["far out"]
    assert finding.status == "warning"
    assert "at |z| = 5.41" in finding.message


def test_a_scale_below_0_far_out():
    def decode(net, z):
        return net(z), (5 - z.norm(dim=-1, keepdim=True)).expand(-1, 12)

    finding = wrapped(decode, Gaussian(None)).check()["far out"]
    assert finding.status == "warning"
    assert "whose scale is > 0" in finding.message


class Rounded(torch.autograd.Function):
    """Rounding that claims to have the derivative 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values):
        return values.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, z: net(z.detach()), "cuts gradients off"),
        (lambda net, z: net(z) + 2 * net(z).detach(), "derivatives differ from"),
        (lambda net, z: Rounded.apply(net(z)), "derivatives differ from"),
        (lambda net, z: net(z * 0), "does not change with z"),
        (lambda net, z: net(z).round(), "does not change with z"),
        (lambda net, z: net(z) + (z * 0).norm(dim=-1, keepdim=True).sqrt(), "NaN or infinite"),
    ],
    ids=["detached", "detached in part", "straight through", "dead", "rounded", "root at 0"],
)
def test_wrong_gradients(function, words):
    finding = wrapped(function).check()["gradients"]
    assert finding.status == "error"
    assert words in finding.message


def test_a_decoder_that_works_only_in_float32_is_differentiated_in_float32():
    constant = torch.ones(12, LATENT)
    vae = wrapped(lambda net, z: net(z) + nn.functional.linear(z, constant))
    finding = vae.check()["gradients"]
    assert finding.status == "ok"
    assert "float32" in finding.message


def test_kinks_are_not_reported():
    decoder = nn.Sequential(
        *[part if isinstance(part, nn.Linear) else nn.ReLU() for part in network()]
    )
    assert status(cc.VAE(decoder, LATENT, Gaussian(0.3)), "gradients") == "ok"


def test_a_latent_dimension_that_is_ignored():
    finding = wrapped(lambda net, z: net(z * torch.tensor([1.0, 0.0]))).check()["latent"]
    assert finding.status == "note"
    assert "1 of 2 dimensions are active; the decoder ignores 1" in finding.message
    assert finding.figures == {"active": 1.0, "ignored": 1.0}


def test_a_decoder_that_ignores_z():
    finding = cc.VAE(network(), LATENT, Gaussian(1e4)).check()["latent"]
    assert finding.status == "error"
    assert "none of 2 dimensions" in finding.message


def test_a_decoder_without_forward_mode_passes():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    finding = wrapped(lambda net, z: Backward.apply(net(z))).check()["latent"]
    assert finding.status == "ok"


def test_the_cost_is_reported():
    report = right().check()
    assert report["cost"].figures["operations"] == LATENT * 16 + 16 * 12
    assert report["bank"].figures["points"] == len(cc.Bank.of(right()).points)
    assert "16 to 12" in report["last layer"].message
    assert "integrates over a grid" in report["methods"].message


def test_a_last_layer_that_is_the_only_one_is_not_reported():
    finding = cc.VAE(nn.Linear(2, 12), LATENT, Gaussian(0.3)).check()["last layer"]
    assert finding.status == "ok"
    assert "the only layer" in finding.message


@pytest.mark.parametrize("likelihood", [Mixed([(Gaussian(0.3), 12)]), Gaussian(None)])
def test_no_other_last_layer_is_suggested_where_rows_cannot_be_separated(likelihood):
    decoder = network(12 if isinstance(likelihood, Mixed) else 24)
    if not isinstance(likelihood, Mixed):
        decoder = nn.Sequential(decoder, nn.Softplus(), nn.Unflatten(1, (12, 2)))
    finding = cc.VAE(decoder, LATENT, likelihood).check()["last layer"]
    assert finding.status == "note"
    assert finding.message.startswith("its rows cannot be separated")


def test_a_hidden_last_layer_is_noted():
    assert status(wrapped(lambda net, z: net(z) * 1.0), "last layer") == "note"


def test_many_latent_dimensions_are_noted():
    vae = cc.VAE(nn.Linear(40, 50), 40, Gaussian(0.5))
    assert status(vae, "methods") == "note"
    assert (
        "fits and checks itself"
        in cc.VAE(nn.Linear(8, 5), 8, Gaussian()).check()["methods"].message
    )
