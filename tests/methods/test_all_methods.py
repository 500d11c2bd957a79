"""What holds for every method in the registry."""

from dataclasses import replace

import pytest
import torch
from cheap_methods import CHEAP, LISTED, cheap_settings, every_method
from problems import linear_gaussian_problem, seeded

import crosscoding as cc
from crosscoding.crosscoders import Crosscoder
from crosscoding.methods import (
    HMC,
    METHODS,
    Auto,
    Grid,
    Importance,
    Laplace,
    Method,
    NaturalGradient,
    Rejection,
    TemperedSMC,
    Variational,
)

pytestmark = pytest.mark.usefixtures("short_start")


def small_problem(batch=(3,), dtype=torch.double):
    return linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch, dtype=dtype)


def figures(posterior: cc.Posterior) -> dict[str, torch.Tensor]:
    names = ("log_evidence", "log_evidence_error", "c_elbo", "c_elbo_error", "ess")
    return {name: getattr(posterior, name) for name in names} | posterior.stats


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_same_bits(first: cc.Posterior, second: cc.Posterior) -> None:
    for name, value in figures(first).items():
        assert torch.equal(bits(value), bits(figures(second)[name])), name
    assert torch.equal(first.draws, second.draws)
    assert torch.equal(first.sample(7), second.sample(7))
    assert torch.equal(first.predict(5), second.predict(5))
    assert torch.equal(first.mean(), second.mean())


def assert_same_answer(one: cc.Posterior, index: int, alone: cc.Posterior) -> None:
    """Entry `index` of `one` is entry 0 of `alone`.

    Not bitwise: a matrix product rounds differently with another number of rows. In double that is
    1e-16 a product; a thousand steps of a fit or of a chain make it at most 1e-8 of a Gaussian
    problem, where nearby paths do not part. What differs in kind is many orders above that.
    """

    def check(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)

    for name, value in figures(one).items():
        check(value[index], figures(alone)[name][0])
    check(one.sample(9, seed=1)[:, index], alone.sample(9, seed=1)[:, 0])
    check(one.predict(9, seed=2)[:, index], alone.predict(9, seed=2)[:, 0])
    check(one.mean()[index], alone.mean()[0])
    check(one.std()[index], alone.std()[0])


def test_the_registry_lists_every_method_and_crosscoder():
    listed = [entry.method for entry in METHODS.values()]
    own = [kind for kind in Method.__subclasses__() if kind.__module__.startswith("crosscoding.")]
    assert {type(method) for method in listed} == set(own)
    crosscoders = {type(m.crosscoder) for m in listed if isinstance(m, Variational)}
    exported = [getattr(cc.crosscoders, name) for name in cc.crosscoders.__all__]
    families = {c for c in exported if isinstance(c, type) and issubclass(c, Crosscoder)}
    assert crosscoders == families - {Crosscoder}


@pytest.mark.parametrize("module", ["no_such_method", "budgets"])
def test_a_method_whose_tests_set_no_cheap_settings_is_named(module):
    method = type("Mine", (), {"__module__": f"crosscoding.methods.{module}"})
    with pytest.raises(LookupError, match=rf"methods/test_{module}\.py to set CHEAP.* which Mine"):
        cheap_settings(method)


@every_method
def test_the_same_seed_gives_the_same_bits(method):
    problem = small_problem(dtype=torch.float32)
    posteriors = [cc.condition(problem.vae, problem.evidence, method, seed=3) for _ in range(2)]
    assert_same_bits(*posteriors)


@every_method
def test_a_generator_is_as_good_as_a_seed_and_moves_on(method):
    problem = small_problem()
    generator = seeded(3)
    first = cc.condition(problem.vae, problem.evidence, method, seed=generator)
    second = cc.condition(problem.vae, problem.evidence, method, seed=generator)
    again = cc.condition(problem.vae, problem.evidence, method, seed=seeded(3))
    assert not torch.equal(first.sample(7, seed=None), second.sample(7, seed=None))
    again.sample(7)
    assert torch.equal(first.sample(7), again.sample(7))


@every_method
def test_another_seed_gives_other_draws(method):
    problem = small_problem()
    one, other = (cc.condition(problem.vae, problem.evidence, method, seed=s) for s in (0, 1))
    assert not torch.equal(one.sample(7), other.sample(7))
    assert not torch.equal(one.predict(7), other.predict(7))
    if not isinstance(method, Grid):  # a grid is random only in the draws from it
        assert not torch.equal(one.draws, other.draws)


@every_method
def test_a_batch_of_three_is_three_batches_of_one(method):
    problem = small_problem()
    together = cc.condition(problem.vae, problem.evidence, method, seed=0)
    for index in range(3):
        evidence = problem.evidence[index : index + 1]
        assert_same_answer(together, index, cc.condition(problem.vae, evidence, method, seed=0))


