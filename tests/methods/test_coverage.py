"""Bare densities wider than their prior: the answer is right, or not trusted."""

import math
import time

import densities
import numpy as np
import pytest
import torch

import crosscoding as cc
from crosscoding.crosscoders.heavy_tailed_mixture import EACH_CAUCHY, NORMAL, log_kernel, tailed
from crosscoding.methods import Auto, Importance, Laplace, Rejection, TemperedSMC
from crosscoding.methods.numerics.covering_reference import KINDS, Reference, covered
from crosscoding.methods.numerics.missing_mass import share_lacking
from crosscoding.result.verdict import SEARCHED_DIM

METHODS = {
    "Auto": Auto(),
    "TemperedSMC": TemperedSMC(),
    "Importance": Importance(),
    "bank": Importance(rounds=0),
    "Laplace": Laplace(),
}


def answered(density, method, scale=1.0, dtype=torch.float32):
    target = cc.DensityTarget(
        density.log_density, density.dim, prior_scale=scale, like=torch.empty(0, dtype=dtype)
    )
    posterior = cc.infer(target, method, seed=0)
    return posterior, (posterior.log_evidence - density.log_integral).abs().item()


def is_right(posterior, error) -> bool:
    return error < 0.05 + 4 * posterior.log_evidence_error.item()


SCALES = [0.3, 1.0, 3.0, 10.0]
# Each method meets each density at two scales, and each scale with half of the densities.
PAIRINGS = [
    (method, name, scale)
    for i, method in enumerate(METHODS)
    for j, name in enumerate(densities.WIDE)
    for scale in SCALES[(i + j) % 2 :: 2]
]


@pytest.mark.parametrize(("method", "name", "scale"), PAIRINGS)
@pytest.mark.slow
def test_a_trusted_answer_on_a_wide_density_is_right(method, name, scale):
    posterior, error = answered(densities.WIDE[name], METHODS[method], scale)
    assert not posterior.trusted or is_right(posterior, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [Auto(), TemperedSMC()])
@pytest.mark.parametrize(
    ("density", "scale"),
    [(densities.student_t(2, 1), 3.0), (densities.normal(3, 2.5), 1.0)],
    ids=["Cauchy", "wide normal"],
)
@pytest.mark.slow
def test_wide_densities_are_answered_and_trusted(method, density, scale, dtype):
    posterior, error = answered(density, method, scale, dtype)
    assert posterior.trusted
    assert error < 0.02 + 3 * posterior.log_evidence_error.item()


@pytest.mark.parametrize("name", ["Cauchy", "shifted normal", "Laplace"])
def test_most_wide_densities_are_trusted(name):
    density = densities.WIDE[name]
    posterior, error = answered(density, Auto())
    assert posterior.trusted == (density.dim <= SEARCHED_DIM)
    assert is_right(posterior, error)


@pytest.mark.parametrize("method", METHODS)
def test_a_narrow_mode_that_nothing_sees_is_not_trusted(method):
    """Half of the mass, half as wide and twelve standard deviations away, in 10 dimensions."""
    density = densities.mixture([[0.0] * 10, [4.0] * 10], [1.0, 0.5])
    posterior, _ = answered(density, METHODS[method])
    assert not posterior.trusted


def test_a_search_that_may_miss_a_narrow_mode_says_so():
    posterior, error = answered(densities.normal(5, 2.0), Auto())
    assert is_right(posterior, error)
    (verdict,) = posterior.verdicts
    assert verdict.label == "approximate"
    assert "no search finds every narrow mode" in verdict.reasons[0]
    assert verdict.advice.startswith("nothing more can be checked")


@pytest.mark.parametrize("method", [Auto(), TemperedSMC()])
def test_a_target_of_any_class_is_not_trusted_in_many_dimensions(method):
    """The rule is for what no prior bounds, not for `DensityTarget` alone."""
    density = densities.normal(5, 1.0)
    target = covered(cc.DensityTarget(density.log_density, 5).flatten(), torch.Generator())
    assert not isinstance(target, cc.DensityTarget)
    posterior = cc.infer(target, method, seed=0)
    assert not posterior.trusted.any()
    assert is_right(posterior, (posterior.log_evidence - density.log_integral).abs().item())


def test_the_rule_for_many_dimensions_outlives_saving(tmp_path):
    target = cc.DensityTarget(densities.normal(5, 1.0).log_density, 5)
    posterior = cc.infer(target, Auto(), seed=0)
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert again.verdicts[0].reasons == posterior.verdicts[0].reasons
    assert not again.trusted


def test_rejection_draws_from_a_density_wider_than_its_prior():
    density = densities.normal(2, 2.5)
    posterior, error = answered(density, Rejection(num_draws=4000))
    assert error < 0.05
    assert posterior.draws.std(0).allclose(torch.tensor(2.5), rtol=0.05)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", [Auto(), TemperedSMC()])
