"""Publishing: models load again and agree with their cards."""

import math
from dataclasses import replace

import pytest
import torch
from small import TINY, TINY_DATA, TINY_FACES, tiny_faces
from torch import nn

import crosscoding as cc
from crosscoding.methods import Rejection
from crosscoding.persistence.folder import read_folder
from crosscoding.zoo.training.fit import Training, reconstruct, train
from crosscoding.zoo.training.publishing import evaluate, publish, round_to_half, settle_batch_norm

every_kind = pytest.mark.parametrize("kind", TINY)


@every_kind
def test_a_published_model_loads_and_its_card_states_its_elbo(kind, tmp_path, monkeypatch):
    recipe, data = TINY[kind], TINY_DATA[kind](60)
    training = train(recipe, data[:40], tmp_path / "run")
    card = publish(training, data[:40], data[40:], tmp_path / "models" / "tiny")
    monkeypatch.setattr(cc.zoo, "_MODELS", tmp_path / "models")
    assert "tiny" in cc.zoo.names()
    vae, encoder = cc.zoo.load("tiny"), cc.zoo.encoder("tiny")
    held_out = recipe.prepared(data[40:])
    value, error = evaluate(encoder, vae.decoder, vae.likelihood, held_out)
    assert card["test_elbo_nats"] == pytest.approx(value, abs=0.006)
    assert card["test_elbo_standard_error"] == pytest.approx(error, abs=0.006)
    shown = cc.zoo.card("tiny")
    assert {name: shown[name] for name in card} == {**card, "recipe": shown["recipe"]}
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vae.decode(z), training.decoder(z))
    mask = cc.random_mask(recipe.data_shape, 0.01, seed=0)
    posterior = cc.condition(vae, cc.Evidence(held_out[:2], mask), Rejection(10), seed=0)
    assert posterior.predict(3).shape == (3, 2, *recipe.data_shape)


def test_weights_are_kept_in_half_precision_and_batch_norm_is_not(tmp_path):
    training = train(TINY_FACES, tiny_faces(), tmp_path / "run")
    publish(training, tiny_faces(), tiny_faces(), tmp_path / "model")
    tensors, _ = read_folder(tmp_path / "model", "vae")
    for name, tensor in tensors.items():
        kept = torch.float16 if tensor.ndim >= 2 else torch.float32
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else kept)


def test_rounding_changes_filters_by_half_a_step_of_half_precision_and_nothing_else():
    training = Training(TINY_FACES)
    before = {name: tensor.clone() for name, tensor in training.networks.state_dict().items()}
    round_to_half(training.networks)
    for name, tensor in training.networks.state_dict().items():
        if tensor.ndim >= 2:
            torch.testing.assert_close(tensor, before[name], rtol=2**-11, atol=2**-25)
            assert torch.equal(tensor, tensor.half().float())
        else:
            assert torch.equal(tensor, before[name])


def test_the_published_scale_makes_the_training_data_likeliest(tmp_path):
    """At other scales, the same networks have a lower ELBO: −E log σ − r² / 2σ² peaks at r."""
    training = train(replace(TINY_FACES, epochs=10), tiny_faces(200), tmp_path / "run")
    publish(training, tiny_faces(200), tiny_faces(10), tmp_path / "model")
    vae = cc.load_vae(tmp_path / "model")
    data = TINY_FACES.prepared(tiny_faces(200))

    def value(factor):
        likelihood = cc.likelihoods.Gaussian(factor * vae.likelihood.scale)
        return evaluate(training.encoder, training.decoder, likelihood, data)[0]

    # One draw of z per datum here, 16 there: scales differ by a few tenths of a per cent.
    assert value(1.0) > max(value(0.95), value(1.05))


def test_settled_batch_norm_has_the_mean_and_variance_of_all_data():
    generator = torch.Generator().manual_seed(0)
    data = 3 + 2 * torch.randn(500, 4, generator=generator)[..., None, None].expand(-1, -1, 2, 2)
    encoder = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6))
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2)), nn.BatchNorm2d(4))
    for _ in range(3):
        encoder(data - 100)  # running averages of something else
    weights = {name: p.clone() for name, p in encoder.named_parameters()}
    settle_batch_norm(encoder, decoder, data, seed=0)
    assert not encoder.training
    assert not decoder.training
    torch.testing.assert_close(encoder[0].running_mean, data.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    # Two blocks of 250: their average variance lacks the variance between blocks, 0.4 %.
    torch.testing.assert_close(encoder[0].running_var, data.var((0, 2, 3)), rtol=0.02, atol=0)
    with torch.no_grad():
        out, _ = reconstruct(encoder, decoder, data, generator=generator)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.15)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.15)
    assert encoder[0].momentum == 0.1
    assert all(torch.equal(weights[name], p) for name, p in encoder.named_parameters())


def test_an_elbo_does_not_depend_on_blocks_and_its_error_falls_with_more_data():
    training = Training(TINY_FACES)
    training.networks.eval()
    data = TINY_FACES.prepared(tiny_faces(600))
    networks, likelihood = (training.encoder, training.decoder), cc.likelihoods.Gaussian(0.5)
    value, error = evaluate(*networks, likelihood, data, num_draws=2)
    few, larger = evaluate(*networks, likelihood, data[:150], num_draws=2)
    assert abs(value - few) < 4 * math.hypot(error, larger)
    assert error == pytest.approx(larger / 2, rel=0.3)


def test_a_decoder_that_no_card_can_describe_is_refused(tmp_path):
    class Odd(nn.Module):
        def forward(self, z):
            return z[:, :1, None].expand(-1, 3, 2)

    training = Training(TINY["digits"])
    training.decoder = Odd()
    data = TINY_DATA["digits"]()
    with pytest.raises(ValueError, match="a decoder that is a stack of common layers"):
        publish(training, data, data, tmp_path / "model")
