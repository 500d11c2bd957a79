"""Valid outputs that are probably a mistake, and that do not arise by chance."""

import warnings

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    Gaussian,
    Mixed,
    Poisson,
)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded(0))


@pytest.mark.parametrize("family", [Bernoulli, ContinuousBernoulli])
def test_values_between_0_and_1_look_like_probabilities(family):
    doubt = family().doubt(uniform(5, 8))
    assert doubt.startswith("expected logits from the decoder, which have either sign, got")
    assert doubt.endswith(f"if they are probabilities, use {family.__name__}(logits=False)")
    assert family(logits=False).doubt(uniform(5, 8)) == ""
    assert family().doubt(uniform(5, 8) - 0.1) == ""
    assert family().doubt(uniform(5, 8) + 0.1) == ""
    assert family().doubt(torch.zeros(5, 8)) == ""  # a last layer may start at 0


def test_few_logits_may_lie_between_0_and_1_by_chance():
    assert Bernoulli().doubt(uniform(5, 7)) == ""


@pytest.mark.parametrize(
    "last",
    [
        nn.Sigmoid(),
        nn.Hardsigmoid(),
        nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (1, 3))),
        nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Sigmoid()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), ContinuousBernoulli(), BetaBinomial(5, 4.0)], ids=str
)
def test_a_few_numbers_from_a_sigmoid_are_no_logits(likelihood, last):
    """A sigmoid of a few inputs outputs numbers such as `[0.3, 0.7]`."""
    hidden = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.warns(UserWarning, match="expected logits .* if they are probabilities"):
        cc.VAE(nn.Sequential(hidden, last), 2, likelihood)


class Heads(nn.Module):
    """Two numbers of a Gaussian and one of a Bernoulli, joined by a function."""

    def __init__(self, join) -> None:
        super().__init__()
        self.first, self.second, self.join = nn.Linear(2, 2), nn.Linear(2, 1), join

    def forward(self, z):
        return self.join(self.first(z).sigmoid(), self.second(z) / 9 + 0.5)  # within [0, 1]


@pytest.mark.parametrize(
    ("join", "doubted"),
    [
        (lambda mean, head: (mean, head.sigmoid()), True),
        (lambda mean, head: (mean, head[:, 0].sigmoid()), True),
        (lambda mean, head: torch.cat([mean, head.sigmoid()], -1), True),
        (lambda mean, head: (mean, head), False),
        (lambda mean, head: torch.cat([mean, head], -1), False),
    ],
)
def test_the_sigmoid_of_one_part_says_nothing_about_another(join, doubted):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae = cc.VAE(Heads(join), 2, Mixed([(Gaussian(0.1), 2), Bernoulli()]))
    assert ["Bernoulli(logits=False)" in str(each.message) for each in caught] == [True] * doubted
    assert (vae.check()["output"].status == "error") == doubted


@pytest.mark.parametrize("one_hot", [False, True])
def test_numbers_that_sum_to_1_look_like_probabilities_of_classes(one_hot):
    likelihood = Categorical(3, one_hot=one_hot)
    params = uniform(5, 4, 3).softmax(-1)
    shaped = params.flatten(1) if one_hot else params
    assert "leave softmax out" in likelihood.doubt(shaped)
    assert likelihood.doubt(shaped.log()) == ""
    assert likelihood.doubt(2 * shaped) == ""


def test_a_table_is_doubted_for_any_of_its_parts():
    table = Mixed([(Gaussian(0.1), 2), (Bernoulli(), 8), (Categorical(3), 2)])
    params = torch.cat([uniform(5, 10), uniform(5, 6) - 0.5], -1)
    assert "Bernoulli(logits=False)" in table.doubt(params)
    params[:, 2:10] -= 0.5
    assert table.doubt(params) == ""
    params[:, 10:] = 1 / 3
    assert "leave softmax out" in table.doubt(params)


@pytest.mark.parametrize("likelihood", [Gaussian(0.1), Poisson()], ids=str)
def test_no_other_likelihood_raises_doubts(likelihood):
    assert likelihood.doubt(uniform(5, 20)) == ""


@pytest.mark.parametrize("num_elements", [8, 64])
def test_no_freshly_initialised_network_is_doubted(num_elements):
    """Of 4,000 networks, 860 of one element had five outputs in [0, 1], 14 of four, none of 8."""
    generator = seeded(0)
    for trial in range(300):
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            latent_dim, width = (1, 2, 10)[trial % 3], (8, 64, 256)[trial // 3 % 3]
            layers = nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, num_elements)
        z = torch.randn(5, latent_dim, generator=generator)
        assert Bernoulli().doubt(nn.Sequential(*layers)(z)) == ""
