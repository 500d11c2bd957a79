"""The zoo: its models, and whether their cards are true."""

from pathlib import Path

import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.priors import DiscretePrior
from crosscoding.zoo.training.data import load_digits
from crosscoding.zoo.training.families.recipes import FAMILIES
from crosscoding.zoo.training.publishing import evaluate
from crosscoding.zoo.training.recipe import RECIPES, DigitRecipe, FaceRecipe

DIGITS = [name for name, recipe in RECIPES.items() if isinstance(recipe, DigitRecipe)]
FACES = [name for name, recipe in RECIPES.items() if isinstance(recipe, FaceRecipe)]
every_model = pytest.mark.parametrize("name", cc.zoo.names())
every_plain_model = pytest.mark.parametrize("name", RECIPES)
every_family = pytest.mark.parametrize("name", FAMILIES)
every_digit_model = pytest.mark.parametrize("name", DIGITS)
every_face_model = pytest.mark.parametrize("name", FACES)


def held_out(name, data_folder, num=500):
    recipe = RECIPES[name]
    return recipe.prepared(recipe.load(data_folder)[1][:num])


# ---- the models ----------------------------------------------------------------------------------


def test_the_zoo_holds_the_papers_vaes_and_families_with_their_recipes():
    plain = ["anime-64d", "celeba-100d", "mnist-20d", "mnist-2d"]
    families = ["mnist-dvae", "mnist-iaf", "mnist-iwae", "mnist-ladder", "mnist-planar"]
    families.append("mnist-vqvae")
    assert cc.zoo.names() == sorted(plain + families)
    assert sorted(RECIPES) == sorted(DIGITS + FACES) == plain
    assert sorted(FAMILIES) == families


@every_plain_model
def test_a_model_is_a_frozen_vae_in_float32_of_its_recipes_shape(name):
    vae, recipe = cc.zoo.load(name), RECIPES[name]
    assert vae.latent_dim == recipe.latent_dim
    assert vae.data_shape == recipe.data_shape
    assert vae.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in vae.decoder.parameters())
    assert not any(module.training for module in vae.decoder.modules())


def test_without_their_packages_models_are_refused_with_advice(monkeypatch):
    everything = set(cc.zoo.names())
    monkeypatch.setattr(cc.zoo, "find_spec", lambda name: None)
    assert cc.zoo.names() == ["mnist-20d", "mnist-2d", "mnist-ladder"]
    for package, models in cc.zoo._COMPANIONS.items():
        for name in models:
            with pytest.raises(ValueError, match=f"not installed: pip install {package}$"):
                cc.zoo.load(name)
    listed = {name for models in cc.zoo._COMPANIONS.values() for name in models}
    assert {*cc.zoo.names(), *listed} == everything
    with pytest.raises(ValueError, match="did you mean 'mnist-2d'"):
        cc.zoo.load("mnist-3d")


def test_a_folder_is_found_by_a_name_of_the_zoo_before_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mnist-2d", "mine"):
        (tmp_path / folder).mkdir()
    assert cc.zoo.model_folder("mnist-2d") == cc.zoo._folder("mnist-2d")
    assert cc.zoo.model_folder("mine") == Path("mine")
    assert cc.zoo.model_folder(tmp_path / "mnist-2d") == tmp_path / "mnist-2d"
    with pytest.raises(
        ValueError, match=r"expected a folder of a model, or a model among .* mnist-2d"
    ):
        cc.zoo.model_folder("mnist-3d")


@every_model
def test_a_model_takes_less_than_10_megabytes(name):
    assert sum(file.stat().st_size for file in cc.zoo._folder(name).iterdir()) < 10e6


@every_digit_model
def test_digits_decode_to_logits(name):
    vae = cc.zoo.load(name)
    assert vae.likelihood == cc.likelihoods.Bernoulli(logits=True)
    assert vae.decode(torch.zeros(1, vae.latent_dim)).abs().max() > 1


@every_face_model
def test_faces_decode_to_means_between_minus_one_and_one(name):
    vae = cc.zoo.load(name)
    means = vae.decode(torch.randn(20, vae.latent_dim, generator=torch.Generator().manual_seed(0)))
    assert means.abs().max() <= 1
    assert isinstance(vae.likelihood, cc.likelihoods.Gaussian)
    assert 0.02 < vae.likelihood.scale < 0.5


