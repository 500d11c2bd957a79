"""Unobserved elements do not affect p(z|x); if one has no prediction, it is named."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from cheap_methods import LISTED, every_method
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding import likelihoods
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)
from crosscoding.methods import HMC, Auto, Grid, Laplace, TemperedSMC

DTYPES = [torch.float32, torch.float64]
WEIGHTS = 0.7, -1.1, 0.4
SOME = ["auto", "grid", "hmc", "gvi", "laplace", "smc"]


class Columns(nn.Module):
    """Three lines through 0, and a fourth column that overflows from |z| = 2.5 on."""

    def __init__(self, dtype: torch.dtype, *, overflows: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([WEIGHTS], dtype=dtype))
        self.overflows = overflows
        self.rate = 14.2 if dtype == torch.float32 else 113.6

    def forward(self, z: Tensor) -> Tensor:
        lines = z * self.weight
        if not self.overflows:
            return lines
        return torch.cat([lines, (self.rate * z.square()).exp()], -1)


def evidence(values: list[float], num: int, dtype: torch.dtype) -> cc.Evidence:
    """Rows of which the first element is observed, (len(values), num), or (num,) of one."""
    rows = torch.full((len(values), num), math.nan, dtype=dtype)
    rows[:, 0] = torch.tensor(values, dtype=dtype)
    return cc.Evidence.from_nan(rows[0] if len(values) == 1 else rows)


def both_answers(method, values: list[float], dtype: torch.dtype) -> list[cc.Posterior]:
    return [
        cc.condition(
            cc.VAE(Columns(dtype, overflows=overflows), 1, Gaussian(0.5)),
            evidence(values, 3 + overflows, dtype),
            method,
            seed=0,
        )
        for overflows in (True, False)
    ]


@every_method
def test_an_unobserved_column_that_overflows_changes_no_bit(method):
    broken, without = both_answers(method, [0.3], torch.float32)
    for name in ("draws", "log_evidence", "c_elbo", "ess"):
        expected = getattr(without, name)
        torch.testing.assert_close(
            getattr(broken, name), expected, rtol=0, atol=0, equal_nan=True, msg=name
        )
    assert torch.equal(broken.trusted, without.trusted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[0.3], [0.3, -1.0]], ids=["()", "(2,)"])
def test_log_p_of_the_evidence_is_exact_beside_a_column_that_overflows(values, dtype):
    broken, without = both_answers(Auto(), values, dtype)
    variance = 0.25 + 0.7**2
    x = torch.tensor(values, dtype=torch.double)
    exact = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance))
    torch.testing.assert_close(
        broken.log_evidence.double().reshape(-1), exact, rtol=0, atol=0.002
    )  # −0.8292 for 0.3
    assert broken.trusted.all()
    assert torch.equal(broken.draws, without.draws)


class Classes(nn.Module):
    """Two classes, and perhaps a third that cannot be: its logit is −inf, or log 0."""

    def __init__(self, dtype: torch.dtype, third: str) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([[0.8, -0.5]], dtype=dtype))
        self.third = third

    def forward(self, z: Tensor) -> Tensor:
        logits = z * self.slope + 0.1
        if self.third == "":
            return logits[:, None]
        low = {"-inf": torch.full_like(z, -math.inf), "log 0": (z - z.abs() - z.abs()).relu().log()}
        return torch.cat([logits, low[self.third]], -1)[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("third", ["-inf", "log 0"])
@pytest.mark.parametrize("method", [LISTED[name] for name in SOME], ids=SOME)
def test_an_impossible_class_does_not_affect_the_observed_one(method, third, dtype):
    answers = [
        cc.condition(
            cc.VAE(Classes(dtype, which), 1, Categorical(2 + (which != ""))),
            evidence([0.0], 1, dtype),
            method,
            seed=0,
        )
        for which in (third, "")
    ]
    torch.testing.assert_close(answers[0].draws, answers[1].draws)
    torch.testing.assert_close(answers[0].log_evidence, answers[1].log_evidence, equal_nan=True)
    if isinstance(method, (Auto, Grid)):
        z = torch.linspace(-9, 9, 4001, dtype=torch.double)
        log_joint = nn.functional.logsigmoid(1.3 * z) - 0.5 * z.square()
        exact = (log_joint.exp().sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi)).log()
        assert abs(answers[0].log_evidence - exact) < 0.002
        assert answers[0].trusted
    unknown = cc.condition(
        cc.VAE(Classes(dtype, third), 1, Categorical(3)),
        cc.Evidence.from_nan(torch.full((1,), math.nan, dtype=dtype)),
        Grid(),
        seed=0,
    )
    assert set(unknown.predict(200, seed=0).flatten().tolist()) == {0.0, 1.0}
    assert unknown.mean().isfinite().all()
    assert unknown.query_log_prob(torch.zeros(1, dtype=dtype)).isfinite()
    assert unknown.query_log_prob(torch.full((1,), 2.0, dtype=dtype)) == -math.inf


class HalfPossible(nn.Module):
    """Of two classes the second can only be where z > 0."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([0 * z, torch.where(z < 0, -math.inf, z)], -1)[:, None]


