"""Refused decoder outputs and observed values, and their messages."""

import math

import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)

# ---- observed values ---------------------------------------------------------------------------

SUPPORTS = {
    "ContinuousBernoulli": (ContinuousBernoulli(), [0.0, 0.4, 1.0], [-0.1, 1.1, math.nan]),
    "Laplace": (Laplace(), [-1e30, 0.0], [math.inf, math.nan]),
    "StudentT": (StudentT(), [-1e30, 0.0], [-math.inf, math.nan]),
    "Categorical": (Categorical(3), [0.0, 2.0], [-1.0, 3.0, 0.5, math.nan]),
    "Ordinal": (Ordinal([0.0, 1.0]), [0.0, 2.0], [-1.0, 3.0, 0.5, math.nan]),
    "Ordinal of decoded cut points": (Ordinal(None, 3), [0.0, 2.0], [-1.0, 3.0, 0.5]),
    "Poisson": (Poisson(), [0.0, 7.0, 1e6], [-1.0, 0.5, math.inf, math.nan]),
    "NegativeBinomial": (NegativeBinomial(), [0.0, 7.0], [-1.0, 0.5, math.inf]),
    "BetaBinomial": (BetaBinomial(7), [0.0, 7.0], [-1.0, 0.5, 8.0, math.nan]),
    "DiscretizedLogistic": (
        DiscretizedLogistic(0.1),
        [0.0, 1.0, 17 / 255],
        [-1 / 255, 256 / 255, 0.5 / 255, math.nan],
    ),
    "DiscretizedLogistic from -1": (
        DiscretizedLogistic(0.1, low=-1.0),
        [-1.0, 1.0, 2 * 17 / 255 - 1],
        [-1 - 2 / 255, 0.0, math.nan],
    ),
}


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_family_knows_its_support(name, dtype):
    likelihood, good, bad = SUPPORTS[name]
    assert likelihood.in_support(torch.tensor(good, dtype=dtype)).all()
    assert not likelihood.in_support(torch.tensor(bad, dtype=dtype)).any()


def test_each_element_has_its_own_total_count():
    likelihood = BetaBinomial(torch.tensor([2.0, 5.0]))
    assert likelihood.in_support(torch.tensor([[2.0, 5.0], [3.0, 5.0]])).tolist() == [
        [True, True],
        [False, True],
    ]


def test_support_of_bernoulli_is_0_to_1():
    values = torch.tensor([-0.1, 0.0, 0.4, 1.0, 1.1, torch.nan])
    wanted = torch.tensor([False, True, True, True, False, False])
    assert torch.equal(Bernoulli().in_support(values), wanted)


def test_support_of_gaussian_is_every_finite_number():
    values = torch.tensor([-1e30, 0.0, torch.inf, torch.nan])
    assert torch.equal(Gaussian().in_support(values), torch.tensor([True, True, False, False]))


def constant(*shape: int, value: float = 0.1) -> nn.Module:
    """A decoder that outputs one value."""
    layer = nn.Linear(2, math.prod(shape))
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    return nn.Sequential(layer, nn.Unflatten(1, shape))


def vae(likelihood, *shape: int) -> cc.VAE:
    return cc.VAE(constant(*shape), 2, likelihood)