def test_the_2d_decoder_is_the_papers():
    widths = [p.shape for p in cc.zoo.load("mnist-2d").decoder.parameters()]
    assert widths == [(64, 2), (64,), (784, 64), (784,)]


@every_face_model
def test_the_face_decoder_is_the_papers(name):
    """Channels (256, 128, 32, 3), 5 x 5 filters, stride 2, batch norm, ReLU, a final tanh."""
    layers = list(cc.zoo.load(name).decoder)
    deconvolutions = [layer for layer in layers if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in deconvolutions] == [256, 128, 32, 3]
    assert {layer.kernel_size for layer in deconvolutions} == {(5, 5)}
    assert {layer.stride for layer in deconvolutions} == {(2, 2)}
    assert isinstance(layers[-1], nn.Tanh)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 4
    assert sum(isinstance(layer, nn.ReLU) for layer in layers) == 4
    convolutions = [layer for layer in cc.zoo.encoder(name) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    assert {layer.kernel_size for layer in convolutions} == {(5, 5)}


@every_face_model
def test_what_one_z_decodes_to_does_not_depend_on_the_rest_of_the_batch(name):
    """Trap 4: with batch norm in training mode, p(y|z) would not be a distribution."""
    vae = cc.zoo.load(name)
    z = torch.randn(6, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([vae.decode(point[None]) for point in z])
    # Convolutions of one and of six inputs sum float32 numbers in different orders.
    torch.testing.assert_close(vae.decode(z), alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        vae.decode(torch.cat([z[:1], 9 * z]))[0], alone[0], rtol=0, atol=1e-4
    )


@every_digit_model
def test_samples_of_the_prior_look_like_digits(name):
    """Figure 10: draws have as much ink as digits, and are of more than one kind."""
    draws = cc.zoo.load(name).sample_prior(200, seed=0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    # Digits have 0.13 of their pixels white, 0.05 to 0.3 each; a mean over 200 is good to 0.005.
    assert abs(draws.mean() - cc.zoo.digits()[0].mean()) < 0.03
    assert draws[:, :3].mean() < 0.01  # nothing at the upper edge
    assert draws.flatten(1).mean(1).std() > 0.01


@every_face_model
@pytest.mark.slow
def test_samples_of_the_prior_look_like_faces_on_average_and_differ_as_faces_do(name, data_folder):
    """Figure 10, in numbers: the mean face, and how much each pixel varies around it."""
    vae, faces = cc.zoo.load(name), held_out(name, data_folder)
    noise = torch.randn(500, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    means = vae.decode(noise)
    average = torch.stack([means.mean(0).flatten(), faces.mean(0).flatten()])
    assert torch.corrcoef(average)[0, 1] > 0.97
    variance = means.var(0) + vae.likelihood.scale**2
    assert 0.6 < variance.mean() / faces.var(0).mean() < 1.3


@every_face_model
@pytest.mark.slow
def test_held_out_faces_are_reconstructed(name, data_folder):
    vae, faces = cc.zoo.load(name), held_out(name, data_folder, 200)
    z = cc.zoo.encoder(name)(faces)[:, : vae.latent_dim]
    residual = (vae.decode(z) - faces).square().mean()
    # Three quarters of the variance; drawn faces, with their sharp lines, are harder.
    assert residual < 0.25 * faces.var(0).mean()
    # The scale is what is left over of faces that were trained on, and held-out ones are no worse
    # than by a fifth.
    assert residual.sqrt() == pytest.approx(vae.likelihood.scale, rel=0.2)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mnist2d", "mnist-2d"), ("mnist-20", "mnist-20d"), ("celeba", "celeba-100d")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, near):
    for ask in (cc.zoo.load, cc.zoo.card, cc.zoo.encoder):
        with pytest.raises(
            ValueError, match=rf"mnist-20d, mnist-2d, .*{wrong}.*did you mean '{near}'"
        ):
            ask(wrong)


@pytest.mark.parametrize("wrong", ["shapes", "", "../models/mnist-2d", "/etc", None])
def test_a_name_unlike_any_other_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a model of the zoo"):
        cc.zoo.load(wrong)


@every_model
def test_loading_leaves_torchs_global_random_state_alone(name):
    before = torch.random.get_rng_state()
    cc.zoo.load(name), cc.zoo.digits()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(cc.ModelFormatError, match="expected a saved vae"):
        cc.load_vae(tmp_path)


# ---- cards ---------------------------------------------------------------------------------------


@every_model
def test_a_card_says_what_the_model_is(name):
    card, vae = cc.zoo.card(name), cc.zoo.load(name)
    assert card["name"] == name
    assert card["latent_dim"] == vae.latent_dim
    assert card["likelihood"]["name"] == type(vae.likelihood).__name__
    assert card.get("prior", {"name": "Normal"})["name"] == type(vae.prior).__name__
    assert ["Linear" in str(layer) for layer in card["decoder"]].count(True) >= 1


@every_plain_model
def test_a_card_of_a_plain_vae_describes_its_encoder_and_its_data(name):
    card = cc.zoo.card(name)
    assert card["decoder"][0][0] == "Linear"
    assert card["encoder"][-1][0] == "Linear"
    assert {name: card[name] for name in RECIPES[name].about} == RECIPES[name].about


@every_digit_model
def test_a_card_of_digits_names_their_source(name):
    card = cc.zoo.card(name)
    assert card["likelihood"] == {"name": "Bernoulli", "settings": {"logits": True}}
    assert card["weights_licence"] == "MIT"
    assert "MNIST" in card["data"]
    assert "CC BY-SA" in card["data_licence"]
    assert card["test_elbo_standard_error"] < 1


@every_face_model
def test_a_card_of_faces_holds_scale_licences_and_time(name):
    card = cc.zoo.card(name)
    assert card["likelihood"]["settings"] == {"scale": cc.zoo.load(name).likelihood.scale}
    assert "the last 500 by name held out" in card["data"]
    assert card["training_cpu_seconds"] > 0
    if name.startswith("celeba"):
        assert "research" in card["weights_licence"]
        assert "not for redistribution" in card["data_licence"]


@every_family
def test_a_card_of_a_family_holds_its_recipe_and_its_bound(name):
    card, recipe = cc.zoo.card(name), FAMILIES[name]
    assert card["family"] == recipe.about
    assert {key: getattr(recipe, key) for key in card["recipe"]} == card["recipe"]
    assert "MNIST" in card["data"]
    assert card["test_bound_weights"] == 5000
    assert card["test_bound_nats"] > card["test_elbo_nats"]


@every_plain_model
def test_a_card_holds_the_recipe_that_is_in_the_code(name):
    settings = cc.zoo.card(name)["recipe"]
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    assert type(RECIPES[name])(**plain) == RECIPES[name]


@every_plain_model
@pytest.mark.slow
def test_the_cards_elbo_is_that_of_data_that_were_held_out(name, data_folder):
    vae, data = cc.zoo.load(name), held_out(name, data_folder, None)
    networks = cc.zoo.encoder(name), vae.decoder
    found, error = evaluate(*networks, vae.likelihood, data, num_draws=2)
    card = cc.zoo.card(name)
    # The same data, other draws of z. What an ELBO of one draw scatters by around its mean is at
    # most √(2 latent) nats or so where q is a fair fit: half of z's squares, and half of ε's.
    scatter = (2 * vae.latent_dim + 25) ** 0.5 / (2 * len(data)) ** 0.5
    assert abs(found - card["test_elbo_nats"]) < 4 * scatter + 0.01
    assert error == pytest.approx(card["test_elbo_standard_error"], rel=0.05)


@every_face_model
@pytest.mark.slow
def test_batch_norm_in_eval_mode_is_as_good_as_with_the_statistics_of_a_batch(name, data_folder):
    """The statistics for eval mode are well estimated: no worse than those of a batch."""
    vae, data = cc.zoo.load(name), held_out(name, data_folder, 250)
    encoder, decoder = cc.zoo.encoder(name), vae.decoder
    settled, error = evaluate(encoder, decoder, vae.likelihood, data, num_draws=4)
    encoder.train(), decoder.train()
    batch, _ = evaluate(encoder, decoder, vae.likelihood, data, num_draws=4)
    # A batch of 250 has statistics of its own, which fit it a little better or worse; ELBOs are
    # thousands of nats, and statistics that lag behind the weights cost hundreds.
    assert abs(settled - batch) < error


@every_digit_model
def test_the_built_in_digits_agree_with_the_cards_elbo(name):
    digits, vae = cc.zoo.digits()[0], cc.zoo.load(name)
    found, error = evaluate(cc.zoo.encoder(name), vae.decoder, vae.likelihood, digits)
    # Forty of the 10,000 test digits, four of each class: within 4 standard errors for 40 digits.
    assert abs(found - cc.zoo.card(name)["test_elbo_nats"]) < 4 * error


def test_the_elbo_is_a_lower_bound_on_the_log_evidence(mnist_2d):
    digits = cc.zoo.digits()[0][:6]
    evidence = cc.Evidence(digits, torch.tensor(True))
    exact = cc.condition(mnist_2d, evidence, seed=0).log_evidence
    networks = cc.zoo.encoder("mnist-2d"), mnist_2d.decoder
    per_digit = torch.tensor(
        [
            evaluate(*networks, mnist_2d.likelihood, digit[None].expand(2, -1, -1), num_draws=200)[
                0
            ]
            for digit in digits
        ]
    )
    # 400 draws of an ELBO with a standard deviation of 5 nats: 4 standard errors of 0.25.
    assert (per_digit < exact + 1.0).all()
    assert (per_digit > exact - 60).all()


# ---- families ------------------------------------------------------------------------------------


@every_family
@pytest.mark.slow
def test_a_family_answers_a_query_and_its_verdict_is_honest(name):
    """Another seed finds the same log p(x), and the same seed the same bits."""
    vae = cc.zoo.load(name)
    mask = cc.rectangle_mask(vae.data_shape, rows=(0, 13))
    evidence = cc.Evidence(cc.zoo.digits()[0][[29]], mask)
    first, again, other = (cc.condition(vae, evidence, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.draws, again.draws)
    assert torch.equal(first.log_evidence, again.log_evidence)
    assert torch.equal(first.predict(3, seed=0), again.predict(3, seed=0))
    gap = (first.log_evidence - other.log_evidence).abs()
    error = torch.hypot(first.log_evidence_error, other.log_evidence_error)
    settled = first.trusted & other.trusted
    # "Trusted" promises log p(x) to 0.1 nats or so; otherwise the stated errors have to cover it.
    assert (gap[settled] < 0.15).all()
    assert (gap[~settled] < 4 * error[~settled] + 0.5).all()
    if isinstance(vae.prior, DiscretePrior):  # then other methods refuse the model
        assert "methods." not in first.verdicts[0].advice
    assert torch.equal(first.predict(1, seed=0)[0, 0, mask], evidence.values[0, mask])


@every_family
def test_samples_of_a_familys_prior_look_like_digits(name):
    """As above, for priors of all kinds."""
    draws = cc.zoo.load(name).sample_prior(200, seed=0)
    assert abs(draws.mean() - cc.zoo.digits()[0].mean()) < 0.03
    assert draws[:, :3].mean() < 0.01  # nothing at the upper edge
    assert draws.flatten(1).mean(1).std() > 0.01


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mnist-vqvae"])
@pytest.mark.slow
def test_a_familys_log_prob_of_digits_agrees_with_its_cards_bound(name):
    """Ten digits, one of each class; the bound is of 500 others, and below log p(t).

    `mnist-vqvae` is left out, as it takes ten seconds of a core for each digit.
    """
    digits = cc.zoo.digits()[0][::4]
    everything = cc.Evidence(digits, torch.ones(28, 28, dtype=torch.bool))
    found = cc.condition(cc.zoo.load(name), everything, seed=0).log_evidence
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - cc.zoo.card(name)["test_bound_nats"]) < 3 * error + 3


# ---- digits --------------------------------------------------------------------------------------


def test_there_are_four_digits_of_every_class_black_and_white():
    images, labels = cc.zoo.digits()
    assert images.shape == (40, 28, 28)
    assert images.dtype == torch.float32
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert labels.bincount().tolist() == [4] * 10
    assert len(images.flatten(1).unique(dim=0)) == 40


def test_changing_the_digits_does_not_affect_other_callers():
    images, labels = cc.zoo.digits()
    images.fill_(7), labels.fill_(7)
    assert cc.zoo.digits()[0].max() == 1
    assert cc.zoo.digits()[1].bincount().tolist() == [4] * 10


def test_the_digits_are_real_ones_of_the_test_set(data_folder):
    real = {bytes(image.to(torch.uint8).numpy()) for image in load_digits(data_folder, "test")}
    assert all(bytes(i.to(torch.uint8).numpy()) in real for i in cc.zoo.digits()[0])
