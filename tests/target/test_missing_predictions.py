"""Elements that have no prediction, or no finite one: they are named where they are asked for."""

import math
from collections.abc import Callable

import pytest
import torch
from overflowing import DTYPES, Columns, evidence
from torch import Tensor, nn

import crosscoding as cc
from crosscoding import likelihoods
from crosscoding.likelihoods import Categorical, Gaussian, Likelihood, Mixed, Poisson, StudentT
from crosscoding.methods import Grid, TemperedSMC

# ---- what does not exist is named where it is asked for ----------------------------------------


def test_a_prediction_that_does_not_exist_is_named():
    vae = cc.VAE(Columns(torch.float32, overflows=True), 1, Gaussian(0.5))
    observed = evidence([2.5, 2.0], 4, torch.float32)
    posterior = cc.condition(vae, observed, seed=0)
    words = r"expected element 3 to have a prediction, and for query 0 it has none at .*% of the "
    words += r"draws: at one of norm \d.* the decoder outputs inf \(Gaussian takes finite"
    for ask in (
        lambda: posterior.predict(300, seed=0),
        lambda: posterior.predict_mean(300, seed=0),
        posterior.mean,
        posterior.std,
        lambda: posterior.query_log_prob(torch.zeros(2, 4)),
    ):
        with pytest.raises(cc.NonFiniteError, match=words):
            ask()


class Picture(nn.Module):
    """(mean, scale) of 2 x 3 pixels; a pixel's scale is z₁ + 4: none where z₁ ≤ −4."""

    def forward(self, z: Tensor) -> Tensor:
        mean = z.sum(-1)[:, None, None] * torch.ones(2, 3)
        scale = torch.ones_like(mean).clone()
        scale[:, 1, 2] = z[:, 0] + 4
        return torch.stack([mean, scale], -1)


def test_the_error_names_element_and_size_of_z_and_what_is_wrong_there():
    vae = cc.VAE(Picture(), 2, Gaussian(None))
    observed = cc.Evidence(torch.zeros(2, 3), torch.tensor(True))
    words = r"at a z of norm [4-9]\S* the decoder outputs \S+, -?\d\S* \(Gaussian takes finite "
    words += r"parameters and a scale > 0\) for element \(1, 2\)"
    with pytest.raises(cc.NonFiniteError, match=words):
        cc.condition(vae, observed, Grid(), seed=0)
    without = cc.Evidence(torch.zeros(2, 3), torch.arange(6).reshape(2, 3) < 5)
    answer = cc.condition(vae, without, Grid(), seed=0)
    variance = 1 + 2 * 5  # of Σ over the five pixels of their mean, against noise of 1 in each
    exact = -0.5 * (5 * math.log(2 * math.pi) + math.log(variance))
    assert abs(answer.log_evidence - exact) < 0.001


OUTSIDE: dict[str, tuple[Likelihood, float]] = {
    "a rate below 0": (Poisson(log_rate=False), -0.5),
    "a probability above 1": (cc.likelihoods.Bernoulli(logits=False), 1.5),
    "a density's probability above 1": (cc.likelihoods.ContinuousBernoulli(logits=False), 1.5),
}


class FarOutside(nn.Module):
    """Two elements of 0.5, the second of which is another number where z > 2."""

    def __init__(self, beyond: float) -> None:
        super().__init__()
        self.beyond = beyond

    def forward(self, z: Tensor) -> Tensor:
        first = 0.5 + 0.1 * z.tanh()
        return torch.cat([first, torch.where(z > 2, self.beyond, first)], -1)


