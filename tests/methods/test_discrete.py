import pytest
import torch
from discrete_models import by_brute_force, model, pairs_of, priors, queries
from discrete_wells import wells
from problems import seeded

import crosscoding as cc
from crosscoding.methods import METHODS, Auto, Discrete
from crosscoding.priors import Bernoulli, Categorical
from crosscoding.target.discrete_target import DiscreteTarget

CHEAP = {"num_draws": 500}  # for the tests of every method
PRIORS = priors()
every_prior = pytest.mark.parametrize("name", PRIORS)
SEARCH = Discrete(max_states=1)  # as if there were too many states to enumerate


@every_prior
def test_enumeration_is_exact(name):
    vae = model(PRIORS[name])
    evidence = queries(vae)
    z, log_joint = by_brute_force(vae, evidence)
    posterior = cc.condition(vae, evidence, seed=0)
    log_evidence = log_joint.logsumexp(0)
    torch.testing.assert_close(posterior.log_evidence.double(), log_evidence, rtol=0, atol=1e-4)
    assert (posterior.log_evidence_error == 0).all()
    assert posterior.trusted.all()
    at = z[:, None].expand(-1, 6, -1)
    exact = log_joint - log_evidence
    torch.testing.assert_close(posterior.log_prob(at).double(), exact, rtol=0, atol=1e-3)
    mean = torch.einsum("sb,se->be", exact.exp(), vae.decode(z).sigmoid().double())
    mean = torch.where(evidence.mask, evidence.values.double(), mean)
    torch.testing.assert_close(posterior.mean().double(), mean, rtol=0, atol=1e-4)


def test_many_states_are_enumerated_in_pieces_and_drawn_from():
    vae = model(Bernoulli(torch.randn(15, generator=seeded(0)), pairs_of(15)))
    evidence = queries(vae)
    z, log_joint = by_brute_force(vae, evidence)
    posterior = cc.condition(vae, evidence, Discrete(num_draws=4000), seed=0)
    log_evidence = log_joint.logsumexp(0)
    torch.testing.assert_close(posterior.log_evidence.double(), log_evidence, rtol=0, atol=1e-4)
    p = (log_joint - log_evidence).exp()
    exact, draws = torch.einsum("sb,sd->bd", p, z.double()), posterior.draws
    error = 5 * (exact * (1 - exact) / len(draws)).sqrt() + 1e-6
    assert ((draws.double().mean(0) - exact).abs() < error).all()
    assert draws.unique().tolist() == [0.0, 1.0]


@every_prior
@pytest.mark.parametrize("strength", [3.0, pytest.param(8.0, marks=pytest.mark.slow)])
def test_particles_agree_with_enumeration(name, strength):
    vae = model(PRIORS[name], strength)
    evidence = queries(vae, 12)
    exact = cc.condition(vae, evidence, seed=0)
    posterior = cc.condition(vae, evidence, SEARCH, seed=0)
    gap, error = posterior.log_evidence - exact.log_evidence, posterior.log_evidence_error
    # the least error is that of rounding
    assert (gap.abs() < 4 * error + 2e-3).float().mean() > 0.9
    assert (gap[posterior.trusted].abs() < 0.12).all()
    assert posterior.trusted.float().mean() > 0.6
    deviation = exact.std().clamp_min(0.05)
    wrong = ((posterior.mean() - exact.mean()).abs() / deviation)[posterior.trusted]
    assert wrong.max() < 0.35  # of 1,000 draws with an ESS of 600: 0.05 a standard error


@pytest.mark.slow
def test_lost_modes_are_never_trusted():
    """Two isolated groups of states, one narrow: all answers that are trusted have both."""
    for seed in range(3):
        vae = model(Bernoulli(torch.zeros(14), pairs_of(14, seed, 1.5)), 12.0, seed)
        evidence = queries(vae, 16, 0.6)
        exact = cc.condition(vae, evidence, seed=0).log_evidence
        posterior = cc.condition(vae, evidence, SEARCH, seed=seed)
        assert ((posterior.log_evidence - exact)[posterior.trusted].abs() < 0.12).all()


@pytest.mark.parametrize(
    ("dim", "start", "opposite"),
    [
        (40, 0.7, True),
        pytest.param(80, 0.4, True, marks=pytest.mark.slow),
        pytest.param(80, 0.7, True, marks=pytest.mark.slow),
        pytest.param(40, 0.4, False, marks=pytest.mark.slow),
        pytest.param(80, 0.4, False, marks=pytest.mark.slow),
    ],
)
def test_a_mode_that_particles_never_enter_is_found(dim, start, opposite):
    """It has all of p(z|x): annealing alone lost 20 to 40 nats, and said that it was sure."""
    slopes = (0.8, 1.5 / (1 - start))
    vae, evidence, log_evidence = wells(dim, slopes, (0.0, start), opposite=opposite)
    posterior = cc.condition(vae, evidence, seed=0)
    assert abs(float(posterior.log_evidence) - log_evidence) < 0.05
    assert posterior.verdicts[0].label == "trusted"