@pytest.mark.parametrize("method", [Auto(), Grid()], ids=["auto", "grid"])
def test_a_class_that_is_impossible_for_half_of_the_prior(method):
    vae = cc.VAE(HalfPossible(), 1, Categorical(2))
    posterior = cc.condition(vae, evidence([1.0], 1, torch.float32), method, seed=0)
    assert abs(posterior.log_evidence + 1.0864) < 0.003  # by quadrature, and the mean 0.8973
    assert abs(posterior.sample(4000, seed=0).mean() - 0.897) < 0.05
    assert posterior.sample(4000, seed=0).min() > -0.05  # a grid's cell around 0


def test_evidence_that_no_z_allows_is_unreliable_or_raises():
    vae = cc.VAE(Classes(torch.float32, "-inf"), 1, Categorical(3))
    impossible = evidence([2.0], 1, torch.float32)
    answer = cc.condition(vae, impossible, seed=0)
    assert answer.log_evidence == -math.inf
    assert answer.verdicts[0].label == "unreliable"
    words = r"evidence that is possible at some z, got log p.x.z. = -inf for query 0 at all"
    with pytest.raises(cc.NonFiniteError, match=words + r".*, -inf \(Categorical.*for element 0"):
        cc.condition(vae, impossible, TemperedSMC(160), seed=0)


# ---- bit for bit ---------------------------------------------------------------------------------

FAST = {  # a few steps of each: one bit that differs shows at once
    "hmc": HMC(num_chains=3, num_warmup=6, num_draws=4, num_leapfrog=3),
    "laplace": Laplace(num_starts=2, num_fresh=40),
    "smc": TemperedSMC(60, num_moves=1, num_leapfrog=2),
}
OBSERVED = 7


class SideBySide(nn.Module):
    """Columns of the seven weights; None stands for one that overflows where |z₁| > 2.5."""

    def __init__(
        self, columns: Sequence[int | None], params: Callable[[Tensor], Tensor], num: int, dtype
    ) -> None:
        super().__init__()
        self.columns, self.params, self.num = columns, params, num
        weight = torch.randn(OBSERVED, num, 2, generator=seeded(0), dtype=torch.double)
        self.weight = nn.Parameter(0.8 * weight.to(dtype))

    def column(self, z: Tensor, index: int | None) -> Tensor:
        if index is not None:
            terms = z[:, None] * self.weight[index]
            return self.params((terms[..., 0] + terms[..., 1] + 0.1)[:, None])
        own = self.params(0.1 * z[:, :1, None].expand(-1, 1, self.num))
        grown = ((14.2 if z.dtype == torch.float32 else 113.6) * z[:, :1].square()).exp()
        jump = grown - grown.clamp(max=1e30 if z.dtype == torch.float32 else 1e250)
        return own + jump.reshape(-1, *[1] * (own.ndim - 1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.column(z, index) for index in self.columns], 1)


