"""fit_to_draws: weighted maximum likelihood against what the draws came from."""

import math

import pytest
import torch
from problems import mixture_target, seeded
from torch.distributions import MultivariateNormal

import crosscoding as cc
from crosscoding.crosscoders import (
    FCN,
    Gaussian,
    InverseAutoregressive,
    Mixture,
    Planar,
    Spline,
    fit_to_draws,
)

FAMILIES = {
    "Gaussian": Gaussian(),
    "diagonal Gaussian": Gaussian(diagonal=True),
    "low-rank Gaussian": Gaussian(rank=1),
    "Mixture": Mixture(3),
    "Planar": Planar(2),
    "Spline": Spline(2, bins=4, hidden=4),
    "InverseAutoregressive": InverseAutoregressive(4, layers=1),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("crosscoding.crosscoders.base._STEPS", 30)


# ---- every family ----------------------------------------------------------------------------


@every_family
def test_a_batch_is_fitted_as_its_entries_are_alone(family):
    draws = torch.randn(60, 3, 2, generator=seeded(0), dtype=torch.double)
    log_weights = torch.randn(60, 3, generator=seeded(1), dtype=torch.double)
    together = fit_to_draws(family, draws, log_weights, generator=seeded(2))
    for b in range(3):
        part = slice(b, b + 1)
        alone = fit_to_draws(family, draws[:, part], log_weights[:, part], generator=seeded(2))
        expected = together.log_prob(draws)[:, part]
        # in double, matrix products of other sizes round differently, and Adam amplifies that
        torch.testing.assert_close(alone.log_prob(draws[:, part]), expected, rtol=1e-6, atol=1e-6)


@every_family
def test_a_draw_of_weight_two_is_two_draws(family):
    draws = torch.randn(40, 2, 2, generator=seeded(0), dtype=torch.double)
    weights = torch.cat([torch.full((20, 2), 2.0), torch.ones(20, 2)]).double()
    weighted = fit_to_draws(family, draws, weights.log() + 7, generator=seeded(2))
    repeated = fit_to_draws(family, torch.cat([draws[:20], draws]), None, generator=seeded(2))
    if (
        family == FAMILIES["Mixture"]
    ):  # clusters start at other points: similar likelihoods are enough
        one, other = weighted.log_prob(draws), repeated.log_prob(draws)
        assert ((weights * (one - other)).sum(0) / weights.sum(0)).abs().max() < 0.2
        return
    # the effective number of draws, 54 and 60, enters into the shrinkage
    torch.testing.assert_close(
        weighted.log_prob(draws), repeated.log_prob(draws), rtol=0.02, atol=0.02
    )


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fit_has_the_draws_dtype_and_no_gradients(family, dtype):
    draws = torch.randn(40, 2, 2, generator=seeded(0), dtype=dtype)
    fitted = fit_to_draws(family, draws, generator=seeded(1))
    assert {p.dtype for p in fitted.params.values()} == {dtype}
    assert not any(p.requires_grad for p in fitted.params.values())
    wanted = family.start(draws[0], draws[0].exp(), generator=seeded(0))
    assert {k: p.shape for k, p in fitted.params.items()} == {k: p.shape for k, p in wanted.items()}


@every_family
def test_the_same_seed_gives_the_same_fit(family):
    draws = torch.randn(40, 2, 2, generator=seeded(0))
    one, other = (fit_to_draws(family, draws, generator=seeded(1)).params for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@every_family
@pytest.mark.parametrize("dim", [1, 5])
def test_a_single_draw_of_weight_leaves_a_density(family, dim):
    """With an effective number of 1, everything is narrow and nothing is NaN."""
    draws = torch.randn(30, 2, dim, generator=seeded(0), dtype=torch.double)
    log_weights = torch.full((30, 2), -1e4).double()
    log_weights[4] = 0
    fitted = fit_to_draws(family, draws, log_weights, generator=seeded(1))
    assert fitted.log_prob(draws[4]).isfinite().all()


@every_family
def test_an_empty_batch_has_an_empty_fit(family):
    fitted = fit_to_draws(family, torch.ones(5, 0, 2), generator=seeded(0))
    assert fitted.log_prob(torch.zeros(7, 0, 2)).shape == (7, 0)


@pytest.mark.parametrize(
    "family", [Planar(2), Spline(2, bins=4, hidden=4), InverseAutoregressive(4)], ids=repr
)
def test_a_flow_increases_the_likelihood_of_the_draws(family, monkeypatch):
    noise = torch.randn(200, 1, 2, generator=seeded(0))
    draws = torch.stack([noise[..., 0], noise[..., 0].square() + 0.3 * noise[..., 1]], dim=-1)
    likelihood = []
    for steps in (1, 200):
        monkeypatch.setattr("crosscoding.crosscoders.base._STEPS", steps)
        fitted = fit_to_draws(family, draws, generator=seeded(1))
        likelihood.append(fitted.log_prob(draws).mean())
    # the fit starts at a normal, half a nat or more from the banana
    assert likelihood[1] > likelihood[0] + 0.4


# ---- Gaussians -------------------------------------------------------------------------------


def test_a_gaussian_has_the_weighted_moments_of_many_draws():
    generator = seeded(0)
    root = torch.randn(3, 4, 4, generator=generator, dtype=torch.double)
    root = torch.logspace(-2, 1, 4).double()[:, None] * (root + torch.eye(4))
    noise = torch.randn(20_000, 3, 4, generator=generator, dtype=torch.double)
    draws = 3 + torch.einsum("sbj,bij->sbi", noise, root)
    log_weights = torch.randn(20_000, 3, generator=seeded(2), dtype=torch.double)
    fitted = fit_to_draws(Gaussian(), draws, log_weights, generator=seeded(0))
    weights = log_weights.softmax(0)
    mean = torch.einsum("sb,sbi->bi", weights, draws)
    centred = draws - mean
    covariance = torch.einsum("sb,sbi,sbj->bij", weights, centred, centred)
    lower, log_diagonal = fitted.params["lower"], fitted.params["log_diagonal"]
    root = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    torch.testing.assert_close(fitted.params["shift"], mean)
    # only the smallest shrinkage, 0.001 of the correlations
    scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
    scale = scale[:, :, None] * scale[:, None]
    assert ((root @ root.mT - covariance) / scale).abs().max() < 1.1e-3


@pytest.mark.parametrize("num", [10, 40, 200])
def test_shrinkage_brings_a_gaussian_closer_to_the_truth(num):
    dim = 20
    covariance = torch.eye(dim).double() + 0.5
    exact = MultivariateNormal(torch.zeros(dim).double(), covariance)
    noise = torch.randn(num, 8, dim, generator=seeded(1), dtype=torch.double)
    draws = noise @ exact.scale_tril.mT
    fitted = fit_to_draws(Gaussian(), draws, generator=seeded(0))
    test = torch.randn(2000, 8, dim, generator=seeded(2), dtype=torch.double) @ exact.scale_tril.mT
    kl = (exact.log_prob(test) - fitted.log_prob(test)).mean(0)
    assert kl.isfinite().all()
    if num > dim:  # fewer draws have a singular covariance
        centred = draws - draws.mean(0)
        covariance = torch.einsum("sbi,sbj->bij", centred, centred) / num
        plain = Gaussian.from_moments(draws.mean(0), covariance)
        assert kl.mean() < (exact.log_prob(test) - plain.log_prob(test)).mean()


def test_shrinkage_removes_noise_and_keeps_correlations():
    """Thirty dimensions without correlations, and with one pair correlated by 0.99."""
    draws = torch.randn(500, 2, 30, generator=seeded(0), dtype=torch.double)
    draws[:, 1, 1] = 0.99 * draws[:, 1, 0] + 0.14 * draws[:, 1, 1]
    fitted = fit_to_draws(Gaussian(), draws, generator=seeded(0))
    lower, log_diagonal = fitted.params["lower"], fitted.params["log_diagonal"]
    root = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    covariance = root @ root.mT
    scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
    correlation = covariance / (scale[:, :, None] * scale[:, None])
    # correlations of 500 draws by chance alone are 0.045 and up to 0.15
    assert (correlation[0] - torch.eye(30)).abs().max() < 0.1
    assert correlation[1, 0, 1] > 0.8


def test_a_diagonal_gaussian_has_the_variances():
    draws = torch.randn(50, 2, 3, generator=seeded(0)) * torch.tensor([0.1, 1.0, 10.0])
    fitted = fit_to_draws(Gaussian(diagonal=True), draws, generator=seeded(0))
    torch.testing.assert_close(fitted.params["shift"], draws.mean(0))
    torch.testing.assert_close(fitted.params["log_diagonal"].exp(), draws.std(0, correction=0))


@pytest.mark.parametrize(("dim", "num"), [(6, 2000), (40, 2000), (300, 200)])
def test_a_low_rank_gaussian_finds_factors_and_noise(dim, num):
    generator = seeded(0)
    columns = 2 * torch.randn(2, dim, 2, generator=generator, dtype=torch.double)
    noise = 0.5 + torch.rand(2, dim, generator=generator, dtype=torch.double)
    hidden = torch.randn(num, 2, 2, generator=generator, dtype=torch.double)
    own = torch.randn(num, 2, dim, generator=generator, dtype=torch.double)
    draws = 5 + torch.einsum("sbr,bdr->sbd", hidden, columns) + noise.sqrt() * own
    fitted = fit_to_draws(Gaussian(rank=2), draws, generator=seeded(0))
    covariance = columns @ columns.mT + torch.diag_embed(noise)
    exact = MultivariateNormal(torch.full((2, dim), 5.0).double(), covariance)
    fresh = torch.randn(1000, 2, dim, generator=generator, dtype=torch.double)
    fresh = exact.mean + torch.einsum("sbj,bij->sbi", fresh, exact.scale_tril)
    kl = (exact.log_prob(fresh) - fitted.log_prob(fresh)).mean(0)
    # 1 / 2n nats for each of 5 parameters per dimension, and as much again for EM's early stop
    assert (kl < 5 * dim / num + 0.02).all()


# ---- mixtures --------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mixture_finds_the_masses_of_all_modes(components, seed):
    target, num = mixture_target(torch.double), 4000
    draws = target.sample(num, generator=seeded(seed)).unsqueeze(1)
    fitted = fit_to_draws(Mixture(components), draws, generator=seeded(seed))
    fresh, _ = fitted.rsample_and_log_prob(num, generator=seeded(seed))
    # five standard errors of shares of 4,000 draws; two of the modes touch, which `masses` takes
    # the same way in both
    exact = target.masses(target.sample(100_000, generator=seeded(9)).unsqueeze(1))
    error = (exact * (1 - exact) * 2 / num).sqrt()
    assert ((target.masses(fresh) - exact).abs() < 5 * error).all()
    assert (target.log_prob(draws) - fitted.log_prob(draws)).mean() < 0.02


def test_a_mixture_of_one_is_nearly_the_gaussian():
    draws = torch.randn(500, 2, 3, generator=seeded(0), dtype=torch.double)
    draws = draws @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 2.0]]).double()
    one = fit_to_draws(Mixture(1), draws, generator=seeded(0)).log_prob(draws)
    other = fit_to_draws(Gaussian(), draws, generator=seeded(0)).log_prob(draws)
    assert (one - other).mean(0).abs().max() < 0.01  # they differ by 4 draws' worth of shrinkage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num", [30, 300])