def test_half_of_the_mass_beyond_a_flat_region_is_found():
    vae, evidence, log_evidence = wells(40, (1.5, 2.0), (0.2, 0.4), opposite=True)
    posterior = cc.condition(vae, evidence, seed=0)  # 22 % of it
    assert abs(float(posterior.log_evidence) - log_evidence) < 0.05


@pytest.mark.slow
def test_more_latents_than_can_be_enumerated_give_the_same_answer_twice():
    vae = model(Bernoulli(torch.randn(40, generator=seeded(0))), 3.0)
    evidence = queries(vae, 4)
    one, other = (cc.condition(vae, evidence, seed=seed) for seed in (0, 1))
    error = torch.hypot(one.log_evidence_error, other.log_evidence_error)
    assert ((one.log_evidence - other.log_evidence).abs() < 4 * error).all()
    assert (one.trusted | other.trusted).any()
    assert [stage.name for stage in one.trace][:1] == ["prior"]


def test_pairs_whose_log_z_is_estimated_pass_its_error_on():
    prior = Bernoulli(torch.zeros(32), pairs_of(32, strength=0.3))
    vae = model(prior)
    posterior = cc.condition(vae, queries(vae, 2), seed=0)
    assert (posterior.log_evidence_error >= vae.prior.log_normaliser_error).all()


def test_the_same_seed_gives_the_same_bits():
    vae = model(PRIORS["pairs"])
    one, other = (cc.condition(vae, queries(vae), SEARCH, seed=2) for _ in range(2))
    assert torch.equal(one.draws, other.draws)
    assert torch.equal(one.log_evidence, other.log_evidence)


@pytest.mark.parametrize("method", [Discrete(), SEARCH], ids=["enumeration", "particles"])
def test_a_query_gets_the_answer_that_it_gets_alone(method):
    vae = model(PRIORS["pairs"], 6.0)
    vae = cc.VAE(vae.decoder.double(), 12, cc.likelihoods.Bernoulli(), prior=vae.prior.double())
    evidence = queries(vae)
    together = cc.condition(vae, evidence, method, seed=0)
    for index in (0, 4):
        alone = cc.condition(vae, evidence[index : index + 1], method, seed=0)
        gap = together.log_evidence[index] - alone.log_evidence[0]
        assert abs(gap) < 1e-6
        torch.testing.assert_close(together.mean()[index], alone.mean()[0])


def test_shapes_of_no_one_and_many_queries():
    vae = model(PRIORS["codes"])
    data = vae.sample_prior(6, seed=0).reshape(2, 3, -1)
    mask = torch.arange(data.shape[-1]) < 20
    for values in (data, data[0, 0], data[:0]):
        posterior = cc.condition(vae, cc.Evidence(values, mask), SEARCH, seed=0)
        assert posterior.log_evidence.shape == values.shape[:-1]
        assert posterior.predict(3).shape == (3, *values.shape)


@pytest.mark.slow
def test_ranks_of_simulated_truths_are_uniform():
    vae = model(PRIORS["autoregressive"], 4.0)
    for method in (None, SEARCH):
        report = cc.calibrate(vae, torch.arange(40) < 15, method, num=100, progress=False)
        assert report.p_value() > 0.01
        assert int(report.below.sum()) + int(report.above.sum()) <= 3


def test_query_log_prob_is_the_difference_of_two_sums():
    vae = model(PRIORS["pairs"])
    truth, mask = vae.sample_prior(4, seed=0), torch.arange(40) < 15
    posterior = cc.condition(vae, cc.Evidence(truth, mask), seed=0)
    whole, part = (
        by_brute_force(vae, cc.Evidence(truth, m.expand(4, -1)))[1].logsumexp(0)
        for m in (torch.ones(40, dtype=torch.bool), mask)
    )
    log_prob, error = cc.query_log_prob(posterior, truth, seed=0)
    torch.testing.assert_close(log_prob.double(), whole - part, rtol=0, atol=2e-4)
    assert (error == 0).all()


@pytest.mark.parametrize("name", ["pairs", "codes", "uniform"])
def test_models_and_posteriors_are_saved(name, tmp_path):
    vae = model(PRIORS[name])
    posterior = cc.condition(vae, queries(vae), seed=0)
    vae.save(tmp_path / "model")
    loaded = cc.load_vae(tmp_path / "model")
    z = vae.prior.sample(5, generator=seeded(0), like=torch.empty(0))
    assert torch.equal(loaded.prior.log_prob(z), vae.prior.log_prob(z))
    posterior.save(tmp_path / "posterior")
    again = cc.Posterior.load(tmp_path / "posterior")
    assert torch.equal(again.draws, posterior.draws)
    torch.testing.assert_close(again.mean(), posterior.mean())


