"""Decoders whose output loses log p(x|z) to rounding: the answer is right, or not trusted."""

import math
import re

import pytest
import torch
from cheap_methods import every_method
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Mixed, Poisson
from crosscoding.methods import Auto, Grid


class Rates(nn.Module):
    """100 softmax(0, 5, 5 z − 200), or its logarithm: the third is below e^−170 where z < 6."""

    def __init__(self, dtype: torch.dtype = torch.float32, logarithm: str = "") -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.0, 5.0, -200.0]], dtype=dtype))
        self.logarithm = logarithm

    def forward(self, z: Tensor) -> Tensor:
        logits = self.logits + nn.functional.pad(5 * z, (2, 0))
        if self.logarithm == "log_softmax":
            return logits.log_softmax(-1) + math.log(100)
        return 100 * logits.softmax(-1)


THIRD = torch.tensor([math.nan, math.nan, 1.0])
REASON = "decoder's output for observed element 2 .* is clamped or has lost its precision"
EXACT = -200 + 5.0**2 / 2 + math.log(100) - math.log(1 + math.exp(5))  # −187.90; the mean is 5


def reasons(posterior: cc.Posterior, query: int = 0) -> str:
    return "; ".join(posterior.verdicts[query].reasons)


@every_method
@pytest.mark.slow
def test_a_rate_that_underflows_where_it_is_observed_is_never_trusted(method):
    vae = cc.VAE(Rates(), 1, Poisson(log_rate=False))
    posterior = cc.condition(vae, cc.Evidence.from_nan(THIRD), method, seed=0)
    assert posterior.verdicts[0].label == "unreliable"
    assert not posterior.trusted
    assert re.search(REASON + " at 100% of the draws", reasons(posterior))
    assert posterior.stats["lost"] == 1
    assert posterior.stats["lost_element"] == 2


@pytest.mark.parametrize(
    ("decoder", "likelihood"),
    [
        (Rates(torch.float64), Poisson(log_rate=False)),
        (Rates(torch.float32, "log_softmax"), Poisson()),
    ],
    ids=["double", "log rates"],
)
def test_the_same_rates_with_enough_digits_are_right(decoder, likelihood):
    vae = cc.VAE(decoder, 1, likelihood)
    posterior = cc.condition(vae, cc.Evidence.from_nan(THIRD.to(vae.dtype)), seed=0)
    assert abs(posterior.log_evidence - EXACT) < 0.01
    assert abs(posterior.draws.mean() - 5) < 0.15
    assert posterior.trusted
    assert posterior.stats["lost"] == 0


@pytest.mark.slow
def test_each_query_is_judged_by_what_it_observes():
    rows = torch.tensor([[[math.nan, 3.0, math.nan], [math.nan, math.nan, 1.0]]]).expand(2, 2, 3)
    vae = cc.VAE(Rates(), 1, Poisson(log_rate=False))
    posterior = cc.condition(vae, cc.Evidence.from_nan(rows), seed=0)
    assert posterior.stats["lost"].tolist() == [[0, 1], [0, 1]]
    assert posterior.trusted.tolist() == [[True, False], [True, False]]
    small = cc.condition(vae, cc.Evidence.from_nan(rows), seed=0, max_bytes=1)  # in blocks
    assert torch.equal(small.stats["lost"], posterior.stats["lost"])
    assert "lost" not in cc.condition(vae, cc.Evidence.from_nan(0 * rows[0, :1]), seed=0).stats


def test_a_saved_answer_keeps_its_verdict(tmp_path):
    vae = cc.VAE(Rates(), 1, Poisson(log_rate=False))
    posterior = cc.condition(vae, cc.Evidence.from_nan(THIRD), Grid(), seed=0)
    with pytest.warns(UserWarning, match="decoder"):
        posterior.save(tmp_path / "answer")
    loaded = cc.Posterior.load(tmp_path / "answer", vae=vae)
    assert loaded.verdicts == posterior.verdicts
    assert "element 2" in reasons(loaded)