@every_method
def test_the_evidence_of_other_entries_does_not_matter(method):
    problem = small_problem()
    values, mask = problem.truth.clone(), problem.evidence.mask.clone()
    values[1], mask[1] = values[1] + 1.5, ~mask[1]
    before = cc.condition(problem.vae, problem.evidence, method, seed=0)
    after = cc.condition(problem.vae, cc.Evidence(values, mask), method, seed=0)
    assert not torch.allclose(before.mean()[1], after.mean()[1])
    for index in (0, 2):
        alone = cc.condition(problem.vae, problem.evidence[[index]], method, seed=0)
        assert_same_answer(before, index, alone)
        assert_same_answer(after, index, alone)


@every_method
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["none", "2x3"])
def test_every_answer_has_the_batch_shape(method, batch):
    problem = small_problem(batch)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.batch_shape == batch
    assert posterior.sample(4).shape == (4, *batch, 2)
    assert posterior.predict(4).shape == (4, *batch, 6)
    assert posterior.predict_mean(4).shape == (4, *batch, 6)
    assert posterior.mean().shape == posterior.std().shape == (*batch, 6)
    assert posterior.query_log_prob(problem.truth).shape == batch
    assert posterior.draws.shape[1:] == (*batch, 2)
    weights = posterior.log_weights
    assert weights is None or weights.shape == posterior.draws.shape[:-1]
    assert {name: value.shape for name, value in figures(posterior).items()} == dict.fromkeys(
        figures(posterior), batch
    )


@every_method
def test_every_answer_has_the_models_dtype(method):
    for dtype in (torch.float32, torch.float64):
        problem = small_problem(dtype=dtype)
        posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
        answers = [posterior.sample(2), posterior.predict(2), posterior.mean(), posterior.std()]
        answers += [posterior.query_log_prob(problem.truth), *figures(posterior).values()]
        assert {answer.dtype for answer in answers} == {dtype}


@every_method
def test_a_two_dimensional_batch_has_the_answers_of_the_flat_one(method):
    square, flat = small_problem((2, 3)), small_problem(6)
    evidence = square.evidence.flatten(1)
    one = cc.condition(square.vae, square.evidence, method, seed=0)
    other = cc.condition(flat.vae, evidence, method, seed=0)
    assert torch.equal(one.sample(5).flatten(1, 2), other.sample(5))
    assert torch.equal(one.predict(5).flatten(1, 2), other.predict(5))
    assert torch.equal(one.ess.flatten(), other.ess)


@every_method
def test_an_empty_batch_has_empty_answers(method):
    problem = small_problem()
    posterior = cc.condition(problem.vae, problem.evidence[:0], method, seed=0)
    assert posterior.batch_shape == (0,)
    assert posterior.sample(4).shape == (4, 0, 2)
    assert posterior.predict(4).shape == (4, 0, 6)
    assert posterior.mean().shape == posterior.std().shape == (0, 6)
    assert posterior.query_log_prob(problem.truth[:0]).shape == (0,)
    assert {value.shape for value in figures(posterior).values()} == {(0,)}


@every_method
def test_without_evidence_the_answer_is_the_prior(method):
    problem = small_problem()
    if isinstance(method, Variational):
        method = replace(method, steps=400, num_draws=32, num_fresh=1000)
    if isinstance(method, HMC):
        # 0.25 a step, 10 steps: a quarter to a half of a period, so draws are nearly independent.
        method = HMC(num_chains=20, num_warmup=20, num_draws=100, step_size=0.25)
    if isinstance(method, Rejection):
        method = Rejection(num_draws=2000)
    if isinstance(method, (Laplace, NaturalGradient)):
        method = replace(method, num_fresh=2000)
    if isinstance(method, (Auto, Importance)):
        method = replace(method, num_draws=2000)
    if isinstance(method, TemperedSMC):
        method = replace(method, num_particles=2000)
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, method, seed=0)
    size = 2000
    z = posterior.sample(size, seed=1)
    # 5 Monte Carlo standard errors of 2,000 draws (chains: of their ESS), and 0.05 prior standard
    # deviations that fitting leaves a cross-coder (a KL of about 0.001 nats).
    chains = "r_hat" in posterior.stats
    error = 5 * posterior.ess.min().clamp_max(size).rsqrt() if chains else 0.11
    assert (z.mean(0).abs() < error + 0.05).all()
    assert (z.var(0) - 1).abs().max() < 1.5 * error + 0.05
    assert z.prod(-1).mean(0).abs().max() < error + 0.05
    if chains:
        assert posterior.log_evidence.isnan().all()
    else:
        allowed = 5 * posterior.log_evidence_error + CHEAP[Grid]["tolerance"] / 10
        assert (posterior.log_evidence.abs() <= allowed).all()


