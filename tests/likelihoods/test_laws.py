"""p(t|z) of elements known in part: masses, moments and draws against sums and integrals."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from families import CUTS, DOUBLE, FAMILIES, SPREAD, TOTALS, E
from problems import seeded

from crosscoding.likelihoods import Bernoulli, Gaussian, Laplace, Likelihood, Ordinal, StudentT
from crosscoding.likelihoods.laws import CountLaw, Known, TruncatedNormal, TruncatedStudent
from crosscoding.likelihoods.laws.normal import _by_logarithms, log_ndtr, log_normal_mass

PARTLY = {
    "Gaussian": Gaussian(SPREAD),
    "Bernoulli": Bernoulli(),
    "Bernoulli of probabilities": Bernoulli(logits=False),
    **{
        name: family.likelihood
        for name, family in FAMILIES.items()
        if "interval" in family.likelihood.uncertain
    },
}
LOW = torch.tensor([[-0.5, 0.1, 1.0, 2.0, -3.0, 0.2], [0.3, -1.0, 0.0, 1.0, 0.4, -0.1]]).double()
HIGH = LOW + torch.tensor([1.0, 0.3, 2.0, 5.0, 4.0, 0.9]).double()
NO_BOUND = torch.full((2, E), math.inf, dtype=DOUBLE)
NOTHING = torch.zeros(2, E, dtype=DOUBLE)


def params_of(name: str, *sample: int) -> torch.Tensor:
    if name in FAMILIES:
        return FAMILIES[name].decoded(*sample, 2)
    noise = torch.randn(*sample, 2, E, generator=seeded(1), dtype=DOUBLE)
    return noise.sigmoid() if name.endswith("probabilities") else noise


def of_two(likelihood: Likelihood) -> Likelihood:
    """The likelihood with its settings for two queries of E elements each."""
    return likelihood.of_elements(torch.arange(E).expand(2, -1))


def is_discrete(likelihood: Likelihood) -> bool:
    return likelihood.kind in ("counts", "classes", "binary") or likelihood.width is not None


def ends_of(name: str) -> tuple[float, float]:
    return FAMILIES[name].ends if name in FAMILIES else (-40.0, 40.0)


def bounds_for(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    likelihood, (first, last) = PARTLY[name], ends_of(name)
    if likelihood.kind == "counts":
        return (LOW.abs() * 2).round(), (LOW.abs() * 2).round() + 2
    if is_discrete(likelihood) and likelihood.width is None:  # at least one class within
        return LOW.abs().clamp_max(1).floor(), (LOW.abs().clamp_max(1).floor() + 1)
    if likelihood.width is not None or last == 1:
        return LOW.abs().clamp_max(0.6), LOW.abs().clamp_max(0.6) + 0.3
    if first >= 0:
        return LOW.abs(), LOW.abs() + 0.4
    return LOW.clamp(-0.9, 0.5), LOW.clamp(-0.9, 0.5) + 0.4


def reference(name: str, params: torch.Tensor, known: Known) -> tuple[torch.Tensor, ...]:
    """log mass, mean and variance by a sum over values, or an integral between finite bounds."""
    likelihood = of_two(PARTLY[name])
    low, high = known.low.clamp_min(ends_of(name)[0]), known.high.clamp_max(ends_of(name)[1])
    if is_discrete(likelihood):
        values = torch.arange(2000, dtype=DOUBLE)
        if likelihood.width is not None:
            values = likelihood.low + torch.arange(likelihood.bins) * likelihood.width
        elif likelihood.kind != "counts":
            values = values[: getattr(likelihood, "num_classes", 2)]
        elif hasattr(likelihood, "concentration"):
            values = values[: int(torch.as_tensor(likelihood.total_count).max()) + 1]
        weights = known.log_weight(values)
        values = values.expand(*params.shape[:2], len(values))
    else:
        nodes, weights = np.polynomial.legendre.leggauss(20)
        panels = torch.linspace(0, 1, 401, dtype=DOUBLE)
        places = (
            panels[:-1, None] + (panels[1:] - panels[:-1])[:, None] * (nodes + 1) / 2
        ).flatten()
        weights = torch.as_tensor(np.tile(weights / 800, 400)).log()
        values = low[..., None] + (high - low)[..., None] * places
        noise = torch.where(known.noise > 0, known.noise, 1.0)[..., None]
        density = scipy.stats.norm.logpdf(known.value[..., None], values, noise)
        noisy = torch.where(known.noise[..., None] > 0, torch.as_tensor(density), 0.0)
        weights = weights + (high - low)[..., None].log() + noisy
    terms = likelihood.log_probs_at(params, values).double() + weights
    mass = terms.logsumexp(-1)
    shares = (terms - mass[..., None]).exp()
    mean = (shares * values).sum(-1)
    return mass, mean, (shares * (values - mean[..., None]).square()).sum(-1)


def check(name: str, known: Known) -> None:
    likelihood, params = of_two(PARTLY[name]), params_of(name)
    law = likelihood.law(params, known)
    mass, mean, variance = reference(name, params, known)
    torch.testing.assert_close(law.log_mass, mass, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(law.mean(), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(law.variance(), variance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PARTLY)
def test_mass_and_moments_within_an_interval(name):
    low, high = bounds_for(name)
    check(name, Known(NOTHING, NOTHING, low, high))


@pytest.mark.parametrize(
    "name", [name for name, family in PARTLY.items() if "noise" in family.uncertain]
)
def test_mass_and_moments_given_a_noisy_value(name):
    low, high = bounds_for(name)
    noise = torch.linspace(0.1, 0.7, E, dtype=DOUBLE).expand(2, -1)
    check(name, Known(0.5 * (low + high) + 0.1, noise, -NO_BOUND, NO_BOUND))
    check(name, Known(low, noise, low, high))


@pytest.mark.parametrize(
    "name", [name for name, family in PARTLY.items() if "set" in family.uncertain]
)
def test_mass_and_moments_within_a_set(name):
    num = getattr(PARTLY[name], "num_classes", 4) if PARTLY[name].kind != "binary" else 2
    allowed = torch.rand(2, E, num, generator=seeded(0)) < 0.5
    allowed[..., 0], allowed[..., 1] = ~allowed[..., 1:].any(-1), allowed[..., 1:].any(-1)
    check(name, Known(NOTHING, NOTHING, -NO_BOUND, NO_BOUND, allowed))


@pytest.mark.parametrize("name", PARTLY)
def test_masses_of_two_halves_sum_to_one(name):
    likelihood, params = of_two(PARTLY[name]), params_of(name)
    low, _ = bounds_for(name)
    step = 1.0 if likelihood.width is None else likelihood.width
    next_ = low.floor() + 1 if is_discrete(likelihood) and likelihood.width is None else low
    if likelihood.width is not None:
        next_ = torch.nextafter(low, low + step)
    below = likelihood.law(params, Known(NOTHING, NOTHING, -NO_BOUND, low)).log_mass
    above = likelihood.law(params, Known(NOTHING, NOTHING, next_, NO_BOUND)).log_mass
    # tails of counts are right to 1e-4
    torch.testing.assert_close(
        below.exp() + above.exp(), torch.ones(2, E).double(), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("name", PARTLY)
def test_gradients_of_the_mass_are_those_of_differences(name):
    likelihood, params = of_two(PARTLY[name]), params_of(name)
    low, high = bounds_for(name)
    for known in (Known(NOTHING, NOTHING, low, high), Known(NOTHING, NOTHING, low, NO_BOUND)):
        own = params.clone().requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.law(own, known).log_mass.sum(), own)
        direction = torch.randn(params.shape, generator=seeded(0), dtype=DOUBLE)
        ahead, behind = (
            likelihood.law(params + side * 1e-6 * direction, known).log_mass for side in (1, -1)
        )
        wanted = (ahead - behind) / 2e-6
        slope = (slope * direction).reshape(2, E, -1).sum(-1)
        torch.testing.assert_close(slope, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PARTLY)
@pytest.mark.slow
def test_draws_have_the_moments_of_the_law_and_stay_within_bounds(name):
    num = 4000
    likelihood, params = (
        of_two(PARTLY[name]),
        params_of(name).expand(num, *[-1] * params_of(name).ndim),
    )
    low, high = bounds_for(name)
    for known in (Known(NOTHING, NOTHING, low, high), Known(NOTHING, NOTHING, low, NO_BOUND)):
        law = likelihood.law(params, known)
        draws = law.draw(torch.rand(num, 2, E, generator=seeded(0), dtype=DOUBLE))
        assert ((draws >= known.low) & (draws <= known.high)).all()
        mean, variance = law.mean()[0], law.variance()[0]
        span = (draws.amax(0) - draws.amin(0)).clamp_min(float(is_discrete(likelihood)))
        rare = 10 / num * span  # events too rare for normal errors
        error = 5 * (variance / num).sqrt() + rare + 1e-9
        assert ((draws.mean(0) - mean).abs() <= error).all()
        fourth = (draws - mean).pow(4).mean(0)
        error = 6 * ((fourth - variance.square()).clamp_min(0) / num).sqrt()
        error = error + rare * span + 1e-9
        assert ((draws.var(0) - variance).abs() <= error).all()


def test_normal_masses_are_exact_in_the_tails():
    low = torch.tensor([30.0, -1e5, 8.0, 2.0], dtype=DOUBLE)
    high = torch.tensor([31.0, -1e5 + 1, math.inf, 2.0 + 1e-9], dtype=DOUBLE)
    mean = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    law = TruncatedNormal(mean, torch.ones(4, dtype=DOUBLE), low, high)
    wanted = [  # of 60 digits
        -454.32124394634327,
        -4999900012.931854,
        -35.01343715991455,
        math.log(high[3] - low[3]) - 2.0 - 0.5 * math.log(2 * math.pi),
    ]
    torch.testing.assert_close(law.log_mass, torch.tensor(wanted, dtype=DOUBLE), rtol=1e-9, atol=0)
    (slope,) = torch.autograd.grad(law.log_mass.sum(), mean)
    assert slope.isfinite().all()
    torch.testing.assert_close(
        law.mean()[1], -1e5 + 1 - torch.tensor(1e-5).double(), rtol=1e-12, atol=0
    )


def test_gradients_of_normal_masses_are_those_of_logarithms_and_differentiable():
    """Of wide and narrow intervals, tails, and bounds on one side."""
    below = torch.tensor([-1.0, 3.0, -40.0, 1e5, -1e100, 0.2], dtype=DOUBLE, requires_grad=True)
    width = torch.tensor([2.0, 1e-7, 3.0, 1.0, 1e100, 1e-3], dtype=DOUBLE, requires_grad=True)
    upstream = torch.linspace(0.5, 2.0, 6, dtype=DOUBLE)

    def slopes(function, *, create_graph=False):
        value = function(below, below + width, width)
        return torch.autograd.grad(value, [below, width], upstream, create_graph=create_graph)

    for found, wanted in zip(slopes(log_normal_mass), slopes(_by_logarithms), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    ordinary = torch.tensor([1.0, 0, 0, 0, 0, 1.0], dtype=DOUBLE)
    seconds = []
    for function in (log_normal_mass, _by_logarithms):
        first, _ = slopes(function, create_graph=True)
        seconds.append(torch.autograd.grad((first * ordinary).sum(), below)[0])
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigmas", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("width", [1e-3, 1.0, math.inf])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_masses_of_tails_are_those_of_sixty_digits(sigmas, width, side):
    """log(F(b) − F(a)), for each tail, of every density of real numbers."""
    near, far = mpmath.mpf(sigmas), mpmath.mpf(sigmas + width)
    ends = sorted([side * sigmas, side * (sigmas + width)])
    known = Known(NOTHING[:1, :1], NOTHING[:1, :1], *(NOTHING[:1, :1] + end for end in ends))
    upper_tails = {
        "Gaussian": lambda x: mpmath.erfc(x / mpmath.sqrt(2)) / 2,
        "Laplace": lambda x: mpmath.exp(-x) / 2,
        "StudentT": lambda x: mpmath.betainc(20, 0.5, 0, 40 / (40 + x**2), regularized=True) / 2,
    }
    laws = {"Gaussian": Gaussian(1.0), "Laplace": Laplace(1.0), "StudentT": StudentT(40.0, 1.0)}
    with mpmath.workdps(60):
        for name, tail in upper_tails.items():
            wanted = mpmath.log(tail(near) - (tail(far) if far < mpmath.inf else 0))
            mean = torch.zeros(1, 1, 1, dtype=DOUBLE, requires_grad=True)
            found = laws[name].law(mean, known).log_mass
            assert found.item() == pytest.approx(float(wanted), rel=1e-11), name
            (slope,) = torch.autograd.grad(found.sum(), mean)
            assert side * slope.item() > 0


@pytest.mark.parametrize(
    ("df", "low", "high"),
    [
        (1000, 100, 101),
        (1000, 37, math.inf),
        (1e6, -42, -40),
        (40, 1e30, math.inf),
        (3, -2e9, -1e9),
    ],
)
def test_student_masses_draws_and_means_where_probabilities_underflow(df, low, high):
    location = torch.zeros(1, 1, dtype=DOUBLE, requires_grad=True)
    scale, degrees = torch.ones(1, 1, dtype=DOUBLE), torch.full((1, 1), float(df), dtype=DOUBLE)
    bounds = (torch.full((1, 1), float(end), dtype=DOUBLE) for end in (low, high))
    law = TruncatedStudent(degrees, location, scale, *bounds)
    near, far = sorted([abs(low), abs(high)])
    with mpmath.workdps(60):

        def tail(x):
            v = mpmath.mpf(df)
            share = v / (v + mpmath.mpf(x) ** 2)
            return mpmath.betainc(v / 2, 0.5, 0, share, regularized=True) / 2 if x < math.inf else 0

        mass = tail(near) - tail(far)
        assert law.log_mass.item() == pytest.approx(float(mpmath.log(mass)), rel=1e-11)
        levels = torch.tensor([[0.1], [0.5], [0.999]], dtype=DOUBLE)
        drawn = law.draw(levels[:, None]).detach().flatten().tolist()
        # what is left of the interval beyond the draw, away from the location
        shares = [float((tail(abs(x)) - tail(far)) / mass) for x in drawn]
        assert shares == pytest.approx(levels.flatten().tolist(), abs=1e-8)
    assert low <= law.mean().item() <= high
    (slope,) = torch.autograd.grad(law.log_mass.sum(), location)
    by_power = df / near if near > 1e3 * df**0.5 else None  # log F falls as −ν log |x|
    assert by_power is None or abs(slope.item()) >= 0.9 * by_power


def test_log_ndtr_is_exact_on_both_sides_of_where_its_series_takes_over():
    x = torch.tensor([-1e3, -35.001, -34.999, -5.0, -0.0, 0.3, 7.0, 30.0], dtype=DOUBLE)
    wanted = torch.as_tensor(scipy.stats.norm.logcdf(x.numpy()))
    x.requires_grad_()
    torch.testing.assert_close(log_ndtr(x).detach(), wanted, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(log_ndtr(x).sum(), x)
    log_density = torch.as_tensor(scipy.stats.norm.logpdf(x.detach().numpy()))
    torch.testing.assert_close(slope, (log_density - wanted).exp(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [(0.5, 8.0, math.inf), (1e4, 1.05e4, math.inf), (1e4, 9e3, 1.01e4), (1e6, 0.0, 9.97e5)],
)
def test_tails_of_counts_of_any_size(rate, low, high):
    rate_ = torch.full((1, 1, 1), rate, dtype=DOUBLE)
    law = CountLaw(
        lambda k: k * math.log(rate) - rate - (k + 1).lgamma(),
        lambda noise, where: rate_[where],
        rate_,
        rate_,
        torch.full((1, 1), low, dtype=DOUBLE),
        torch.full((1, 1), high, dtype=DOUBLE),
    )
    above = scipy.stats.poisson.sf(low - 1, rate)
    mass = above - (scipy.stats.poisson.sf(high, rate) if high < math.inf else 0)
    assert law.log_mass.item() == pytest.approx(math.log(mass), abs=2e-4)


def test_settings_per_element_follow_their_elements():
    order = torch.tensor([[3, 1], [0, 5]])
    likelihood = Ordinal(CUTS).of_elements(order)
    params = torch.zeros(2, 2, dtype=DOUBLE)
    known = Known(*(torch.zeros(2, 2, dtype=DOUBLE) for _ in range(4)))  # class 0
    torch.testing.assert_close(
        likelihood.law(params, known).log_mass, CUTS[order][..., 0].sigmoid().log()
    )
    assert TOTALS.shape == (E,)
