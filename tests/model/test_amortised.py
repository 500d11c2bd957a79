"""Amortised cross-coders: what they propose, what they are for, and saving."""

import json

import pytest
import torch
from amortised_problems import Constant, ExactGaussian, narrow_at
from discrete_models import model, priors
from problems import linear_gaussian_problem, seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.crosscoders import Gaussian, Mixture, Planar
from crosscoding.crosscoders.packed_numbers import num_numbers, unpacked_numbers
from crosscoding.model.masked_network import MaskedNetwork


def masked_network(num_in: int, num_out: int, *, classes: int = 0) -> MaskedNetwork:
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(2 * num_in + classes, 16), nn.SiLU(), nn.Linear(16, num_out))
    source, code = torch.zeros(classes, dtype=torch.long), torch.arange(classes).float()
    return MaskedNetwork(stack, torch.zeros(num_in), torch.ones(num_in), source, code)


def amortised(vae: cc.VAE, components: int = 2) -> cc.VAE:
    family = Mixture(components)
    size = num_numbers(family, vae.latent_dim)
    network = masked_network(vae.data_size, size, classes=2)
    return vae.with_amortised(cc.Amortised.of(vae, network, family))


def small_vae(scale: float = 0.3, **settings) -> cc.VAE:
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
    return cc.VAE(decoder, 4, cc.likelihoods.Gaussian(scale), **settings)


def test_it_proposes_the_exact_posterior_if_the_network_knows_it():
    problem = linear_gaussian_problem(4, 9, batch=5)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    vae = problem.vae.with_amortised(made)
    fitted = vae.amortised.propose(problem.evidence.values, problem.evidence.mask)
    mean, covariance = problem.exact_posterior()
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    z = torch.randn(7, 5, 4, generator=seeded(0))
    torch.testing.assert_close(fitted.log_prob(z), exact.log_prob(z), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "family", [Gaussian(), Gaussian(rank=2), Gaussian(diagonal=True), Mixture(3)], ids=repr
)
def test_numbers_and_parameters_are_one_to_one(family):
    size = num_numbers(family, 5)
    numbers = torch.arange(2.0 * size).reshape(2, size)
    params = unpacked_numbers(family, numbers, 5)
    wanted = family.start(torch.zeros(2, 5), torch.ones(2, 5), generator=seeded())
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in wanted.items()}
    together = torch.cat([tensor.flatten(1) for tensor in params.values()], 1)
    for row, own in zip(together, numbers, strict=True):
        assert torch.equal(row[row != 0].sort().values, own[own != 0])


def test_numbers_below_the_diagonal_go_row_by_row():
    numbers = torch.arange(9.0)[None]
    assert unpacked_numbers(Gaussian(), numbers, 3)["lower"][0].tolist() == [
        [0, 0, 0],
        [6, 0, 0],
        [7, 8, 0],
    ]


def test_unobserved_values_do_not_reach_the_network():
    network = masked_network(6, 3, classes=2)
    values, mask = torch.randn(4, 6, generator=seeded(0)), torch.arange(6) < 3
    mask = mask.expand(4, 6)
    other = torch.where(mask, values, torch.nan)
    assert torch.equal(network(values, mask), network(other, mask))


def test_a_model_is_not_changed_and_the_new_one_has_it():
    vae = small_vae()
    new = amortised(vae)
    assert vae.amortised is None
    assert new.amortised is not None
    assert new.with_amortised(None).amortised is None
    assert new.to("cpu").amortised is new.amortised


def test_it_is_saved_and_loaded_as_data(tmp_path):
    vae = amortised(small_vae())
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    data = vae.sample_prior(5, seed=0)
    mask = torch.arange(6).expand(5, 6) % 2 == 0
    one, other = (own.amortised.propose(data, mask) for own in (vae, again))
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
    assert again.amortised.crosscoder == Mixture(2)
    again.with_amortised(vae.amortised)  # it is the same model