@pytest.mark.parametrize(("dim", "spread"), [(6, 3.0), (8, 2.0)])
@pytest.mark.slow
def test_a_funnel_whose_neck_is_not_found_is_not_trusted(dim, spread, method, seed):
    """Particles do not get into the neck, and importance weights do not show it."""
    density = densities.funnel(dim, spread)
    posterior = cc.infer(cc.DensityTarget(density.log_density, dim), method, seed=seed)
    error = (posterior.log_evidence - density.log_integral).abs().item()
    assert not posterior.trusted or is_right(posterior, error)


@pytest.mark.parametrize("method", [Auto(), TemperedSMC(), Importance(rounds=0)])
@pytest.mark.parametrize(
    "log_density",
    [
        lambda z: 0 * z.sum(-1),
        lambda z: -0.5 * z.square().sum(-1).log1p(),
        lambda z: -0.55 * z.square().sum(-1).log1p(),
        lambda z: -0.5 * z[..., 0].clamp_min(0).square(),
    ],
    ids=["flat", "slow", "barely integrable in 1-d", "open on one side"],
)
@pytest.mark.slow
def test_a_density_with_no_integral_or_hardly_one_is_not_trusted(log_density, method):
    posterior = cc.infer(cc.DensityTarget(log_density, 1), method, seed=0)
    assert not posterior.trusted


def test_the_reference_is_normalised():
    target = cc.DensityTarget(lambda z: -((z - 1) / 3).square().sum(-1), 1)
    reference = Reference.of(target)
    z = torch.linspace(-1e4, 1e4, 2_000_001, dtype=torch.double)[:, None]
    mass = reference.log_prob(z).exp().sum() * (z[1] - z[0])
    beyond = 0.3 * 2 / math.pi * reference.root.item() / 1e4  # of the two Cauchy parts
    torch.testing.assert_close(mass.item(), 1 - beyond, atol=1e-5, rtol=0)