@pytest.mark.parametrize(
    ("likelihood", "shape", "wrong", "words"),
    [
        (Poisson(), (3,), 1.5, "whole numbers from 0 for Poisson, got 1.5; counts"),
        (ContinuousBernoulli(), (3,), 1.5, "between 0 and 1 for ContinuousBernoulli, got 1.5"),
        (NegativeBinomial(2.0), (3,), -2, "whole numbers from 0 for NegativeBinomial, got -2"),
        (BetaBinomial(7, 1.0), (3,), 8, "whole numbers from 0 to 7 for BetaBinomial, got 8"),
        (Categorical(4), (3, 4), 4, "whole numbers from 0 to 3 for Categorical, got 4"),
        (Ordinal([0.0]), (3,), 2, "whole numbers from 0 to 1 for Ordinal, got 2"),
        (
            DiscretizedLogistic(0.1),
            (3,),
            0.7001,
            "on the grid of 256 values from 0 to 1 for DiscretizedLogistic, got 0.7001",
        ),
        (
            Categorical(3, one_hot=True),
            (3,),
            0.5,
            "a single 1 among zeros for every 3 classes, for Categorical, got 0.5 and 2 more",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_observed_values_outside_the_support_are_refused(likelihood, shape, wrong, words):
    model = vae(likelihood, *shape)
    values = torch.zeros(2, 3)
    values[1, 0] = wrong
    with pytest.raises(ValueError, match=f"expected observed values {words}"):
        cc.condition(model, cc.Evidence(values, torch.tensor([[False] * 3, [True] * 3])), seed=0)
    truth = torch.zeros(2, 3)
    truth[:, 0] = 1 if "single" in words else 0
    posterior = cc.condition(
        model, cc.Evidence(truth, torch.zeros(2, 3, dtype=torch.bool)), cc.methods.Grid(), seed=0
    )
    assert posterior.query_log_prob(truth).isfinite().all()
    truth[1, 0] = wrong
    with pytest.raises(ValueError, match=f"expected elements of truth {words}"):
        posterior.query_log_prob(truth)


# ---- decoder outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "name", "words"),
    [
        (Laplace(None), "scale", "output the scale itself, not its logarithm"),
        (StudentT(3.0, None), "scale", "output the scale itself"),
        (DiscretizedLogistic(), "scale", "output the scale itself"),
        (NegativeBinomial(), "total_count", "output the number itself"),
        (BetaBinomial(3), "concentration", "output the number itself"),
    ],
)
def test_a_decoded_number_that_is_not_positive_is_refused(likelihood, name, words):
    with pytest.raises(ValueError, match=f"a decoder whose {name} is > 0, got -0.5; {words}"):
        cc.VAE(constant(3, 2, value=-0.5), 2, likelihood)


def test_invalid_rates_and_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"outputs rates >= 0, got -0.5.*log_rate=True"):
        cc.VAE(constant(3, value=-0.5), 2, Poisson(log_rate=False))
    assert Poisson(log_rate=False).log_prob(torch.tensor([-0.5]), torch.zeros(1)).isnan().all()
    with pytest.raises(ValueError, match=r"if they are logits, use ContinuousBernoulli\(logits"):
        cc.VAE(constant(3, value=1.5), 2, ContinuousBernoulli(logits=False))


def test_decoded_cut_points_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="whose cut points increase along its last dimension"):
        cc.VAE(constant(3, 2), 2, Ordinal(None, num_classes=3))


@pytest.mark.parametrize(
    ("likelihood", "shape", "wanted"),
    [
        (Categorical(4), (3,), r"\*data, 4"),
        (Categorical(4), (3, 3), r"\*data, 4"),
        (Categorical(4, one_hot=True), (6,), r"\*variables, 4"),
        (Ordinal(None, 4), (3, 4), r"\*data, 3"),
        (StudentT(3.0, None), (3,), r"\*data, 2"),
        (Mixed([(Gaussian(None), 2), Poisson()]), (4,), r"\*before, 5"),
        (
            Mixed([(Gaussian(None), 2), Poisson()], dim=-3),
            (5, 4),
            r"\*before, 5, \*after \(2 dimensions\)",
        ),
    ],
)
def test_decoder_output_of_another_shape_is_refused(likelihood, shape, wanted):
    with pytest.raises(ValueError, match=rf"expected decoder output of shape \(5, {wanted}\)"):
        cc.VAE(constant(*shape), 2, likelihood)


@pytest.mark.parametrize(
    ("likelihood", "shape", "advice"),
    [
        (
            Gaussian(None),
            (6,),
            r"or a tuple of 2 of shape \(5, \*data\), got \(5, 6\); if the second half of the "
            r"decoder's output is the scale of each element, let it output the tuple "
            r"output.chunk\(2, 1\) and use Gaussian\(scale=None\), or Gaussian\(None, "
            r"log_variance=True\) if it is the logarithm of the variance; "
            r"if it outputs one number per element, use Gaussian\(scale=…\)$",
        ),
        (
            Gaussian(None, log_variance=True),
            (6,),
            r"is the logarithm of the variance of each element, let it output the tuple "
            r"output.chunk\(2, 1\); if it outputs one number",
        ),
        (NegativeBinomial(), (6,), r"is the total_count .* and use NegativeBinomial\(total_count="),
        (Gaussian(None), (5,), r"got \(5, 5\); if it outputs one number per element, use Gauss"),
        (
            Mixed([(Gaussian(None), 2), Poisson(), Categorical(3)]),
            (4,),
            r"got \(5, 4\); that is 4 for 2 of Gaussian, 1 for 1 of Poisson, 3 for 1 of Cat",
        ),
    ],
    ids=str,
)
def test_the_message_says_what_the_decoder_should_output(likelihood, shape, advice):
    with pytest.raises(ValueError, match=advice):
        cc.VAE(constant(*shape), 2, likelihood)


