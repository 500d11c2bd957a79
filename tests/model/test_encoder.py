"""Encoders: copied and frozen, however they output mean and log-variance; or refused."""

from types import SimpleNamespace

import pytest
import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.zoo.training.recipe import RECIPES


class Pair(nn.Module):
    """Mean and log-variance as a tuple, as most people's encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(data), self.log_variance(data)


def with_encoder(encoder: nn.Module | None) -> cc.VAE:
    return cc.VAE(nn.Linear(2, 5), 2, Gaussian(), encoder)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_a_tuple_and_one_tensor_give_the_same_mean_and_deviation(batch):
    pair = Pair()
    one = nn.Linear(5, 4)
    with torch.no_grad():
        one.weight.copy_(torch.cat([pair.mean.weight, pair.log_variance.weight]))
        one.bias.copy_(torch.cat([pair.mean.bias, pair.log_variance.bias]))
    data = torch.randn(*batch, 5, generator=seeded(0))
    mean, std = with_encoder(pair).encode(data)
    assert mean.shape == std.shape == (*batch, 2)
    torch.testing.assert_close(mean, pair.mean(data))
    torch.testing.assert_close(std, (pair.log_variance(data) / 2).exp())
    for answer, same in zip(with_encoder(one).encode(data), (mean, std), strict=True):
        torch.testing.assert_close(answer, same)


def test_the_encoder_is_a_frozen_copy():
    encoder = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).train()
    vae = with_encoder(encoder)
    assert vae.encoder is not encoder
    assert not any(module.training for module in vae.encoder.modules())
    assert not any(parameter.requires_grad for parameter in vae.encoder.parameters())
    assert encoder.training
    assert encoder[0].num_batches_tracked == 0


@pytest.mark.parametrize("name", RECIPES)
def test_plain_models_of_the_zoo_have_an_encoder(name):
    """z is drawn and decoded: the encoder must find most of it again."""
    vae = cc.zoo.load(name)
    z = torch.randn(50, vae.latent_dim, generator=seeded(0))
    with torch.no_grad():
        mean, std = vae.encode(vae.likelihood.mean(vae.decode(z)))
    explained = 1 - (mean - z).square().mean() / z.square().mean()
    assert explained > 0.4  # in 100 dimensions a face leaves some of them open
    assert ((std > 0) & (std < 2)).all()


def test_an_encoder_does_not_change_answers():
    vae = cc.VAE(nn.Linear(2, 5), 2, Gaussian())
    other = cc.VAE(vae.decoder, 2, Gaussian(), nn.Linear(5, 4))
    evidence = cc.Evidence(torch.ones(5), torch.tensor([True, False, True, False, False]))
    draws = [cc.condition(model, evidence, seed=0).sample(9) for model in (vae, other)]
    assert torch.equal(*draws)


def test_a_model_without_an_encoder_cannot_encode():
    vae = with_encoder(None)
    assert vae.encoder is None
    with pytest.raises(ValueError, match=r"a model with an encoder, VAE\(..., encoder=...\)"):
        vae.encode(torch.zeros(3, 5))


def test_data_that_do_not_match_are_refused():
    vae = with_encoder(nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 5\), got \(3, 4\)"):
        vae.encode(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"data of the model's dtype torch\.float32, got"):
        vae.encode(torch.zeros(3, 5).double())


def test_output_that_is_not_finite_is_refused():
    encoder = nn.Linear(5, 4)
    nn.init.ones_(encoder.weight)
    vae = with_encoder(encoder)
    for wrong in (float("nan"), 1e3, -1e3):  # exp gives infinity, or 0
        with pytest.raises(cc.NonFiniteError, match="finite mean and log-variance from the encod"):
            vae.encode(torch.full((3, 5), wrong))


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, data: Tensor):
        return self.function(data)


REFUSED = {
    "another shape of data": (nn.Linear(6, 4), r"encoder to take rows of shape \(5,\), but it fai"),
    "one latent too few": (nn.Linear(5, 2), r"encoder output of shape \(5, 4\) for 5 data, mean"),
    "three tensors": (Lambda(lambda t: (t[:, :2],) * 3), r"a tuple of the two, got \(5, 6\)"),
    "nothing": (
        Lambda(lambda t: None),
        r"mean and log-variance from the encoder, .*, got NoneType; wrap",
    ),
    "a dict": (
        Lambda(lambda t: {"mu": t[:, :2], "logvar": t[:, :2]}),
        r"^expected mean and log-variance from the encoder, .*, got dict of mu, logvar; wrap it",
    ),
    "an object": (
        Lambda(lambda t: SimpleNamespace(mu=t[:, :2], logvar=t[:, :2])),
        r"^expected mean and log-variance .*, got SimpleNamespace of mu, logvar; wrap it",
    ),
    "a tuple within a tuple": (
        Lambda(lambda t: ((t[:, :2], t[:, :2]),)),
        r"^expected mean and log-variance .*, got tuple of tuple of a tensor of shape \(5, 2\)",
    ),
    "one number": (
        Lambda(lambda t: t.sum()),
        r"^expected mean and log-variance .*, got a tensor of shape \(\); wrap it",
    ),
    "noise": (Lambda(lambda t: torch.randn(len(t), 4)), "expected a deterministic encoder"),
    "mixing": (Lambda(lambda t: (t - t.mean(0))[:, :4]), "does not depend on the other rows"),
    "another dtype": (
        Lambda(lambda t: t[:, :4].double()),
        "dtype torch.float32, got torch.float64",
    ),
    "double": (nn.Linear(5, 4).double(), "same dtype"),
    "NaN": (Lambda(lambda t: t[:, :4] * float("nan")), "finite output from the encoder"),
    "batch norm that trains": (
        nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 4)),
        "does not depend on the other rows",
    ),
}


@pytest.mark.parametrize(("encoder", "said"), REFUSED.values(), ids=REFUSED)
def test_an_encoder_that_does_not_fit_is_refused(encoder, said):
    with pytest.raises(ValueError, match=said):
        with_encoder(encoder)


def test_an_encoder_that_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"expected encoder to be a torch\.nn\.Module, got func"):
        with_encoder(lambda data: data)


def test_an_encoder_is_tried_on_draws_of_its_model():
    """Some encoders look numbers up: what they are tried on must be zeros and ones."""
    table = Lambda(lambda t: nn.functional.embedding(t.long(), torch.eye(2)).flatten(1)[:, :4])
    cc.VAE(nn.Linear(2, 5), 2, Bernoulli(), table)
