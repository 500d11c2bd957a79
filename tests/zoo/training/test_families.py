"""The families: their weights, their training, and the models that they become."""

import math

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.zoo.networks import mlp
from crosscoding.zoo.training.families.as_vae import as_vae
from crosscoding.zoo.training.families.base import NUM_PIXELS, standard_normal
from crosscoding.zoo.training.families.continuous import ImportanceWeighted, Ladder, Plain
from crosscoding.zoo.training.families.discrete import BinaryPairs, Codes, PairPrior
from crosscoding.zoo.training.families.fit import FamilyTraining, importance_bound, train_family
from crosscoding.zoo.training.families.posteriors import (
    AutoregressiveFlow,
    Diagonal,
    MaskedNetwork,
    PlanarFlow,
)
from crosscoding.zoo.training.families.publishing import publish_family
from crosscoding.zoo.training.families.recipes import FAMILIES, FamilyRecipe

WIDTHS = (16,)
SMALL = {
    "mnist-iwae": lambda: ImportanceWeighted(Diagonal(2, WIDTHS), WIDTHS, 20, 2),
    "mnist-planar": lambda: Plain(PlanarFlow(2, WIDTHS, num_maps=2), WIDTHS),
    "mnist-iaf": lambda: Plain(
        AutoregressiveFlow(2, WIDTHS, num_maps=2, width=8, context=4), WIDTHS
    ),
    "mnist-ladder": lambda: Ladder((2, 2, 1), (16, 8, 8), WIDTHS),
    "mnist-dvae": lambda: BinaryPairs((2, 4), WIDTHS, WIDTHS, num_draws=3),
    "mnist-vqvae": lambda: Codes(3, 4, 2, WIDTHS, WIDTHS, prior_width=16),
}
every_family = pytest.mark.parametrize("name", SMALL)


def digits(num=64):
    """Data with structure: the left or the right half is black, with a few exceptions."""
    right = torch.rand(num, 1, 1, generator=seeded(0)) < 0.5
    side = (torch.arange(28) < 14) ^ right
    noise = torch.rand(num, 28, 28, generator=seeded(1)) < 0.05
    return (side.expand(num, 28, 28) ^ noise).float()


def recipe(name, epochs=2, **changes):
    changes = {"batch_size": 16, "learning_rate": 0.01} | changes
    return FamilyRecipe(about="a small one", make=SMALL[name], epochs=epochs, **changes)


def test_every_family_has_a_recipe():
    assert FAMILIES.keys() == SMALL.keys()


@every_family
def test_training_raises_the_bound_and_resumes_with_the_same_weights(name, tmp_path):
    data = digits()
    before = importance_bound(FamilyTraining(recipe(name), data), data[:20], 200)[0]
    whole = train_family(recipe(name, 6), data, tmp_path / "a")
    assert importance_bound(whole, data[:20], 200)[0] > before + 10
    train_family(recipe(name, 6), data, tmp_path / "b", max_seconds=0.0)
    cut = FamilyTraining(recipe(name, 6), data)
    cut.run_epoch(data)
    cut.save(tmp_path / "b")
    resumed = train_family(recipe(name, 6), data, tmp_path / "b")
    assert resumed.history == whole.history
    for key, tensor in whole.family.state_dict().items():
        assert torch.equal(tensor, resumed.family.state_dict()[key]), key


@pytest.mark.slow
@every_family
def test_weights_have_the_evidence_as_their_mean(name):
    """E[w] = p(t), the p(x) of the model that the family becomes, with everything observed.

    A q(z|t) that lacks part of p(z|t) makes the mean of some weights too low, never too high.
    """
    data = digits(4)
    training = FamilyTraining(recipe(name, 40), digits())
    for _ in range(40):
        training.run_epoch(digits())
    with torch.no_grad():
        weights = training.family.log_weights(data.flatten(1), 20_000, generator=seeded(0))
    log_mean = weights.double().logsumexp(0) - math.log(len(weights))
    relative = (weights - log_mean).double().exp()
    error = relative.std(0) / len(weights) ** 0.5
    vae = as_vae(training.family)
    evidence = cc.Evidence(data, torch.ones(28, 28, dtype=torch.bool))
    posterior = cc.condition(vae, evidence, seed=0)
    gap = log_mean - posterior.log_evidence
    assert (gap < 5 * torch.hypot(error, posterior.log_evidence_error) + 0.02).all()
    assert gap.abs().min() < 0.3
    assert posterior.trusted.all()


