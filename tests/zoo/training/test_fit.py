"""Training: the objective against closed forms, resuming, and learning."""

import math
from dataclasses import replace

import pytest
import torch
from small import TINY, TINY_DATA, TINY_DIGITS, TINY_FACES, tiny_digits, tiny_faces
from torch import nn

from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.zoo.training.fit import Training, draw_weights, elbo, reconstruct, train

every_kind = pytest.mark.parametrize("kind", TINY)


def same_weights(one, other):
    first, second = one.networks.state_dict(), other.networks.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


# ---- the objective -------------------------------------------------------------------------------


def test_the_elbo_of_networks_that_output_zero_is_that_of_fair_coins():
    """Computed by hand: with all weights zero, q is the prior and every logit is 0."""
    training = Training(TINY_DIGITS)
    with torch.no_grad():
        for parameter in training.networks.parameters():
            parameter.zero_()
    data = tiny_digits(4)
    passed = reconstruct(
        training.encoder, training.decoder, data, generator=torch.Generator().manual_seed(0)
    )
    values = elbo(Bernoulli(), data, *passed)
    torch.testing.assert_close(values, torch.full((4,), -6 * math.log(2)))


def test_the_divergence_is_that_of_two_gaussians():
    mean_and_log_variance = torch.tensor([[0.5, -1.0, 0.3, -2.0], [0.0, 0.0, 0.0, 0.0]])
    encoder, decoder = nn.Identity(), nn.Identity()
    _, divergence = reconstruct(
        encoder, decoder, mean_and_log_variance, generator=torch.Generator().manual_seed(0)
    )
    mean, log_variance = mean_and_log_variance.chunk(2, -1)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence, exact)


def test_the_scale_of_a_step_is_the_one_that_makes_its_faces_likeliest():
    generator = torch.Generator().manual_seed(0)
    params, data = torch.randn(2, 6, 3, 8, 8, generator=generator)
    best = TINY_FACES.likelihood(params, data)
    value = best.log_prob(params, data).sum()
    for factor in (0.99, 1.01):
        assert Gaussian(factor * best.scale).log_prob(params, data).sum() < value


def test_no_gradient_flows_through_the_scale_of_a_step():
    params = torch.zeros(2, 3, 8, 8, requires_grad=True)
    assert isinstance(TINY_FACES.likelihood(params, torch.ones(2, 3, 8, 8)).scale, float)


def test_half_of_the_faces_of_a_step_are_mirrored_and_nothing_else_changes():
    data = TINY_FACES.prepared(tiny_faces(400))
    shown = TINY_FACES.varied(data, generator=torch.Generator().manual_seed(0))
    kept = (shown == data).flatten(1).all(1)
    mirrored = (shown == data.flip(-1)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 160 < mirrored.sum() < 240  # a fair coin, 400 times: 200 ± 4 · 10


# ---- first weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "num_summed"),
    [
        (nn.Linear(30, 200, bias=False), 30),
        (nn.Conv2d(4, 50, 5, 2, 2, bias=False), 4 * 25),
        (nn.ConvTranspose2d(50, 40, 5, 2, 2, 1, bias=False), 50 * 25 / 4),
    ],
)
def test_initial_weights_keep_a_third_of_the_input_variance(layer, num_summed):
    """Weights uniform within ±1/√n have variance 1/3n; outputs sum n inputs of variance 1."""
    draw_weights(layer, generator=torch.Generator().manual_seed(0))
    assert layer.weight.abs().max() <= num_summed**-0.5
    shape = (200, layer.weight.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1])
    shape = shape if isinstance(layer, nn.Linear) else (*shape, 16, 16)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = layer(inputs)
    if outputs.ndim == 4:
        outputs = outputs[..., 2:-2, 2:-2]  # away from the edges
    # The sample variance of thousands of weights varies by a few per cent.
    assert outputs.var().item() == pytest.approx(1 / 3, rel=0.1)


# ---- runs ----------------------------------------------------------------------------------------


@every_kind
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(kind, tmp_path):
    recipe, data = TINY[kind], TINY_DATA[kind]()
    whole = train(recipe, data, tmp_path / "whole")

    def interrupt(epoch, value):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, tmp_path / "parts", on_epoch=interrupt)
    resumed = train(recipe, data, tmp_path / "parts")
    assert resumed.epoch == whole.epoch == 3
    assert resumed.seconds > 0
    assert same_weights(whole, resumed)


@every_kind
def test_the_seed_determines_the_weights_and_training_changes_them(kind, tmp_path):
    recipe, data = TINY[kind], TINY_DATA[kind]()
    one, again = (train(recipe, data, tmp_path / name) for name in ("a", "b"))
    assert same_weights(one, again)
    other = train(replace(recipe, seed=4), data, tmp_path / "c")
    assert not same_weights(one, other)
    assert not same_weights(one, Training(recipe))


@every_kind
def test_a_finished_run_is_not_trained_further(kind, tmp_path):
    recipe, data, seen = TINY[kind], TINY_DATA[kind](), []
    first = train(recipe, data, tmp_path)
    second = train(recipe, data, tmp_path, on_epoch=lambda epoch, value: seen.append(epoch))
    assert not seen
    assert same_weights(first, second)


@pytest.mark.parametrize(("kind", "gain"), [("digits", 0.1), ("faces", 100.0)])
@pytest.mark.slow
def test_training_raises_the_elbo_and_reports_every_epoch(kind, gain, tmp_path):
    long = replace(TINY[kind], epochs=30, learning_rate=0.01)
    seen = []
    train(
        long,
        TINY_DATA[kind](200),
        tmp_path,
        on_epoch=lambda epoch, value: seen.append((epoch, value)),
    )
    assert [epoch for epoch, _ in seen] == list(range(1, 31))
    assert all(math.isfinite(value) for _, value in seen)
    assert seen[-1][1] > seen[0][1] + gain


@every_kind
def test_training_leaves_torchs_global_random_state_alone(kind, tmp_path):
    before = torch.random.get_rng_state()
    train(TINY[kind], TINY_DATA[kind](), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
