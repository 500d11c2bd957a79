"""Every mismatch of data and model, and the check that finds it."""

import math

import pytest
import torch
from faults import LATENT, drawn, network, right, status
from problems import linear_gaussian_problem
from torch import nn
from torch.nn import functional

import crosscoding as cc
from crosscoding.checks.column_baseline import log_prob_of_columns
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
)


def images(low: float, high: float, likelihood, last: nn.Module) -> tuple[cc.VAE, torch.Tensor]:
    """A model whose last layer is bounded, and its own means moved to low … high."""
    vae = cc.VAE(network(60, last), LATENT, likelihood)
    means = vae.decode(torch.randn(200, LATENT, generator=torch.Generator().manual_seed(2)))
    start, end = (-1, 1) if isinstance(last, nn.Tanh) else (0, 1)
    return vae, low + (high - low) * (means - start) / (end - start)


def test_values_that_are_not_finite():
    data = drawn(right())
    data[3, 2] = math.nan
    report = right().check(data)
    assert report["data"].status == "error"
    assert "1 of 2400 values are NaN" in report["data"].message
    assert "units" not in report


def test_values_outside_the_support():
    vae = cc.VAE(network(), LATENT, Bernoulli())
    finding = vae.check(255 * drawn(vae))["data"]
    assert finding.status == "error"
    assert "expected data between 0 and 1 for Bernoulli, got 255" in finding.message


def test_grey_values_under_a_bernoulli_are_noted():
    vae = cc.VAE(network(), LATENT, Bernoulli())
    finding = vae.check(vae.decode(torch.randn(50, LATENT)).sigmoid())["data"]
    assert finding.status == "note"
    assert "ContinuousBernoulli" in finding.message


@pytest.mark.parametrize(
    ("last", "low", "high"),
    [(nn.Tanh(), 0, 1), (nn.Tanh(), 0, 255), (nn.Sigmoid(), -1, 1), (nn.Sigmoid(), 0, 255)],
    ids=["tanh, 0 to 1", "tanh, 0 to 255", "sigmoid, -1 to 1", "sigmoid, 0 to 255"],
)
def test_a_bounded_mean_and_data_on_another_scale(last, low, high):
    vae, data = images(low, high, Gaussian(0.05), last)
    finding = vae.check(data)["units"]
    assert finding.status in ("warning", "error")
    assert finding.message.endswith("scale the data as in training")


@pytest.mark.parametrize(("last", "low"), [(nn.Tanh(), -1), (nn.Sigmoid(), 0)], ids=str)
def test_a_bounded_mean_and_data_on_its_scale(last, low):
    vae, data = images(low, 1, Gaussian(0.05), last)
    assert status(vae, "units", data) == "ok"


def test_a_table_of_other_units_in_some_columns():
    vae = right()
    data = drawn(vae)
    assert status(vae, "units", data) == "ok"
    data[:, :3] = 40 + 10 * data[:, :3]
    assert status(vae, "units", data) == "error"


def test_a_single_column_of_other_units():
    vae = cc.VAE(network(60), LATENT, Gaussian(0.3))
    data = drawn(vae)
    data[:, 7] = 20 + data[:, 7]
    finding = vae.check(data)["units"]
    assert finding.status == "warning"
    assert "most values of 1 of 60 elements, first index 7" in finding.message


def test_pictures_that_are_mostly_black_on_another_scale():
    vae = cc.VAE(network(60, nn.Sigmoid()), LATENT, Gaussian(0.05))
    grey = torch.rand(200, 60, generator=torch.Generator().manual_seed(3))
    finding = vae.check(255 * grey * (grey > 0.8))["units"]
    assert finding.status == "error"  # four of five pixels are 0 on either scale
    assert "20% of the values of data, 0 to 255, lie outside" in finding.message


def test_in_a_mixed_table_the_columns_of_other_units_are_named():
    vae = cc.VAE(network(), LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(), 4)]))
    data = drawn(vae, 400)
    data[:, :8] = 40 + 10 * data[:, :8]
    finding = vae.check(data)["units"]
    assert finding.status == "error"
    assert finding.message.startswith("columns 0 to 7: ")


def test_classes_have_no_units():
    decoder = nn.Sequential(network(), nn.Unflatten(1, (4, 3)))
    vae = cc.VAE(decoder, LATENT, Categorical(3))
    assert "units" not in vae.check(drawn(vae))