def positive_second(numbers: Tensor) -> Tensor:
    return torch.stack([numbers[..., 0], 0.1 + numbers[..., 1].abs()], -1)


def first(numbers: Tensor) -> Tensor:
    return numbers[..., 0]


def rate(numbers: Tensor) -> Tensor:
    return 0.1 + numbers[..., 0].abs()


def probability(numbers: Tensor) -> Tensor:
    return numbers[..., 0].sigmoid()


def increasing(numbers: Tensor) -> Tensor:
    return (numbers.abs() + 0.2).cumsum(-1) - 1.5


def themselves(numbers: Tensor) -> Tensor:
    return numbers


KINDS: dict[str, tuple[Likelihood, Callable[[Tensor], Tensor], int, float]] = {
    "Gaussian": (Gaussian(0.5), first, 1, 0.4),
    "Gaussian of decoded scale": (Gaussian(None), positive_second, 2, 0.4),
    "Gaussian of log variance": (Gaussian(None, log_variance=True), themselves, 2, 0.4),
    "Laplace of decoded scale": (likelihoods.Laplace(None), positive_second, 2, 0.4),
    "Student-t of decoded scale": (StudentT(3.0, None), positive_second, 2, 0.4),
    "Bernoulli": (Bernoulli(), first, 1, 1.0),
    "probabilities": (Bernoulli(logits=False), probability, 1, 1.0),
    "continuous Bernoulli": (ContinuousBernoulli(), first, 1, 0.3),
    "Poisson": (Poisson(), first, 1, 2.0),
    "rates": (Poisson(log_rate=False), rate, 1, 2.0),
    "negative binomial": (NegativeBinomial(2.0), first, 1, 2.0),
    "negative binomial of decoded count": (NegativeBinomial(None), positive_second, 2, 2.0),
    "beta-binomial": (BetaBinomial(8, None), positive_second, 2, 3.0),
    "classes": (Categorical(3), themselves, 3, 1.0),
    "ordinal": (Ordinal([-1.0, 0.0, 1.5]), first, 1, 2.0),
    "ordinal of decoded cuts": (Ordinal(None, 4), increasing, 3, 2.0),
    "discretised": (DiscretizedLogistic(None, bins=11), positive_second, 2, 0.4),
}
BESIDE = [None, 0, 1, 2, None, None, 3, 4, 5, None, 6]


def with_and_without(kind: str, dtype: torch.dtype, shape: str) -> list[cc.VAETarget]:
    """The target beside columns that overflow and without them; in a table, of one part or two."""
    likelihood, params, num, value = KINDS[kind]
    targets = []
    for columns in (BESIDE, range(OBSERVED)):
        decoder = SideBySide(columns, params, num, dtype)
        mask = torch.tensor([column is not None for column in columns])
        if shape == "(2, 1)":  # of which the second observes less
            mask = torch.stack([mask, mask & torch.tensor([c not in (2, 5) for c in columns])])
            mask = mask[:, None]
        values = torch.full(mask.shape, value, dtype=dtype)
        vae = cc.VAE(decoder, 2, likelihood)
        targets.append(cc.VAETarget(vae, cc.Evidence(values, mask)))
    return targets


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["()", "(2, 1)"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_p_and_its_derivatives_are_to_the_bit_those_without_the_other_columns(
    kind, shape, dtype
):
    results = []
    for target in with_and_without(kind, dtype, shape):
        flat = target.flatten().prepare()
        num = flat.num_queries
        z = torch.randn(9, num, 2, generator=seeded(3), dtype=torch.double).to(dtype)
        z[:2, :, 0] = 2.8  # where the other columns are infinite
        points = z.clone().requires_grad_()
        log_joint = flat.log_joint(points)
        (slope,) = torch.autograd.grad(log_joint.sum(), points)
        shared = z[:, 0]
        results.append(
            [
                log_joint.detach(),
                slope,
                flat.pairwise_log_likelihood(shared),
                flat.log_likelihood_at(shared, torch.arange(9) % num),
                flat.log_likelihood_of_bank()[1],
                flat.curvature(z),
                flat.curvature_along(z, nn.functional.normalize(torch.ones_like(z), dim=-1)),
                target.log_likelihood(z.reshape(9, *target.batch_shape, 2)),
            ]
        )
    for index, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert wanted.isfinite().all()
        assert torch.equal(found, wanted), index


@pytest.mark.parametrize("method", FAST.values(), ids=FAST)
@pytest.mark.parametrize(
    "kind",
    [
        "Gaussian of log variance",
        "Student-t of decoded scale",
        "rates",
        "negative binomial of decoded count",
        "ordinal",
    ],
)
def test_answers_are_to_the_bit_those_without_the_other_columns(kind, method):
    found, wanted = (
        cc.condition(target.vae, target.evidence, method, seed=0)
        for target in with_and_without(kind, torch.float32, "(2, 1)")
    )
    for name in ("draws", "log_evidence", "log_evidence_error", "ess"):
        pair = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True, msg=name)