class Pixels(nn.Module):
    """Four pixels whose logits are 40 (z + 1), 40 (z − 1), …; or what sigmoid makes of them."""

    def __init__(self, dtype: torch.dtype, *, sigmoid: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([[1.0, -1.0, 0.5, -2.0]], dtype=dtype))
        self.sigmoid = sigmoid

    def forward(self, z: Tensor) -> Tensor:
        logits = 40 * (z + self.shift)
        return logits.sigmoid() if self.sigmoid else logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("pixels", "lost"), [([1.0, 0.0, 1.0, 0.0], False), ([0.0, 1.0, 0.0, 1.0], True)], ids=str
)
def test_saturated_pixels_are_lost_where_the_data_contradict_them(pixels, lost, dtype):
    evidence = cc.Evidence(torch.tensor(pixels, dtype=dtype), torch.tensor(True))
    answers = [
        cc.condition(cc.VAE(Pixels(dtype, sigmoid=s), 1, Bernoulli(logits=not s)), evidence, seed=0)
        for s in (False, True)
    ]
    assert "lost" not in answers[0].stats  # of logits, nothing is
    if not lost:
        assert answers[1].trusted
        torch.testing.assert_close(
            answers[0].log_evidence, answers[1].log_evidence, atol=0.02, rtol=0
        )
        return
    far = (answers[0].log_evidence - answers[1].log_evidence).abs() > 0.1
    assert not far or not answers[1].trusted
    if dtype == torch.float32:
        assert far
        assert "observed element" in reasons(answers[1])


class LogOfSoftmax(nn.Module):
    """log softmax(0, 5, 5 z − c) of one variable; by log after softmax, −inf below e^−103."""

    def __init__(self, constant: float, *, stable: bool) -> None:
        super().__init__()
        self.constant, self.stable = constant, stable

    def forward(self, z: Tensor) -> Tensor:
        logits = torch.cat([0 * z, 0 * z + 5, 5 * z - self.constant], -1)
        return (logits.log_softmax(-1) if self.stable else logits.softmax(-1).log())[:, None]


@pytest.mark.parametrize("constant", [60.0, 115.0])
@pytest.mark.parametrize("stable", [True, False], ids=["log_softmax", "softmax, log"])
def test_the_logarithm_of_a_probability_that_underflows(stable, constant):
    vae = cc.VAE(LogOfSoftmax(constant, stable=stable), 1, Categorical(3))
    posterior = cc.condition(vae, cc.Evidence(torch.tensor([2.0]), torch.tensor(True)), seed=0)
    exact = -constant + 12.5 - math.log(1 + math.exp(5))
    right = abs(posterior.log_evidence - exact) < 0.015
    assert right == (stable or constant == 60)
    assert posterior.trusted == right
    assert ("observed element 0" in reasons(posterior)) == (not right)