def test_draws_of_the_reference_have_its_density():
    """E_r[f] by draws, and by the density at points of another distribution."""
    target = cc.DensityTarget(lambda z: -0.5 * ((z - 2) / 3).square().sum(-1), 2).flatten()
    seen = covered(target, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    z = seen.draw_prior(200_000, generator=generator)
    other = 4 * torch.randn(200_000, 2, generator=generator) + 1
    log_other = -0.5 * ((other - 1) / 4).square().sum(-1) - math.log(2 * math.pi * 16)
    ratio = (seen.log_prior(other) - log_other).exp()
    for f in (lambda z: (-z.square().sum(-1)).exp(), lambda z: (z - 2).norm(dim=-1) < 3):
        torch.testing.assert_close(
            f(z).float().mean(), (ratio * f(other)).mean(), atol=0.01, rtol=0.02
        )


@pytest.mark.parametrize("kind", [*KINDS, 2])
def test_tailed_noise_has_its_density(kind):
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(200_000, 2, generator=generator, dtype=torch.double)
    more = torch.randn(200_000, 4, generator=generator, dtype=torch.double)
    draws = tailed(eps, more, kind)
    axis = torch.linspace(-3, 3, 301, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    inside = log_kernel(grid, kind).exp().sum() * (axis[1] - axis[0]).square()
    share = (draws.abs() < 3).all(-1).double().mean()
    torch.testing.assert_close(share.item(), inside.item(), atol=0.006, rtol=0)
    assert (kind == NORMAL) == torch.equal(draws, eps)


def test_components_that_are_cauchy_in_each_element_are_heavy_along_an_axis():
    far = torch.tensor([1e4, 0.0])
    assert log_kernel(far, EACH_CAUCHY) > log_kernel(far, 1) + 5


def test_a_complete_answer_lacks_nothing():
    density = densities.student_t(3, 2)
    target = cc.DensityTarget(density.log_density, 3)
    posterior = cc.infer(target, Importance(rounds=0), seed=0)
    assert share_lacking(covered(target.flatten(), torch.Generator()), posterior._findings) == 0


def test_missing_tails_are_noticed():
    """Half of a normal distribution, presented as all of it."""
    density = densities.normal(2, 2.0)
    target = cc.DensityTarget(density.log_density, 2)
    posterior = cc.infer(target, Rejection(), seed=0)
    findings = posterior._findings
    findings.draws = findings.draws.clone()
    findings.draws[..., 0] = findings.draws[..., 0].abs()
    findings.log_evidence = findings.log_evidence - math.log(2)
    assert share_lacking(covered(target.flatten(), torch.Generator()), findings) > 0.1


@pytest.mark.parametrize("method", [Auto(), TemperedSMC(), Rejection(num_draws=200)])
def test_a_density_that_overflows_far_out_is_answered(method):
    def log_density(z):
        return -0.5 * z.square().sum(-1) + 0 * (z.square().sum(-1) * 3).exp()  # inf · 0 far out

    posterior = cc.infer(cc.DensityTarget(log_density, 2), method, seed=0)
    assert (posterior.log_evidence - math.log(2 * math.pi)).abs() < 0.05


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity")])
def test_a_density_without_a_value_near_0_is_named(value, word):
    def log_density(z):
        return torch.where(z[..., 0] > 1, value, -z.square().sum(-1))

    with pytest.raises(cc.NonFiniteError, match=rf"{word} from log_density at .* \|z\| ="):
        cc.infer(cc.DensityTarget(log_density, 2), seed=0)


@pytest.mark.parametrize("method", [Auto(), TemperedSMC(), Importance(), Rejection(num_draws=200)])
def test_a_density_that_autograd_cannot_follow_is_answered(method):
    """A box, constant within; and code that is not torch's."""
    box = cc.DensityTarget(lambda z: torch.where((z.abs() < 2).all(-1), 0.0, -math.inf).to(z), 2)
    posterior = cc.infer(box, method, seed=0)
    error = (posterior.log_evidence - math.log(16)).abs()
    assert error < 0.05 + 4 * posterior.log_evidence_error
    array = cc.DensityTarget(
        lambda z: torch.from_numpy(-0.5 * np.square(z.detach().numpy()).sum(-1)), 2
    )
    posterior = cc.infer(array, method, seed=0)
    assert (posterior.log_evidence - math.log(2 * math.pi)).abs() < 0.1


def test_a_density_without_a_value_where_its_mass_is_is_not_trusted():
    """N(0, 2.5² I) as far as |z| = 5, and NaN beyond."""

    def log_density(z):
        return torch.where(z.norm(dim=-1) > 5, math.nan, -0.08 * z.square().sum(-1))

    with pytest.warns(UserWarning, match="lies next to points z"):
        posterior = cc.infer(cc.DensityTarget(log_density, 2), seed=0)
    assert not posterior.trusted


@pytest.mark.parametrize("method", [Auto(), TemperedSMC()])
def test_a_mode_that_the_reference_has_lost_is_noticed(method):
    """Two modes 19 apart in 10 dimensions, of shares 0.7 and 0.3."""

    def log_density(z):
        shares = torch.tensor([0.7, 0.3]).log()
        each = torch.stack([-0.5 * (z + 3).square().sum(-1), -0.5 * (z - 3).square().sum(-1)], -1)
        return (each + shares).logsumexp(-1) - 5 * math.log(2 * math.pi)

    posterior = cc.infer(cc.DensityTarget(log_density, 10), method, seed=0)
    assert not posterior.trusted or is_right(posterior, posterior.log_evidence.abs().item())


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", densities.MODES)
@pytest.mark.slow
def test_no_mode_is_lost(name, scale):
    density = densities.MODES[name]
    posterior, error = answered(density, TemperedSMC(), scale)
    assert posterior.trusted == (density.dim <= SEARCHED_DIM)
    assert is_right(posterior, error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.1, 10.0])
@pytest.mark.slow
def test_a_trusted_answer_has_all_three_modes(method, scale):
    density = densities.MODES["three of unequal widths"]
    posterior, error = answered(density, METHODS[method], scale)
    assert not posterior.trusted or is_right(posterior, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_auto_has_the_share_of_each_mode(scale, dtype):
    density = densities.MODES["three of unequal widths"]
    posterior, error = answered(density, Auto(), scale, dtype)
    assert posterior.trusted
    assert error < 0.02 + 3 * posterior.log_evidence_error.item()
    means = torch.tensor([[-6.0, 0, 0], [6, 3, 0], [0, 0, 10]], dtype=dtype)
    nearest = torch.cdist(posterior.sample(2000, seed=0), means).argmin(-1)
    shares = nearest.bincount(minlength=3) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.3, 0.4]), rtol=0, atol=0.06)


def test_a_mode_found_by_luck_lowers_the_verdict():
    """Its basin is a thousandth of the volume around the other mode, ten times as wide."""
    density = densities.mixture([[0.0] * 3, [20.0, 20, 0]], [3.0, 0.3])
    target = cc.DensityTarget(density.log_density, 3)
    posterior = cc.infer(target, TemperedSMC(), seed=0)
    assert 0 < Reference.of(target).unseen <= 0.5
    assert not posterior.trusted


def test_the_verdict_mentions_a_search_that_was_cut_short():
    slow, density = 0.02, densities.MODES["three of unequal widths"]

    def log_density(z):
        time.sleep(slow)
        return density.log_density(z)

    target = cc.DensityTarget(log_density, 3)
    start = time.perf_counter()
    posterior = cc.infer(target, Auto(max_seconds=1.0), seed=0)
    assert time.perf_counter() - start < 1.6
    assert not posterior.trusted


def test_a_density_of_which_nothing_is_found_is_not_trusted():
    def log_density(z):
        inside = ((z - 30).abs() < 0.01).all(-1)
        return torch.where(inside, 0 * z.sum(-1), -math.inf)

    posterior = cc.infer(cc.DensityTarget(log_density, 2), Auto(), seed=0)
    assert not posterior.trusted