@pytest.mark.parametrize("name", ["rejection", "grid"])
def test_exact_methods_give_log_evidence_zero_without_evidence(name):
    problem = small_problem()
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, LISTED[name], seed=0)
    # The grid leaves out a few hundred cells of 1e-8 each; rejection leaves out nothing.
    torch.testing.assert_close(posterior.log_evidence, torch.zeros(3).double(), rtol=0, atol=1e-5)


@every_method
def test_with_everything_observed_the_evidence_comes_back_bit_for_bit(method):
    problem = small_problem(dtype=torch.float32)
    truth = problem.truth
    posterior = cc.condition(problem.vae, cc.Evidence(truth, torch.tensor(True)), method, seed=0)
    assert torch.equal(bits(posterior.mean()), bits(truth))
    for draw in (*posterior.predict(3), *posterior.predict_mean(3)):
        assert torch.equal(bits(draw), bits(truth))
    assert torch.equal(posterior.std(), torch.zeros_like(truth))
    assert torch.equal(posterior.query_log_prob(truth), torch.zeros(3))


@every_method
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_values_at_unobserved_elements_change_not_one_bit(method, rubbish):
    problem = small_problem(dtype=torch.float32)
    mask = problem.evidence.mask
    clean = cc.condition(
        problem.vae, cc.Evidence(torch.where(mask, problem.truth, 0.0), mask), method, seed=0
    )
    dirty = cc.condition(
        problem.vae, cc.Evidence(torch.where(mask, problem.truth, rubbish), mask), method, seed=0
    )
    assert dirty.draws.isfinite().all()
    assert_same_bits(clean, dirty)


@every_method
def test_torchs_global_random_state_is_left_alone(method):
    problem = small_problem()
    before = torch.random.get_rng_state()
    posterior = cc.condition(problem.vae, problem.evidence, method)
    posterior.sample(3), posterior.predict(3), posterior.predict_mean(3), posterior.mean()
    assert torch.equal(torch.random.get_rng_state(), before)


@every_method
def test_neither_the_evidence_nor_the_decoder_is_changed(method):
    problem = small_problem()
    values, mask = problem.evidence.values.clone(), problem.evidence.mask.clone()
    weight = problem.vae.decoder.weight.clone()
    cc.condition(problem.vae, problem.evidence, method, seed=0).predict(3)
    assert torch.equal(problem.evidence.values, values)
    assert torch.equal(problem.evidence.mask, mask)
    assert torch.equal(problem.vae.decoder.weight, weight)
    assert problem.vae.decoder.weight.grad is None


@every_method
def test_no_answer_carries_a_gradient(method):
    problem = small_problem()
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    answers = [posterior.draws, posterior.sample(2), posterior.mean(), *figures(posterior).values()]
    assert not any(answer.requires_grad for answer in answers)


@every_method
def test_progress_is_reported_between_0_and_1(method):
    problem = small_problem()
    shares = []
    cc.condition(
        problem.vae,
        problem.evidence,
        method,
        seed=0,
        report=lambda share, what: shares.append(share),
    )
    assert shares
    assert all(0 <= share <= 1 for share in shares)


# ---- other likelihoods ---------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A count, a heavy-tailed number with its scale, and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Linear(2, 6)
        for index, parameter in enumerate(self.parameters()):
            torch.nn.init.normal_(parameter, 0, 0.4, generator=seeded(index))

    def forward(self, z):
        count, location, scale, classes = self.layers(z).split([1, 1, 1, 3], -1)
        return torch.cat([count, location, scale.exp(), classes], -1)


@pytest.fixture(scope="module")
def table():
    """Three rows of a table, each with different observed columns, and their exact log p(x)."""
    likelihoods = cc.likelihoods
    columns = [likelihoods.Poisson(), likelihoods.StudentT(4.0, None), likelihoods.Categorical(3)]
    vae = cc.VAE(Table(), 2, likelihoods.Mixed(columns))
    values = vae.sample_prior(3, seed=0)
    values[0, 0] = values[1, 1] = values[2, 2] = torch.nan
    evidence = cc.Evidence.from_nan(values)
    return vae, evidence, cc.condition(vae, evidence, Grid(), seed=0).log_evidence


@every_method
def test_every_method_answers_a_table_of_counts_numbers_and_classes(method, table):
    vae, evidence, exact = table
    posterior = cc.condition(vae, evidence, method, seed=0)
    draws = posterior.predict(5, seed=0)
    given = evidence.mask.expand(draws.shape)
    assert torch.equal(draws[given], evidence.values.expand(draws.shape)[given])
    assert vae.likelihood.in_support(draws).all()
    known = ~posterior.log_evidence.isnan()
    error = (posterior.log_evidence - exact).abs()[known]
    assert (error < 0.25).all()  # settings are cheap here, so some estimates are rough