# ---- counts --------------------------------------------------------------------------------------


def rates(shift: float, last: nn.Module) -> nn.Sequential:
    """A decoder of rates, all of which stay above 0."""
    decoder = network(last=last)
    with torch.no_grad():
        decoder[2].weight.mul_(0.3)
        decoder[2].bias.add_(shift)
    return decoder


@pytest.mark.parametrize("shift", [-1.0, 0.0, 2.0, 5.0])
def test_rates_that_are_mistaken_for_logarithms(shift):
    decoder = rates(shift, nn.Softplus())
    vae = cc.VAE(decoder, LATENT, Poisson(log_rate=False))
    data = drawn(vae, 400)
    assert status(vae, "counts", data) == "ok"
    finding = cc.VAE(decoder, LATENT, Poisson()).check(data)["counts"]
    assert finding.status == "warning"
    assert "read as Poisson(log_rate=False), the decoder's output gives" in finding.message
    assert finding.message.endswith("use Poisson(log_rate=False)")


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_logarithms_that_are_mistaken_for_rates(shift):
    decoder = rates(shift, nn.ReLU())
    data = drawn(cc.VAE(decoder, LATENT, Poisson()), 400)
    finding = cc.VAE(decoder, LATENT, Poisson(log_rate=False)).check(data)["counts"]
    assert finding.status == "warning"
    assert finding.message.endswith("use Poisson(log_rate=True)")


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(3.0), BetaBinomial(9, 4.0)])
def test_counts_of_other_data(likelihood):
    vae = cc.VAE(network(), LATENT, likelihood)
    data = drawn(vae, 400)
    assert status(vae, "counts", data) == "ok"
    finding = vae.check((data / 4).floor())["counts"]
    assert finding.status == "warning"
    assert "was it trained on such data" in finding.message


def test_counts_in_some_columns():
    decoder = rates(1.0, nn.Softplus())
    data = drawn(cc.VAE(decoder, LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(False), 4)])), 400)
    finding = cc.VAE(decoder, LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(), 4)])).check(data)
    assert finding["counts"].message.startswith("columns 8 to 11: the model's counts add up to")
    assert finding["counts"].message.endswith("use Poisson(log_rate=False)")


@pytest.mark.parametrize("num", [1, 2, 9])
def test_a_few_counts_are_not_enough_to_judge_by(num):
    decoder = rates(-3.0, nn.Softplus())  # next to none, and now and then one
    vae = cc.VAE(decoder, LATENT, Poisson(log_rate=False))
    report = vae.check(drawn(vae, 400)[:num].clamp_min(1))
    assert "counts" not in report
    assert "most values of" not in str(report)


def test_numbers_are_not_counted():
    assert "counts" not in right().check(drawn(right()))


# ---- likelihoods of one's own ----------------------------------------------------------------


class Geometric(Likelihood):
    """Failures before a success of probability σ(l): log p(t) = log σ(l) + t log σ(−l)."""

    support = "whole numbers from 0"
    kind = "counts"

    def log_prob(self, params, values):
        return functional.logsigmoid(params) + values * functional.logsigmoid(-params)

    def mean(self, params):
        return (-params).exp()

    def variance(self, params):
        return self.mean(params) * (1 + self.mean(params))

    def fisher(self, params):
        return (-params).sigmoid()

    def noise(self, shape, *, generator, like):
        return torch.rand(shape, generator=generator, dtype=like.dtype)

    def draw(self, params, noise):
        return (noise.log() / functional.logsigmoid(-params)).floor()

    def in_support(self, values):
        return (values >= 0) & (values == values.floor())

    def to_parts(self):
        return {}, {"name": "Geometric", "settings": {}}


class Kindless(Geometric):
    """The same, of an author who does not say that they are counts."""

    kind = ""