@pytest.mark.parametrize("table", [False, True], ids=["alone", "in a table"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_an_invalid_parameter_matters_only_where_it_is_observed(case, table):
    likelihood, beyond = OUTSIDE[case]
    name = type(likelihood).__name__
    likelihood = Mixed([(likelihood, 2)]) if table else likelihood
    vae = cc.VAE(FarOutside(beyond), 1, likelihood)
    answer = cc.condition(vae, cc.Evidence(torch.ones(2), torch.arange(2) < 1), seed=0)
    assert answer.trusted
    words = rf"at a z of norm \S+ the decoder outputs {beyond} \({name} takes .*\) for element 1"
    with pytest.raises(cc.NonFiniteError, match=words):
        cc.condition(vae, cc.Evidence(torch.ones(2), torch.tensor(True)), seed=0)
    with pytest.raises(cc.NonFiniteError, match="expected element 1 to have a prediction"):
        answer.predict_mean(5000, seed=0)


# ---- numbers that are not there at ordinary draws from the prior -------------------------------

ORDINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "overflow": lambda z: (z.new_tensor(torch.finfo(z.dtype).max).log() * z.square()).exp(),
    "a root": lambda z: z.sqrt(),
    "a root of what is nearly always below 0": lambda z: (z - 1.8).sqrt(),
    "a logarithm": lambda z: (-z).log(),
}


class Ordinary(nn.Module):
    """A line, and a column that does not exist at many draws from the prior."""

    def __init__(self, column: Callable[[Tensor], Tensor] | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.column, self.weight = column, nn.Parameter(torch.tensor([[0.7]], dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        line = z * self.weight
        return line if self.column is None else torch.cat([self.column(z), line], -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", [False, True], ids=["alone", "in a table"])
@pytest.mark.parametrize("column", ORDINARY.values(), ids=ORDINARY)
def test_a_column_that_often_has_no_distribution_is_named_and_has_no_effect(column, table, dtype):
    def likelihood(num: int) -> Likelihood:
        return Mixed([(Gaussian(0.5), num)]) if table else Gaussian(0.5)

    with pytest.warns(UserWarning, match=r"outputs (inf|nan) \(Gaussian takes.*for element 0 at"):
        vae = cc.VAE(Ordinary(column, dtype), 1, likelihood(2))
    row = torch.tensor([torch.nan, 0.3], dtype=dtype)
    found = cc.condition(vae, cc.Evidence.from_nan(row), TemperedSMC(200), seed=0)
    without = cc.VAE(Ordinary(None, dtype), 1, likelihood(1))
    wanted = cc.condition(without, cc.Evidence.from_nan(row[1:]), TemperedSMC(200), seed=0)
    assert torch.equal(found.draws, wanted.draws)
    assert torch.equal(found.log_evidence, wanted.log_evidence)
    words = "expected element 0 to have a prediction"
    for ask in (
        lambda: found.predict(300, seed=0),
        found.mean,
        found.std,
        lambda: vae.sample_prior(300, seed=0),
    ):
        with pytest.raises(cc.NonFiniteError, match=words):
            ask()
    if column is not ORDINARY["overflow"]:  # at an infinite mean what is observed is impossible
        with pytest.raises(cc.NonFiniteError, match="for element 0"):
            cc.condition(vae, cc.Evidence(torch.ones_like(row), torch.tensor(True)), Grid(), seed=0)


def test_a_model_with_a_column_that_often_has_no_distribution_is_saved_and_loaded(tmp_path):
    decoder = nn.Linear(1, 2)
    with torch.no_grad():
        decoder.weight[0] = 3e38
    encoder = nn.Linear(2, 2)
    words = "for element 0"
    with pytest.warns(UserWarning, match=words):
        vae = cc.VAE(decoder, 1, Gaussian(), encoder)
    with pytest.warns(UserWarning, match=words):
        vae.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=words):
        loaded = cc.load_vae(tmp_path / "model")
    assert torch.equal(loaded.decode(torch.ones(1)), vae.decode(torch.ones(1)))


def test_a_draw_at_which_no_element_has_a_distribution_is_refused():
    class Root(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([z.sqrt(), (2 * z).sqrt()], -1)

    with pytest.raises(cc.NonFiniteError, match="finite output from the decoder, got NaN"):
        cc.VAE(Root(), 1, Gaussian())


def test_a_decoder_is_refused_where_an_infinite_output_has_no_meaning():
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([0 * z, 0 * z + self.value], -1)

    cc.VAE(Constant(-math.inf), 1, Categorical(2, one_hot=True))
    cc.VAE(Constant(-math.inf), 1, Mixed([Gaussian(), Poisson()]))
    for value, likelihood in (
        (math.inf, Categorical(2, one_hot=True)),
        (math.nan, Categorical(2, one_hot=True)),
        (-math.inf, Gaussian()),
        (-math.inf, Mixed([Poisson(), Gaussian()])),
    ):
        with pytest.raises(
            cc.NonFiniteError, match=r"finite output.*at index \(1,\) of its output"
        ):
            cc.VAE(Constant(value), 1, likelihood)


# ---- moments and draws that overflow -----------------------------------------------------------


class Wide(nn.Module):
    """A line, and (0, spread) of a second element."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, z: Tensor) -> Tensor:
        first = torch.cat([0.7 * z, 0 * z + 1], -1)
        return torch.stack([first, torch.cat([0 * z, 0 * z + self.spread], -1)], 1)


SPREADS = {
    "log variance": (Gaussian(None, log_variance=True), 120.0, math.exp(60)),
    "scale": (Gaussian(None), 1e25, 1e25),
    "Laplace": (likelihoods.Laplace(None), 1e25, math.sqrt(2) * 1e25),
    "Student-t": (StudentT(4.0, None), 1e25, math.sqrt(2) * 1e25),
    "a table": (Mixed([(Gaussian(None, log_variance=True), 2)]), 120.0, math.exp(60)),
}


@pytest.mark.parametrize("case", SPREADS)
def test_a_deviation_whose_square_overflows_is_answered(case):
    likelihood, spread, expected = SPREADS[case]
    decoder = Wide(spread)
    if isinstance(likelihood, Mixed):
        decoder = nn.Sequential(decoder, nn.Flatten())
    vae = cc.VAE(decoder, 1, likelihood)
    answer = cc.condition(vae, evidence([0.3], 2, torch.float32), Grid(), seed=0)
    assert abs(answer.std()[1] / expected - 1) < 1e-5
    assert answer.predict(100, seed=0).isfinite().all()


@pytest.mark.parametrize("spread", [200.0, 178.0])
def test_draws_that_overflow_are_named(spread):
    """e^100 is no number in float32; of e^89 = 4.5e38 neither, and 0.4 times as much is one."""
    vae = cc.VAE(Wide(spread), 1, Gaussian(None, log_variance=True))
    answer = cc.condition(vae, evidence([0.3], 2, torch.float32), Grid(), seed=0)
    words = "expected element 1 to have a prediction.*a log variance whose scale is finite"
    for ask in (
        lambda: answer.predict(300, seed=0),
        answer.std,
        lambda: vae.sample_prior(300, seed=0),
    ):
        with pytest.raises(cc.NonFiniteError, match=words):
            ask()


def test_moments_that_a_distribution_lacks_stay_nan_or_infinite():
    vae = cc.VAE(Wide(0.5), 1, StudentT(1.5, None))
    answer = cc.condition(vae, evidence([0.3], 2, torch.float32), Grid(), seed=0)
    assert answer.std()[1] == math.inf
    assert answer.mean().isfinite().all()
    vae = cc.VAE(Wide(0.5), 1, StudentT(0.9, None))
    assert cc.condition(vae, evidence([0.3], 2, torch.float32), Grid(), seed=0).mean()[1].isnan()
