"""The zoo: what is in it, that its cards tell the truth, and that its recipe can be run again."""

import math
from pathlib import Path

import pytest
import torch

import crosscoding as cc
from crosscoding.architecture import build, load_weights
from crosscoding.methods import Rejection
from crosscoding.storage import read_folder, under
from crosscoding.zoo import recipe
from crosscoding.zoo.recipe import RECIPES, Recipe, Training, evaluate, load_digits, publish, train

MODELS = Path(cc.zoo.__file__).parent / "models"
every_model = pytest.mark.parametrize("name", cc.zoo.names())

TINY = Recipe(latent_dim=2, hidden=(5,), epochs=3, batch_size=4, seed=3, data_shape=(3, 2))


def tiny_data(num=18):
    return (torch.rand(num, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def encoder_of(name):
    tensors, description = read_folder(MODELS / name, "vae")
    encoder = build(description["encoder"])
    load_weights(encoder, under(tensors, "encoder"))
    return encoder.eval()


def same_weights(one, other):
    first, second = one.networks.state_dict(), other.networks.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


# ---- the models ----------------------------------------------------------------------------------


def test_it_holds_the_papers_vae_and_a_larger_one_and_how_both_were_trained():
    assert cc.zoo.names() == ["mnist-20d", "mnist-2d"]
    assert RECIPES.keys() == set(cc.zoo.names())


@every_model
def test_a_model_loads_as_a_vae_of_digits(name):
    vae = cc.zoo.load(name)
    assert vae.latent_dim == RECIPES[name].latent_dim
    assert vae.data_shape == (28, 28)
    assert vae.likelihood == cc.likelihoods.Bernoulli(logits=True)
    assert vae.decode(torch.zeros(1, vae.latent_dim)).abs().max() > 1  # logits, not probabilities
    assert not any(parameter.requires_grad for parameter in vae.decoder.parameters())
    assert not vae.decoder.training


def test_the_2d_decoder_is_the_papers():
    widths = [p.shape for p in cc.zoo.load("mnist-2d").decoder.parameters()]
    assert widths == [(64, 2), (64,), (784, 64), (784,)]


@every_model
def test_samples_of_the_prior_look_like_digits(name):
    """Figure 10: as much ink as digits have, and more than one kind of picture."""
    draws = cc.zoo.load(name).sample_prior(200, seed=0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    # Digits have 0.13 of their pixels white, 0.05 to 0.3 each; a mean of 200 is good to 0.005.
    assert abs(draws.mean() - cc.zoo.digits()[0].mean()) < 0.03
    assert draws[:, :3].mean() < 0.01  # nothing at the upper edge
    assert draws.flatten(1).mean(1).std() > 0.01


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mnist2d", "mnist-2d"), ("mnist-20", "mnist-20d"), ("mnist-2D", "mnist-2d")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, near):
    for ask in (cc.zoo.load, cc.zoo.card):
        with pytest.raises(
            ValueError, match=rf"mnist-20d, mnist-2d.*{wrong}.*did you mean '{near}'"
        ):
            ask(wrong)


@pytest.mark.parametrize("wrong", ["celeba", "", "../models/mnist-2d", "/etc", None])
def test_a_name_near_to_none_is_refused_too(wrong):
    with pytest.raises(ValueError, match="expected a model of the zoo"):
        cc.zoo.load(wrong)


@every_model
def test_loading_leaves_torchs_global_random_state_alone(name):
    before = torch.random.get_rng_state()
    cc.zoo.load(name)
    cc.zoo.digits()
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- cards ---------------------------------------------------------------------------------------


@every_model
def test_a_card_says_what_the_model_is(name):
    card = cc.zoo.card(name)
    assert card["name"] == name
    assert card["latent_dim"] == cc.zoo.load(name).latent_dim
    assert card["likelihood"] == {"name": "Bernoulli", "settings": {"logits": True}}
    assert card["decoder"][0][0] == "Linear"
    assert card["encoder"][0][0] == "Flatten"
    assert card["weights_licence"] == "MIT"
    assert "MNIST" in card["data"]
    assert "CC BY-SA" in card["data_licence"]
    assert card["test_elbo_standard_error"] < 1


@every_model
def test_a_card_holds_the_recipe_that_is_in_the_code(name):
    settings = cc.zoo.card(name)["recipe"]
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    assert Recipe(**plain) == RECIPES[name]


@every_model
def test_the_cards_elbo_is_that_of_the_real_test_digits(name, data_folder):
    test_data = load_digits(data_folder, "test")
    found, error = evaluate(encoder_of(name), cc.zoo.load(name).decoder, test_data, num_draws=2)
    card = cc.zoo.card(name)
    # The same digits, other draws of z: an ELBO of one draw scatters by about 5 nats around its
    # mean, so 2 draws of 10,000 digits leave 0.035 nats; 4 of these, and the card's two decimals.
    assert abs(found - card["test_elbo_nats"]) < 4 * 0.035 + 0.01
    assert error == pytest.approx(card["test_elbo_standard_error"], rel=0.05)


@every_model
def test_the_digits_that_are_shipped_agree_with_the_cards_elbo(name):
    digits = cc.zoo.digits()[0]
    found, error = evaluate(encoder_of(name), cc.zoo.load(name).decoder, digits)
    # Forty of the 10,000 test digits, four of each class: within 4 standard errors of 40.
    assert abs(found - cc.zoo.card(name)["test_elbo_nats"]) < 4 * error


# ---- digits --------------------------------------------------------------------------------------


def test_there_are_four_digits_of_every_class_black_and_white():
    images, labels = cc.zoo.digits()
    assert images.shape == (40, 28, 28)
    assert images.dtype == torch.float32
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert labels.bincount().tolist() == [4] * 10
    assert len(images.flatten(1).unique(dim=0)) == 40


def test_changing_the_digits_does_not_change_them_for_others():
    images, labels = cc.zoo.digits()
    images.fill_(7), labels.fill_(7)
    assert cc.zoo.digits()[0].max() == 1
    assert cc.zoo.digits()[1].bincount().tolist() == [4] * 10


def test_the_digits_are_real_ones_of_the_test_set(data_folder):
    real = {bytes(image.to(torch.uint8).numpy()) for image in load_digits(data_folder, "test")}
    assert all(bytes(i.to(torch.uint8).numpy()) in real for i in cc.zoo.digits()[0])


def test_a_folder_without_mnist_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected MNIST in .*mnist.npz, and there is no such file"
    ):
        load_digits(tmp_path, "test")


# ---- the recipe ----------------------------------------------------------------------------------


def test_the_elbo_is_a_lower_bound_on_the_log_evidence(mnist_2d):
    digits = cc.zoo.digits()[0][:6]
    evidence = cc.Evidence(digits, torch.tensor(True))
    exact = cc.condition(mnist_2d, evidence, seed=0).log_evidence
    per_digit = torch.tensor(
        [evaluate(encoder_of("mnist-2d"), mnist_2d.decoder, digit[None].expand(2, -1, -1),
                  num_draws=200)[0] for digit in digits]
    )  # fmt: skip
    # 400 draws of an ELBO that scatters by 5 nats leave 0.25; 4 of these.
    assert (per_digit < exact + 1.0).all()
    assert (per_digit > exact - 60).all()


def test_a_run_taken_up_again_gives_the_bits_of_one_that_was_never_interrupted(tmp_path):
    whole = train(TINY, tiny_data(), tmp_path / "whole")

    def interrupt(epoch, value):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tiny_data(), tmp_path / "parts", on_epoch=interrupt)
    resumed = train(TINY, tiny_data(), tmp_path / "parts")
    assert resumed.epoch == whole.epoch == 3
    assert same_weights(whole, resumed)


def test_the_seed_decides_the_weights_and_training_changes_them(tmp_path):
    one, again = (train(TINY, tiny_data(), tmp_path / name) for name in ("a", "b"))
    assert same_weights(one, again)
    other = train(Recipe(**{**vars(TINY), "seed": 4}), tiny_data(), tmp_path / "c")
    assert not same_weights(one, other)
    assert not same_weights(one, Training(TINY))


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = train(TINY, tiny_data(), tmp_path)
    seen = []
    second = train(TINY, tiny_data(), tmp_path, on_epoch=lambda epoch, value: seen.append(epoch))
    assert not seen
    assert same_weights(first, second)


def test_training_raises_the_elbo_and_reports_every_epoch(tmp_path):
    data = tiny_data(200)
    long = Recipe(**{**vars(TINY), "epochs": 30, "learning_rate": 0.01})
    seen = []
    train(long, data, tmp_path, on_epoch=lambda epoch, value: seen.append((epoch, value)))
    assert [epoch for epoch, _ in seen] == list(range(1, 31))
    assert all(math.isfinite(value) for _, value in seen)
    assert seen[-1][1] > seen[0][1] + 0.1


def test_training_leaves_torchs_global_random_state_alone(tmp_path):
    before = torch.random.get_rng_state()
    train(TINY, tiny_data(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_published_model_loads_and_its_card_tells_its_elbo(tmp_path, monkeypatch):
    training = train(TINY, tiny_data(), tmp_path / "run")
    test_data = tiny_data(30)
    card = publish(training, test_data, tmp_path / "models" / "tiny")
    value, error = evaluate(training.encoder, training.decoder, test_data)
    assert card["test_elbo_nats"] == pytest.approx(value, abs=0.006)
    assert card["test_elbo_standard_error"] == pytest.approx(error, abs=0.006)
    monkeypatch.setattr(cc.zoo, "_MODELS", tmp_path / "models")
    assert cc.zoo.names() == ["tiny"]
    vae = cc.zoo.load("tiny")
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vae.decode(z), training.decoder(z))
    assert cc.zoo.card("tiny")["test_elbo_nats"] == card["test_elbo_nats"]
    mask = cc.random_mask((3, 2), 0.5, seed=0)
    posterior = cc.condition(vae, cc.Evidence(test_data[:2], mask), Rejection(10), seed=0)
    assert posterior.predict(3).shape == (3, 2, 3, 2)


def test_the_elbo_of_networks_that_put_out_nothing_is_that_of_fair_coins():
    """Worked out by hand: with all weights zero q is the prior and every logit is 0."""
    training = Training(TINY)
    with torch.no_grad():
        for parameter in training.networks.parameters():
            parameter.zero_()
    data = tiny_data(4)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    values = recipe.elbo(training.encoder, training.decoder, data, noise)
    torch.testing.assert_close(values, torch.full((4,), -6 * math.log(2)))