def test_a_mixture_of_few_draws_in_many_dimensions_stays_well_conditioned(num, dtype):
    """5 × 231 parameters of a mixture from so few draws: without shrinkage it is singular."""
    draws = torch.randn(num, 4, 20, generator=seeded(0), dtype=dtype)
    fitted = fit_to_draws(Mixture(5), draws, generator=seeded(0))
    fresh = torch.randn(2000, 4, 20, generator=seeded(1), dtype=dtype)
    exact = -0.5 * (fresh.square() + math.log(2 * math.pi)).sum(-1)
    kl = (exact - fitted.log_prob(fresh)).mean(0)
    spread = fitted.params["log_diagonal"].exp()
    assert (spread > 0.2).all()
    # each of a Gaussian's 230 parameters costs 1 / 2 n nats, if n is many
    assert (kl < 5 * 230 / (2 * num)).all()


def test_a_far_mode_of_small_weight_is_found():
    noise = 0.3 * torch.randn(1000, 1, 2, generator=seeded(0))
    draws = noise + torch.where(torch.arange(1000) < 50, 20.0, 0.0)[:, None, None]
    fitted = fit_to_draws(Mixture(2), draws, generator=seeded(0))
    weights, order = fitted.params["logits"].softmax(-1)[0].sort()
    # one of 1,000 draws is spread evenly
    torch.testing.assert_close(weights, torch.tensor([0.05, 0.95]), rtol=0, atol=2e-3)
    centres = fitted.params["shift"][0, order]
    torch.testing.assert_close(centres.mean(-1), torch.tensor([20.0, 0.0]), rtol=0, atol=0.2)