CONTINUOUS = {name: e.method for name, e in METHODS.items() if not e.method.takes_discrete}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_methods_for_continuous_latents_name_one_that_serves(name):
    vae = model(PRIORS["pairs"])
    kind = type(CONTINUOUS[name]).__name__
    with pytest.raises(ValueError, match=rf"got {kind}, which needs continuous.*use Auto\(\)"):
        cc.condition(vae, queries(vae), CONTINUOUS[name])


def test_continuous_latents_are_refused():
    vae = cc.VAE(torch.nn.Linear(2, 5), 2, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(torch.zeros(5), torch.tensor(True))
    with pytest.raises(ValueError, match=r"got Discrete, which needs discrete.*use Auto\(\)"):
        cc.condition(vae, evidence, Discrete())
    with pytest.raises(ValueError, match="with discrete latents, got one with continuous ones"):
        DiscreteTarget(vae, evidence)


def test_what_needs_continuous_latents_says_so():
    vae = model(PRIORS["pairs"])
    with pytest.raises(ValueError, match="continuous latents, got discrete ones"):
        cc.Bank.of(vae)
    with pytest.raises(ValueError, match="no encoder for discrete latents"):
        cc.VAE(vae.decoder, vae.latent_dim, vae.likelihood, torch.nn.Linear(40, 24), vae.prior)
    gaussian = cc.VAE(vae.decoder, vae.latent_dim, cc.likelihoods.Gaussian(0.1), prior=vae.prior)
    data = gaussian.sample_prior(8, seed=0)
    with pytest.raises(ValueError, match="calibrate_scale does not take"):
        cc.calibrate_scale(gaussian, data)
    with pytest.raises(ValueError, match="continuous latents, got one with discrete ones"):
        cc.VAETarget(vae, queries(vae))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num_draws": 1}, ValueError, "num_draws >= 2"),
        ({"max_states": 0}, ValueError, "max_states >= 1"),
        ({"max_states": 2.0}, TypeError, "max_states to be an int"),
        ({"max_decodes": 0}, ValueError, "max_decodes >= 1"),
        ({"purpose": "median"}, ValueError, "expected a purpose among"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        Discrete(**settings)


def test_decoders_that_do_not_fit_the_prior_are_refused():
    linear = torch.nn.Linear(12, 40)
    with pytest.raises(ValueError, match=r"rows of shape|takes rows"):
        cc.VAE(linear, 5, cc.likelihoods.Bernoulli(), prior=Categorical(4, 5))
    with pytest.raises(ValueError, match="12 numbers"):
        cc.VAE(linear, 12, cc.likelihoods.Bernoulli(), prior=Bernoulli(torch.zeros(11)))
    with pytest.raises(ValueError, match="float32"):
        cc.VAE(linear, 12, cc.likelihoods.Bernoulli(), prior=Bernoulli(torch.zeros(12).double()))


def test_budgets_leave_an_answer_that_is_not_trusted():
    vae = model(Bernoulli(torch.zeros(40)), 8.0)
    evidence = queries(vae, 3, 0.9)
    posterior = cc.condition(vae, evidence, Auto(max_decodes=100), seed=0)
    assert not posterior.trusted.any()
    assert "stopped before it was finished" in str(posterior.verdicts[0].reasons)
    for seconds in (1e-9, 0.05):
        posterior = cc.condition(vae, evidence, Auto(max_seconds=seconds), seed=0)
        assert posterior.draws.shape == (1000, 3, 40)
        assert not posterior.trusted.any()


@pytest.mark.parametrize("most", [30_000, 50_000, 100_000])
def test_no_more_decodes_are_taken_than_allowed(most):
    vae = model(Bernoulli(torch.zeros(40)), 8.0)
    posterior = cc.condition(vae, queries(vae, 3, 0.9), Auto(max_decodes=most), seed=0)
    spent = torch.stack([stage.decodes for stage in posterior.trace]).sum(0)
    assert (spent <= most).all()


def test_two_codes_are_the_same_as_one_bit():
    logits = torch.randn(6, generator=seeded(0))
    weight = torch.randn(40, 6, generator=seeded(1))
    bits, codes = torch.nn.Linear(6, 40, bias=False), torch.nn.Linear(12, 40, bias=False)
    with torch.no_grad():
        bits.weight.copy_(weight)
        codes.weight.copy_(torch.stack([torch.zeros_like(weight), weight], -1).flatten(1))
    likelihood = cc.likelihoods.Bernoulli()
    one = cc.VAE(bits, 6, likelihood, prior=Bernoulli(logits))
    pair = torch.stack([torch.zeros(6), logits], -1)
    codes = torch.nn.Sequential(torch.nn.Flatten(), codes)
    other = cc.VAE(codes, 6, likelihood, prior=Categorical(2, 6, logits=pair))
    evidence = queries(one)
    for method in (Discrete(), SEARCH):
        answers = [cc.condition(vae, evidence, method, seed=0) for vae in (one, other)]
        error = 4 * sum(answer.log_evidence_error for answer in answers) + 1e-4
        gap = answers[0].log_evidence - answers[1].log_evidence
        assert (gap.abs() < error).all()