@pytest.mark.parametrize("shape", [(6,), (6, 4, 4)])
def test_data_half_as_many_as_outputs_suggest_means_and_log_variances(shape):
    model = cc.VAE(constant(*shape), 2, Gaussian(0.1))
    data = torch.zeros(2, 3, *shape[1:])
    wanted = (
        r"the tuple output.chunk\(2, 1\) and use Gaussian\(.*or Gaussian\(None, log_variance=True"
    )
    with pytest.raises(ValueError, match=wanted):
        cc.condition(model, cc.Evidence(data, torch.tensor(True)), seed=0)
    with pytest.raises(ValueError, match=wanted):
        model.check(data)
    for other in (data[:, :2], data.repeat(1, 2, *[1] * len(shape[1:]))[:, :5], torch.zeros(())):
        with pytest.raises(ValueError, match=r"got \([\d, ]*\)$"):
            cc.condition(model, cc.Evidence(other, torch.tensor(True)), seed=0)


def test_a_tuple_for_one_parameter_is_refused():
    class Pair(nn.Module):
        def forward(self, z):
            return z, z

    with pytest.raises(ValueError, match="expected one tensor from the decoder for Poisson, got 2"):
        cc.VAE(Pair(), 2, Poisson())


@pytest.mark.parametrize(
    ("likelihood", "shape", "value"),
    [
        (Poisson(), (3,), 0.5),
        (BetaBinomial(5, 4.0), (3,), 6.0),
        (Categorical(3), (2, 3), 3.0),
        (Ordinal((-1.0, 1.0)), (3,), -1.0),
        (Categorical(3, one_hot=True), (3,), 1.0),
    ],
    ids=str,
)
def test_no_message_advises_to_scale_counts_and_classes(likelihood, shape, value):
    model = cc.VAE(constant(*shape), 2, likelihood)
    evidence = cc.Evidence(torch.full(model.data_shape, value), torch.tensor(True))
    with pytest.raises(ValueError, match=r"more outside; counts and classes are not scaled"):
        cc.condition(model, evidence)


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_probabilities_outside_0_and_1_are_refused(bad):
    with pytest.raises(
        ValueError, match=r"probabilities between 0 and 1.*Bernoulli\(logits=True\)"
    ):
        Bernoulli(logits=False).check_params(torch.tensor([0.5, bad]))
    Bernoulli().check_params(torch.tensor([0.5, 7.0]))  # as logits they are fine


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_decoded_scale_that_is_not_positive_is_refused(bad):
    with pytest.raises(ValueError, match=r"scale is > 0.*not its logarithm"):
        Gaussian(None).check_params(torch.tensor([[0.0, 0.5], [0.0, bad]]))


def test_a_probability_outside_0_and_1_has_no_log_prob_and_is_not_clamped():
    likelihood, one = cc.likelihoods.Bernoulli(logits=False), torch.ones(1)
    assert likelihood.log_prob(torch.tensor([1.2]), one).isnan().all()
    assert likelihood.log_prob(torch.tensor([1.0]), one).isfinite().all()


# ---- Mixed -------------------------------------------------------------------------------------


def test_mixed_names_the_columns_that_it_refuses():
    model = vae(Mixed([(Gaussian(0.1), 2), (Poisson(), 2)]), 4)
    values = torch.tensor([0.5, 0.5, 0.5, 1.0])
    with pytest.raises(
        ValueError, match="in columns 2 to 3: expected observed values whole numbers from 0 for P"
    ):
        cc.condition(model, cc.Evidence(values, torch.tensor(True)), seed=0)


def test_mixed_names_the_single_column_that_it_refuses():
    model = vae(Mixed([(Gaussian(0.1), 2), Poisson()]), 3)
    with pytest.raises(ValueError, match="in column 2: expected observed values whole numbers"):
        cc.condition(model, cc.Evidence(torch.full((3,), 0.5), torch.tensor(True)), seed=0)


def test_mixed_of_a_decoder_with_another_number_of_heads_is_refused():
    class Heads(nn.Module):
        def forward(self, z):
            return z, z, z

    with pytest.raises(ValueError, match=r"expected one tensor .* each of 2 parts, got 3"):
        cc.VAE(Heads(), 2, Mixed([(Gaussian(), 2), (Bernoulli(), 2)]))