def test_flows_have_the_density_of_their_draws():
    """E_q[p / q] = 1 for any density p, here N(0, I), if log q is the density of the draws."""
    data = digits(3).flatten(1)
    for posterior in (
        Diagonal(2, WIDTHS),
        PlanarFlow(2, WIDTHS, num_maps=3),
        AutoregressiveFlow(2, WIDTHS, num_maps=3, width=8, context=4),
    ):
        with torch.no_grad():
            for parameter in posterior.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=seeded(3)))
            z, log_q = posterior(data, 200_000, generator=seeded(1))
        ratio = (standard_normal(z) - log_q).double().exp()
        error = ratio.std(0) / len(z) ** 0.5
        assert ((ratio.mean(0) - 1).abs() < 6 * error).all()
        assert (error < 0.1).all()


def test_a_masked_network_sees_only_what_is_before():
    network = MaskedNetwork(4, 2, 12, 3)
    sequence = torch.randn(1, 4, 2, generator=seeded(0)).requires_grad_()
    output = network(sequence)
    for place in range(4):
        (slope,) = torch.autograd.grad(output[0, place].sum(), sequence, retain_graph=True)
        assert (slope[0, place:] == 0).all()


def test_the_pair_prior_sums_to_one():
    prior = PairPrior((2, 3))
    with torch.no_grad():
        prior.logits.normal_(generator=seeded(0))
        prior.pairs.normal_(generator=seeded(1))
    states = torch.cartesian_prod(*[torch.arange(2.0)] * 5)
    assert abs(prior.log_prob(states).logsumexp(0)) < 1e-5


def test_the_gradient_of_the_k_sample_bound_follows_draws_by_weight():
    """Averaged over many steps, it is that of the whole bound."""
    family = ImportanceWeighted(Diagonal(1, (4,)), (4,), 5, 4)
    data = digits(1).flatten(1)
    family.decoder = mlp((1, 4, NUM_PIXELS))

    def slope(value):
        parameters = [p for p in family.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    generator, chosen, whole = seeded(0), [], []
    for _ in range(400):
        state = generator.get_state()
        chosen.append(slope(family.objective(data, warmth=1.0, generator=generator).sum()))
        generator.set_state(state)
        weights = family.log_weights(data, 5, generator=generator)
        whole.append(slope(weights.logsumexp(0).sum()))
    gap = torch.stack(chosen) - torch.stack(whole)
    error = gap.std(0) / len(gap) ** 0.5
    assert (gap.mean(0).abs() <= 6 * error + 1e-5).all()


def test_decoders_of_saved_families_are_stacks_of_layers(tmp_path):
    for name, make in SMALL.items():
        family = make()
        with torch.no_grad():
            family.start(digits().flatten(1), generator=seeded(0))
        vae = as_vae(family)
        assert isinstance(vae.decoder, nn.Sequential)
        vae.save(tmp_path / name)
        assert repr(cc.load_vae(tmp_path / name)) == repr(vae)


@every_family
def test_a_published_family_loads_and_its_card_states_its_bound(name, tmp_path, monkeypatch):
    monkeypatch.setattr("crosscoding.zoo.training.families.publishing._NUM_WEIGHTS", 100)
    training, data = FamilyTraining(recipe(name), digits()), digits()
    training.run_epoch(data)
    card = publish_family(training, data, tmp_path / "models" / "tiny")
    monkeypatch.setattr(cc.zoo, "_MODELS", tmp_path / "models")
    vae, shown = cc.zoo.load("tiny"), cc.zoo.card("tiny")
    assert {key: shown[key] for key in card} == card
    assert shown["test_bound_nats"] > shown["test_elbo_nats"]
    assert shown["family"] == "a small one"
    assert ("prior" in shown) == (name in ("mnist-ladder", "mnist-dvae", "mnist-vqvae"))
    # The published weights are those of the family, rounded: of sums of 17 products or fewer.
    own = as_vae(training.family)
    z = own.prior.sample(20, generator=seeded(0), like=torch.empty(0))
    torch.testing.assert_close(vae.decode(z), own.decode(z), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(vae.prior.log_prob(z), own.prior.log_prob(z), rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="expected a model that comes with its encoder, got tiny"):
        cc.zoo.encoder("tiny")