TABLE = ["Gaussian of decoded scale", "rates", "classes", "negative binomial of decoded count"]


class Table(nn.Module):
    """Columns of several kinds, each as (kind, column); column None as of `SideBySide`."""

    def __init__(self, columns: Sequence[tuple[str, int | None]], dtype: torch.dtype) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            SideBySide([column], *KINDS[kind][1:3], dtype) for kind, column in columns
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([column(z).flatten(1) for column in self.each], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", FAST.values(), ids=FAST)
def test_a_table_answers_to_the_bit_as_without_its_other_columns(method, dtype):
    """One of its kinds is not observed at all, and one query observes less than the other."""
    answers = []
    for others in (True, False):
        columns = [
            (kind, column)
            for kind in (TABLE if others else TABLE[:3])
            for column in ([None, 0, 1, None, 2] if kind != TABLE[3] else [None, 3])
            if others or column is not None
        ]
        seen = [column is not None and kind != TABLE[3] for kind, column in columns]
        less = [own and column != 1 for own, (_, column) in zip(seen, columns, strict=True)]
        vae = cc.VAE(Table(columns, dtype), 2, Mixed([(KINDS[kind][0], 1) for kind, _ in columns]))
        evidence = cc.Evidence(torch.ones(2, len(columns), dtype=dtype), torch.tensor([seen, less]))
        answers.append(cc.condition(vae, evidence, method, seed=0))
    for name in ("draws", "log_evidence", "ess"):
        pair = [getattr(answer, name) for answer in answers]
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True, msg=name)


# ---- what does not exist is named where it is asked for ------------------------------------------


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


# ---- numbers that are not there at ordinary draws from the prior ---------------------------------

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


def test_a_model_with_an_impossible_class_is_saved_loaded_and_checked(tmp_path):
    linear = nn.Linear(1, 3).requires_grad_(requires_grad=False)
    linear.weight.copy_(torch.tensor([[2.0], [-2.0], [0.0]]))
    linear.bias.copy_(torch.tensor([0.1, 0.0, -math.inf]))
    vae = cc.VAE(linear, 1, Categorical(3, one_hot=True))
    vae.save(tmp_path / "model")
    assert cc.load_vae(tmp_path / "model").decode(torch.zeros(1))[2] == -math.inf
    report = vae.check(vae.sample_prior(200, seed=0))
    assert report.ok, report


@pytest.mark.parametrize("method", [Auto(), Grid(), TemperedSMC()])
def test_an_observed_column_that_is_enormous_away_from_the_answer_is_answered(method):
    """log p(x) by quadrature in double."""
    vae = cc.VAE(Columns(torch.float32, overflows=True), 1, Gaussian(0.5))
    whole = cc.Evidence(torch.full((4,), 0.3), torch.ones(4, dtype=torch.bool))
    posterior = cc.condition(vae, whole, method, seed=0)
    assert abs(float(posterior.log_evidence) + 4.8299) < 0.02
    assert posterior.verdicts[0].label == "trusted"