def test_counts_of_a_users_likelihood_are_checked():
    vae = cc.VAE(rates(0.0, None), LATENT, Geometric())
    data = drawn(vae, 400)
    report = vae.check(data)
    assert report["explanation"].status == report["counts"].status == "ok"
    finding = vae.check(10 * data)["counts"]
    assert finding.status == "warning"
    assert "was it trained on such data" in finding.message
    assert vae.check(10 * data)["units"].message.endswith("pass counts unscaled")
    torch.testing.assert_close(
        log_prob_of_columns(Geometric(), data, torch.zeros(12)),
        log_prob_of_columns(Poisson(), data, torch.zeros(12)),
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_a_likelihood_without_a_kind_is_not_compared(mixed):
    likelihood = Mixed([(Gaussian(0.3), 4), (Kindless(), 8)]) if mixed else Kindless()
    vae = cc.VAE(rates(0.0, None), LATENT, likelihood)
    finding = vae.check(drawn(vae, 200))["explanation"]
    assert finding.status == "note"
    assert finding.message.endswith("set kind of Kindless to one of real, binary, counts, classes")


def test_every_likelihood_says_its_kind():
    """Except `Mixed`, whose parts say theirs."""
    names = set(cc.likelihoods.__all__) - {"Likelihood", "Mixed"}
    kinds = {getattr(cc.likelihoods, name).kind for name in names}
    assert kinds == {"real", "binary", "counts", "classes"}
    assert cc.likelihoods.Bernoulli.kind == "binary"
    assert cc.likelihoods.Ordinal.kind == "classes"


# ---- log p, and the scale ------------------------------------------------------------------------


def test_a_model_that_is_not_of_these_data():
    vae = right()
    data = drawn(vae)
    assert status(vae, "explanation", data) == "ok"
    finding = vae.check(data.flip(1))["explanation"]  # other elements than those it was trained on
    assert finding.status == "warning"
    assert finding.figures["gain"] < 0


def test_too_few_data_to_compare():
    vae = right()
    assert status(vae, "explanation", drawn(vae, 5)) == "note"
    assert vae.check(drawn(vae, 1))["data"].status == "ok"


def test_log_prob_is_that_of_a_linear_model():
    problem = linear_gaussian_problem(batch=20)
    everything = cc.Evidence(problem.truth, torch.ones_like(problem.truth, dtype=torch.bool))
    exact = problem.exact_log_evidence(everything).mean().item()
    found = problem.vae.check(problem.truth)["explanation"].figures["log_prob"]
    assert found == pytest.approx(exact, abs=1e-3)  # a climb ends within that of the mode


@pytest.mark.parametrize("factor", [0.2, 0.9, 5.0])
def test_the_suggested_scale_is_that_of_the_exact_likelihood_of_a_linear_vae(factor):
    problem = linear_gaussian_problem(latent_dim=3, data_dim=8, scale=0.5, batch=32)
    guessed = cc.VAE(problem.vae.decoder, 3, Gaussian(0.5 / factor))
    finding = guessed.check(problem.truth)["scale"]
    best = cc.calibrate_scale(guessed, problem.truth, tolerance=1e-4)
    # A step of the search is 1.2 %; the draws of EM leave 1 %.
    assert finding.figures["factor"] * 0.5 / factor == pytest.approx(best, rel=0.03)
    assert finding.status == ("ok" if factor == 0.9 else "warning")


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_scale_that_does_not_fit_the_data(factor):
    decoder = network(60)
    data = drawn(cc.VAE(decoder, LATENT, Gaussian(0.3)))
    finding = cc.VAE(decoder, LATENT, Gaussian(0.3 / factor)).check(data)["scale"]
    assert finding.status == "warning"
    assert "cc.calibrate_scale(vae, data)" in finding.message
    assert finding.figures["factor"] == pytest.approx(factor, rel=0.1)  # the decoder bends


def test_data_that_z_can_match_do_not_determine_the_scale():
    problem = linear_gaussian_problem(latent_dim=3, data_dim=3, scale=0.01, batch=32)
    vae = cc.VAE(problem.vae.decoder, 3, Gaussian(0.1))
    finding = vae.check(problem.truth[:2].repeat(16, 1))["scale"]
    assert finding.status == "note"
    assert "z of 3 dimensions can match 3 elements almost exactly" in finding.message


def test_a_scale_for_each_element_is_checked_by_one_factor():
    scales = torch.linspace(0.1, 0.5, 60)
    decoder = network(60)
    data = drawn(cc.VAE(decoder, LATENT, Gaussian(scales)))
    assert status(cc.VAE(decoder, LATENT, Gaussian(scales)), "scale", data) == "ok"
    assert status(cc.VAE(decoder, LATENT, Gaussian(scales / 3)), "scale", data) == "warning"


def table(*scales: float) -> cc.VAE:
    """Twenty columns of each scale, and four counts between them."""
    parts = [(Gaussian(scales[0]), 20), (Poisson(), 4), *[(Gaussian(s), 20) for s in scales[1:]]]
    return cc.VAE(network(sum(num for _, num in parts)), LATENT, Mixed(parts))


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_the_scale_of_each_gaussian_part_of_a_table_is_checked(factor):
    data = drawn(table(0.3, 0.8))
    assert status(table(0.3, 0.8), "scale", data) == "ok"
    finding = table(0.3, 0.8 / factor).check(data)["scale"]
    assert finding.status == "warning"
    assert finding.message.startswith("columns 24 to 43: data suggest about")
    assert finding.figures["factor"] == pytest.approx(factor, rel=0.1)  # the decoder bends


def test_a_table_without_a_fixed_scale_has_no_finding_on_it():
    vae = cc.VAE(
        network(10), LATENT, Mixed([(Gaussian(None, log_variance=True), 3), (Poisson(), 4)])
    )
    assert "scale" not in vae.check(drawn(vae))


@pytest.mark.parametrize("dim", [-1, -3])
@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_the_scale_of_a_part_is_that_of_the_exact_likelihood_of_a_linear_vae(factor, dim):
    """One scale for both parts, of which the second's is guessed wrongly by a factor."""
    problem = linear_gaussian_problem(latent_dim=3, data_dim=12, scale=0.5, batch=32)
    decoder, data = problem.vae.decoder, problem.truth
    if dim == -3:
        decoder, data = (
            nn.Sequential(decoder, nn.Unflatten(1, (6, 2, 1))),
            data.unflatten(1, (6, 2, 1)),
        )
    num = 6 if dim == -1 else 3
    likelihood = Mixed([(Gaussian(0.5), num), (Gaussian(0.5 / factor), num)], dim)
    guessed = cc.VAE(decoder, 3, likelihood)
    finding = guessed.check(data)["scale"]
    wanted = _likeliest_factor_of_second(problem, 0.5, factor)
    assert finding.figures["factor"] == pytest.approx(wanted, rel=0.02)  # a step is 1.2 %
    assert finding.status == "warning"


def _likeliest_factor_of_second(problem, scale: float, factor: float) -> float:
    """Of the second half's scale / factor, by the marginal likelihood log N(t; b, W Wᵀ + Σ)."""
    weight, bias = problem.vae.decoder.weight.double(), problem.vae.decoder.bias.double()
    half = len(bias) // 2

    def log_prob(times: float) -> float:
        deviation = torch.full((len(bias),), scale, dtype=torch.double)
        deviation[half:] *= times / factor
        law = torch.distributions.MultivariateNormal(
            bias, weight @ weight.T + deviation.square().diag()
        )
        return law.log_prob(problem.truth.double()).sum().item()

    return max(torch.logspace(-2, 2, 2001).tolist(), key=log_prob)


# ---- the columns -------------------------------------------------------------------------------


def test_normal_columns_are_those_of_all_other_data():
    data = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    found = log_prob_of_columns(Gaussian(), data, torch.zeros(3))
    others = data[1:]
    law = torch.distributions.Normal(others.mean(0), others.std(0, correction=0))
    torch.testing.assert_close(found[0], law.log_prob(data[0]).sum())


def test_a_constant_column_has_the_least_variance():
    found = log_prob_of_columns(Gaussian(), torch.zeros(12, 1), torch.full((1,), 0.25))
    law = torch.distributions.Normal(0.0, 0.5)
    torch.testing.assert_close(found, law.log_prob(torch.zeros(12)).double())


def test_columns_of_zeros_and_ones_and_of_classes_count_the_others():
    data = torch.tensor([[1.0], [1.0], [0.0]])
    wanted = torch.tensor([2 / 4, 2 / 4, 1 / 4]).log().double()
    torch.testing.assert_close(log_prob_of_columns(Bernoulli(), data, torch.zeros(1)), wanted)
    torch.testing.assert_close(log_prob_of_columns(Categorical(2), data, torch.zeros(1)), wanted)


def test_columns_of_a_table_are_those_of_its_parts():
    parts = [(Gaussian(0.1), 2), Poisson()]
    data = torch.cat([torch.randn(20, 2), torch.arange(20.0)[:, None] % 3], 1)
    floor = torch.full((3,), 0.01)
    both = log_prob_of_columns(Mixed(parts), data, floor)
    first = log_prob_of_columns(Gaussian(0.1), data[:, :2], floor[:2])
    torch.testing.assert_close(both, first + log_prob_of_columns(Poisson(), data[:, 2:], floor[2:]))