def test_losses_in_a_table_name_their_column():
    class Columns(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([z, z, (-200 + 5 * z).exp()], -1)

    table = Mixed([(Gaussian(0.5), 2), Poisson(log_rate=False)])
    vae = cc.VAE(Columns(), 1, table)
    row = torch.tensor([math.nan, 0.3, 1.0])
    posterior = cc.condition(vae, cc.Evidence.from_nan(row), Auto(), seed=0)
    assert not posterior.trusted
    assert "observed element 2" in reasons(posterior)
    counted = cc.condition(vae, cc.Evidence.from_nan(torch.tensor([0.3, 0.3, 0.0])), seed=0)
    assert counted.trusted


# ---- what each likelihood calls lost -------------------------------------------------------------

SINGLE, DOUBLE = torch.float32, torch.float64
L = cc.likelihoods
LOST: dict[str, tuple[Likelihood, object, float, torch.dtype, bool]] = {
    "p of 1, and 0": (Bernoulli(logits=False), 1.0, 0.0, SINGLE, True),
    "p next to 1, and 0": (Bernoulli(logits=False), 1 - 2**-24, 0.0, SINGLE, True),
    "p next to 1, and 1": (Bernoulli(logits=False), 1 - 2**-24, 1.0, SINGLE, False),
    "p of 1, and 1": (Bernoulli(logits=False), 1.0, 1.0, SINGLE, False),
    "p of 1, and grey": (Bernoulli(logits=False), 1.0, 0.5, SINGLE, True),
    "p of 0.9999, and 0": (Bernoulli(logits=False), 0.9999, 0.0, SINGLE, False),
    "p near 1, and 0, in double": (Bernoulli(logits=False), 1 - 2**-24, 0.0, DOUBLE, False),
    "p of 0, and 1": (Bernoulli(logits=False), 0.0, 1.0, SINGLE, True),
    "p of 1e-40, and 1": (Bernoulli(logits=False), 1e-40, 1.0, SINGLE, True),
    "p of 0, and 0": (Bernoulli(logits=False), 0.0, 0.0, SINGLE, False),
    "λ of 1": (L.ContinuousBernoulli(logits=False), 1.0, 0.3, SINGLE, True),
    "λ of 0.7": (L.ContinuousBernoulli(logits=False), 0.7, 0.3, SINGLE, False),
    "λ next to 1": (L.ContinuousBernoulli(logits=False), 1 - 2**-24, 0.1, SINGLE, True),
    "a rate of 0, and 1": (Poisson(log_rate=False), 0.0, 1.0, SINGLE, True),
    "a rate of 1e-40, and 1": (Poisson(log_rate=False), 1e-40, 1.0, SINGLE, True),
    "a rate of 0, and 0": (Poisson(log_rate=False), 0.0, 0.0, SINGLE, False),
    "a rate of 1e-30, and 1": (Poisson(log_rate=False), 1e-30, 1.0, SINGLE, False),
    "a rate of 1e-40, and 1, in double": (Poisson(log_rate=False), 1e-40, 1.0, DOUBLE, False),
    "a log rate of -180": (Poisson(), -180.0, 1.0, SINGLE, False),
    "a log rate of 800": (Poisson(), 800.0, 1.0, DOUBLE, True),
    "a count of 1e11": (Poisson(), math.log(1e11), 1e11 + 1e8, SINGLE, True),
    "a count of 1e4": (Poisson(), math.log(1e4), 10_100.0, SINGLE, False),
    "a mean far from 0": (Gaussian(1.0), 1.7e9, 1.7e9, SINGLE, True),
    "a mean far from 0, in double": (Gaussian(1.0), 1.7e9, 1.7e9, DOUBLE, False),
    "a usual mean": (Gaussian(0.05), 0.7, 0.9, SINGLE, False),
    "a decoded scale of 1e-40": (Gaussian(None), [0.0, 1e-40], 1.0, SINGLE, True),
    "a decoded scale of 0.1": (Gaussian(None), [0.5, 0.1], 1.0, SINGLE, False),
    "a residual that overflows": (Gaussian(None), [0.0, 1e-30], 1.0, SINGLE, True),
    "a location far from 0": (L.Laplace(0.01), 1e6, 1e6, SINGLE, True),
    "a Student's location far from 0": (L.StudentT(4.0, 0.01), 1e6, 1e6, SINGLE, True),
    "a usual Student": (L.StudentT(4.0, 0.1), 1.0, 3.0, SINGLE, False),
    "an intensity of a scale below rounding": (
        L.DiscretizedLogistic(None, bins=256),
        [0.5, 1e-8],
        128 / 255,
        SINGLE,
        True,
    ),
    "a usual intensity": (L.DiscretizedLogistic(None), [0.5, 0.05], 1.0, SINGLE, False),
    "cut points that nearly meet": (
        L.Ordinal(None, num_classes=3),
        [1.0, 1.0 + 2**-22],
        1.0,
        SINGLE,
        True,
    ),
    "cut points that meet": (L.Ordinal(None, num_classes=3), [1.0, 1.0], 1.0, SINGLE, True),
    "usual cut points": (L.Ordinal(None, num_classes=3), [-1.0, 1.0], 1.0, SINGLE, False),
    "a huge total count": (L.NegativeBinomial(None), [-30.0, 1e15], 3.0, DOUBLE, True),
    "a usual total count": (L.NegativeBinomial(None), [0.5, 2.0], 3.0, SINGLE, False),
    "a total count of 1e-40": (L.NegativeBinomial(None), [0.5, 1e-40], 3.0, SINGLE, True),
    "a huge concentration": (L.BetaBinomial(10, None), [0.5, 1e15], 3.0, DOUBLE, True),
    "a usual concentration": (L.BetaBinomial(10, None), [0.5, 5.0], 3.0, SINGLE, False),
    "logits": (Categorical(2), [0.0, -95.0], 1.0, SINGLE, False),
    "the log of the smallest number": (Categorical(2), [0.0, math.log(2**-149)], 1.0, SINGLE, True),
    "of another class": (Categorical(2), [0.0, math.log(2**-149)], 0.0, SINGLE, False),
}


@pytest.mark.parametrize("case", LOST)
def test_likelihoods_say_what_is_lost(case):
    likelihood, params, value, dtype, expected = LOST[case]
    params, values = torch.tensor([params], dtype=dtype), torch.tensor([value], dtype=dtype)
    for one in (likelihood, Mixed([likelihood])):
        own = params.reshape(-1) if one is not likelihood else params
        assert one.lost(own[None], values[None]).tolist() == [[expected]]
        if expected:
            assert one.may_be_lost(values[None]).all()


def test_logits_lose_nothing_and_are_not_decoded_again():
    values = torch.tensor([[0.0, 1.0, 0.5]])
    assert not Bernoulli().may_be_lost(values).any()
    assert not L.ContinuousBernoulli().may_be_lost(values).any()
    assert not Gaussian(0.1).may_be_lost(values).any()
    assert not L.Ordinal([0.0]).may_be_lost(values).any()
    assert not L.DiscretizedLogistic(0.05).may_be_lost(values).any()
    assert not L.NegativeBinomial(3.0).may_be_lost(values).any()


class Rounded(Gaussian):
    """A likelihood of one's own: it holds the mean to be lost wherever it is above 1."""

    def may_be_lost(self, values: Tensor) -> Tensor:
        return values > 0

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return params > 1


def test_a_users_likelihood_can_say_where_it_is_lost():
    vae = cc.VAE(nn.Identity(), 1, Rounded(0.1))
    high, low = torch.tensor([1.5]), torch.tensor([-1.5])
    observed = torch.tensor(True)
    assert "observed element 0" in reasons(cc.condition(vae, cc.Evidence(high, observed), seed=0))
    assert cc.condition(vae, cc.Evidence(low, observed), seed=0).trusted


# ---- clamps in the decoder -----------------------------------------------------------------------

CLAMPED = {
    "a rate": (L.Poisson(log_rate=False), lambda z: (10 * z - 50).relu() + 1e-30, 2.0),
    "a log rate": (L.Poisson(), lambda z: (10 * z - 80).clamp_min(-60), 2.0),
    "a probability": (L.Bernoulli(logits=False), lambda z: (40 * z - 320).sigmoid() + 1e-12, 1.0),
    "a logit": (L.Bernoulli(), lambda z: (40 * z - 320).clamp(-30, 30), 1.0),
    "a mean": (L.Gaussian(0.1), lambda z: (5 * z - 30).relu(), 3.0),
    "a rounded mean": (L.Gaussian(0.1), lambda z: (1e8 + z) - 1e8, 0.5),
    "a location": (L.Laplace(0.1), lambda z: (5 * z - 30).relu(), 3.0),
    "a count": (L.NegativeBinomial(3.0), lambda z: (40 * z - 320).clamp_min(-30), 2.0),
    "an intensity": (L.DiscretizedLogistic(0.01), lambda z: (5 * z - 30).relu(), 1.0),
    "classes": (
        L.Categorical(2),
        lambda z: torch.stack([0 * z, (40 * z - 320).clamp_min(-30)], -1),
        1.0,
    ),
    "a column": (L.Mixed([L.Gaussian(0.1)]), lambda z: (5 * z - 30).relu(), 3.0),
}


class Made(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


@pytest.mark.parametrize("method", [Auto(), cc.methods.TemperedSMC(), cc.methods.Importance()])
@pytest.mark.parametrize("case", CLAMPED)
def test_a_decoder_that_clamps_what_is_observed_is_trusted_only_off_the_clamp(case, method):
    likelihood, function, value = CLAMPED[case]
    vae = cc.VAE(Made(function), 1, likelihood)
    evidence = cc.Evidence(torch.tensor([value]), torch.tensor(True))
    posterior = cc.condition(vae, evidence, method, seed=0)
    held = likelihood.log_prob(function(torch.zeros(1, 1)), torch.tensor([value])).item()
    if abs(posterior.log_evidence - held) < 0.1 or case == "a rounded mean":
        assert not posterior.trusted
        assert "observed element 0" in reasons(posterior)
        assert "clamped" in reasons(posterior)


def test_clamps_away_from_the_data_and_constant_outputs_are_not_losses():
    class Pixels(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([z, (5 * z - 30).relu(), 0 * z, 0 * z + 2], -1)

    vae = cc.VAE(Pixels(), 1, Gaussian(0.1))
    row = torch.tensor([0.3, 0.1, 0.9, 3.0])  # the last two are constant, and far from their values
    posterior = cc.condition(vae, cc.Evidence(row, torch.tensor(True)), seed=0)
    assert posterior.trusted
    assert "lost" not in posterior.stats