class Shallow(nn.Module):
    """A network of a user's own class."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_in, num_out)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.linear(values * mask)


def test_a_network_of_a_users_class_is_passed_again(tmp_path):
    vae = small_vae()
    made = cc.Amortised.of(vae, Shallow(6, 8), Gaussian(diagonal=True))
    vae = vae.with_amortised(made)
    with pytest.warns(UserWarning, match="only the weights of the amortised, Shallow"):
        vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model", amortised=Shallow(6, 8))
    assert torch.equal(again.amortised.network.linear.weight, made.network.linear.weight)
    with pytest.raises(ValueError, match=r"expected amortised=\.\.\."):
        cc.load_vae(tmp_path / "model")
    vae.save(tmp_path / "other", amortised_arguments={"num_in": 6, "num_out": 8})
    assert cc.load_vae(tmp_path / "other", allow_code=True).amortised is not None


def test_a_saved_posterior_does_not_hold_the_network(tmp_path):
    vae = small_vae()
    vae = vae.with_amortised(cc.Amortised.of(vae, Shallow(6, 8), Gaussian(diagonal=True)))
    evidence = cc.Evidence(vae.sample_prior(2, seed=0), torch.arange(6) < 3)
    posterior = cc.condition(vae, evidence, seed=0)
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert torch.equal(again.draws, posterior.draws)
    assert again.target.model.amortised is None


def test_a_damaged_description_is_refused(tmp_path):
    amortised(small_vae()).save(tmp_path / "model")
    path = tmp_path / "model" / "description.json"
    whole = json.loads(path.read_text())
    for change in ({"elements": -1}, {"layers": "Linear"}, {"classes": True}, {"more": 1}):
        broken = whole | {"amortised": whole["amortised"] | change}
        path.write_text(json.dumps(broken))
        with pytest.raises(cc.ModelFormatError):
            cc.load_vae(tmp_path / "model")
    for crosscoder in ({"name": "Unknown", "settings": {}}, {"name": "Mixture"}, 3):
        path.write_text(json.dumps(whole | {"crosscoder": crosscoder}))
        with pytest.raises(cc.ModelFormatError):
            cc.load_vae(tmp_path / "model")
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "crosscoder"}))
    with pytest.raises(cc.ModelFormatError, match="both or none of 'amortised' and 'crosscoder'"):
        cc.load_vae(tmp_path / "model")


OTHERS = {
    "decoder": lambda: cc.VAE(nn.Linear(4, 6), 4, cc.likelihoods.Gaussian(0.3)),
    "likelihood": lambda: small_vae(0.2),
    "prior": lambda: small_vae(prior=cc.priors.Gaussian(torch.zeros(4), 2 * torch.ones(4))),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_refused(other):
    made = amortised(small_vae()).amortised
    with pytest.raises(ValueError, match="made for another decoder, prior or likelihood"):
        OTHERS[other]().with_amortised(made)


def test_networks_that_do_not_fit_are_refused():
    vae = small_vae()
    with pytest.raises(ValueError, match=r"expected network output of shape \(5, 8\)"):
        cc.Amortised.of(vae, Shallow(6, 7), Gaussian(diagonal=True))
    with pytest.raises(ValueError, match="expected network to take rows"):
        cc.Amortised.of(vae, Shallow(5, 8), Gaussian(diagonal=True))
    with pytest.raises(TypeError, match=r"crosscoders.Mixture\(...\) or crosscoders.Gaussian"):
        cc.Amortised.of(vae, Shallow(6, 8), Planar(2))
    with pytest.raises(TypeError, match=r"expected network to be a torch\.nn\.Module"):
        cc.Amortised.of(vae, lambda values, mask: values, Gaussian(diagonal=True))
    with pytest.raises(cc.NonFiniteError, match="expected finite output from the network"):
        cc.Amortised.of(vae, Constant(torch.full((8,), torch.nan)), Gaussian(diagonal=True))
    with pytest.raises(TypeError, match="expected an Amortised"):
        vae.with_amortised(Shallow(6, 8))


def test_models_that_cannot_have_one_are_refused():
    with pytest.raises(ValueError, match="continuous latents"):
        narrow_at(model(next(iter(priors().values()))), torch.zeros(3), 0.0)
    given = torch.nn.functional.one_hot(torch.arange(2)).float()

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, z: Tensor, given: Tensor) -> Tensor:
            return self.linear(z + given)

    vae = cc.VAE(Labelled(), 2, cc.likelihoods.Gaussian(0.1), given=given)
    with pytest.raises(ValueError, match="without covariates"):
        narrow_at(vae, torch.zeros(2), 0.0)


def test_a_model_with_a_network_says_so_where_it_is_shown():
    vae = small_vae()
    assert "amortised" not in vae._repr_html_()
    assert "MaskedNetwork, a proposal for Auto" in amortised(vae)._repr_html_()