# ---- errors ----------------------------------------------------------------------------------


def test_another_type_is_refused():
    with pytest.raises(TypeError, match=r"such as Gaussian\(\), got str"):
        fit_to_draws("gvi", torch.randn(5, 1, 2, generator=seeded(0)), generator=seeded(0))


@pytest.mark.parametrize("shape", [(5, 2), (1, 3, 2), (4, 5, 3, 2)])
def test_draws_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"draws of shape \(S, B, dim\), S >= 2, got"):
        fit_to_draws(Gaussian(), torch.randn(shape, generator=seeded(0)), generator=seeded(0))


def test_draws_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="draws that differ in every element"):
        fit_to_draws(Gaussian(), torch.ones(5, 1, 2), generator=seeded(0))


def test_draws_that_are_not_finite_are_refused():
    draws = torch.randn(5, 1, 2, generator=seeded(0))
    draws[2, 0, 1] = math.nan
    with pytest.raises(cc.NonFiniteError, match="expected finite draws"):
        fit_to_draws(Gaussian(), draws, generator=seeded(0))


def test_weights_of_another_shape_are_refused():
    draws = torch.randn(5, 1, 2, generator=seeded(0))
    with pytest.raises(ValueError, match=r"log_weights of shape \(5, 1\), one for each draw, got"):
        fit_to_draws(Gaussian(), draws, torch.zeros(5), generator=seeded(0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_invalid_weights_are_refused(value):
    draws = torch.randn(5, 2, 2, generator=seeded(0))
    log_weights = torch.zeros(5, 2)
    log_weights[:, 1] = value
    with pytest.raises(cc.NonFiniteError, match="at least one above -inf for each query"):
        fit_to_draws(Gaussian(), draws, log_weights, generator=seeded(0))


def test_a_family_without_a_density_is_refused():
    draws = torch.randn(5, 1, 2, generator=seeded(0))
    with pytest.raises(NotImplementedError, match="FCN is not one-to-one"):
        fit_to_draws(FCN((4,)), draws, generator=seeded(0))
