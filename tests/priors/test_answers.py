"""Answers under every prior, against integrals over a grid of the model's own z."""

import math
from dataclasses import dataclass

import pytest
import torch
from prior_cases import AS_DATA, PRIORS, WITH_CODE, drawn, filled, prior_of
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.priors import Gaussian as GaussianPrior
from crosscoding.priors import Hierarchical

each = pytest.mark.parametrize("name", [name for name in PRIORS if name != "normal"])
FITTED = ("planar", "spline", "mixed maps", "two maps")  # whose inverse takes most of a test's time
each_quickly = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in FITTED else [])
        for name in PRIORS
        if name != "normal"
    ],
)
STANDARD_ERRORS = 4.5


def curved() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5)))


@dataclass(frozen=True)
class Exact:
    """What a grid of z gives for evidence: log p(x), and the moments of z given x."""

    log_evidence: Tensor
    mean: Tensor
    std: Tensor


def problem(name: str) -> tuple[cc.VAE, cc.Evidence]:
    vae = cc.VAE(curved(), 2, Gaussian(0.7), prior=prior_of(name))
    data = vae.sample_prior(3, seed=0)
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 1]]).bool()
    return vae, cc.Evidence(data, mask)


def exact(vae: cc.VAE, evidence: cc.Evidence) -> Exact:
    z = vae.prior.from_noise(2 * drawn(4000, 2))
    low, high = z.amin(0) - 1, z.amax(0) + 1
    ticks = [torch.linspace(*ends, 601, dtype=torch.double) for ends in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 2)
    gaps = (vae.decode(grid)[:, None] - evidence.values) / 0.7
    terms = -0.5 * gaps.square() - math.log(0.7) - 0.5 * math.log(2 * math.pi)
    log_joint = (terms * evidence.mask).sum(-1) + vae.prior.log_prob(grid)[:, None]
    cell = math.prod((tick[1] - tick[0]).item() for tick in ticks)
    log_evidence = log_joint.logsumexp(0) + math.log(cell)
    weights = (log_joint + math.log(cell) - log_evidence).exp()
    mean = weights.mT @ grid
    return Exact(log_evidence, mean, (weights.mT @ grid.square() - mean.square()).sqrt())


@each_quickly
def test_auto_agrees_with_a_grid_in_the_models_own_space(name):
    vae, evidence = problem(name)
    posterior, wanted = cc.condition(vae, evidence, seed=0), exact(vae, evidence)
    error = STANDARD_ERRORS * posterior.log_evidence_error + 0.01
    assert ((posterior.log_evidence - wanted.log_evidence).abs() < error).all()
    assert posterior.trusted.all()
    z = posterior.sample(4000, seed=1)
    few = posterior.ess.clamp(max=4000).sqrt()[:, None]
    assert ((z.mean(0) - wanted.mean).abs() < STANDARD_ERRORS * wanted.std / few + 0.01).all()
    assert ((z.std(0) / wanted.std - 1).abs() < STANDARD_ERRORS / few + 0.03).all()


METHODS = {
    "smc": cc.methods.TemperedSMC(num_particles=1000),
    "importance": cc.methods.Importance(),
    "hmc": cc.methods.HMC(num_warmup=100, num_draws=100, num_leapfrog=5),
    "grid": cc.methods.Grid(),
    "rejection": cc.methods.Rejection(),
    "spline": cc.methods.Variational(cc.crosscoders.Spline(2), steps=200),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["full", "levels", "mixture"])
@pytest.mark.slow
def test_every_method_answers_in_the_models_own_space(method, name):
    vae, evidence = problem(name)
    posterior, wanted = cc.condition(vae, evidence, METHODS[method], seed=0), exact(vae, evidence)
    if method == "spline":
        assert (posterior.c_elbo < wanted.log_evidence + 4 * posterior.c_elbo_error).all()
    elif method != "hmc":
        error = STANDARD_ERRORS * posterior.log_evidence_error + 0.01
        assert ((posterior.log_evidence - wanted.log_evidence).abs() < error).all()
    z = posterior.sample(2000, seed=1)
    few = posterior.ess.clamp(max=2000).sqrt()[:, None]
    loose = 0.25 if method in ("spline", "hmc") else 0.01
    assert ((z.mean(0) - wanted.mean).abs() < STANDARD_ERRORS * wanted.std / few + loose).all()


@each_quickly
def test_log_prob_is_the_density_of_z(name):
    vae, evidence = problem(name)
    posterior, wanted = cc.condition(vae, evidence, cc.methods.Grid(), seed=0), exact(vae, evidence)
    z = vae.prior.from_noise(drawn(20, 2))[:, None].expand(-1, 3, -1)
    gaps = (vae.decode(z) - evidence.values) / 0.7
    terms = -0.5 * gaps.square() - math.log(0.7) - 0.5 * math.log(2 * math.pi)
    log_joint = (terms * evidence.mask).sum(-1) + vae.prior.log_prob(z)
    torch.testing.assert_close(
        posterior.log_prob(z), log_joint - wanted.log_evidence, rtol=0, atol=0.02
    )


def test_log_prob_is_minus_infinity_where_the_prior_has_no_mass():
    vae, evidence = problem("exponential")
    posterior = cc.condition(vae, evidence, cc.methods.Grid(), seed=0)
    z = torch.tensor([-1.0, 1.0]).double().expand(3, 2)
    assert (posterior.log_prob(z) == -math.inf).all()


@each
@pytest.mark.slow
def test_a_posterior_is_saved_with_its_prior(name, tmp_path):
    vae, evidence = problem(name)
    posterior = cc.condition(vae, evidence, seed=0)
    if name in WITH_CODE:
        with pytest.warns(UserWarning, match="the prior is not a stack of common layers"):
            posterior.save(tmp_path / "answer")
        alone = cc.Posterior.load(tmp_path / "answer")
        with pytest.raises(ValueError, match="whose prior maps the stored draws to z"):
            alone.sample(3)
        loaded = cc.Posterior.load(tmp_path / "answer", vae=vae)
    else:
        posterior.save(tmp_path / "answer")
        loaded = cc.Posterior.load(tmp_path / "answer")
    for draws in ("draws", "log_evidence"):
        assert torch.equal(getattr(loaded, draws), getattr(posterior, draws))
    assert torch.equal(loaded.sample(20, seed=1), posterior.sample(20, seed=1))
    assert torch.equal(loaded.predict(20, seed=1), posterior.predict(20, seed=1))


def test_a_posterior_is_not_loaded_with_another_prior(tmp_path):
    vae, evidence = problem("full")
    cc.condition(vae, evidence, seed=0).save(tmp_path / "answer")
    for prior in (None, GaussianPrior(drawn(2), 0.5)):
        other = cc.VAE(curved(), 2, Gaussian(0.7), prior=prior)
        with pytest.raises(cc.ModelFormatError, match="belongs to, got another"):
            cc.Posterior.load(tmp_path / "answer", vae=other)


@pytest.mark.parametrize("name", [name for name in AS_DATA if name != "normal"])
def test_a_model_is_saved_with_its_prior(name, tmp_path):
    vae, _ = problem(name)
    vae.save(tmp_path / "model")
    loaded = cc.load_vae(tmp_path / "model")
    for key, tensor in vae.prior.state_dict().items():
        assert torch.equal(loaded.prior.state_dict()[key], tensor)
    assert repr(loaded) == repr(vae)
    assert torch.equal(loaded.sample_prior(9, seed=1), vae.sample_prior(9, seed=1))
    again = cc.VAE.from_parts(vae.to_parts())
    assert torch.equal(again.sample_prior(9, seed=1), vae.sample_prior(9, seed=1))


@pytest.mark.parametrize("name", ["bijection", "masked", "transformed"])
def test_a_prior_with_code_is_passed_to_load(name, tmp_path):
    vae, _ = problem(name)
    with pytest.warns(UserWarning, match="only the weights of the prior"):
        vae.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected prior=\.\.\."):
        cc.load_vae(tmp_path / "model")
    loaded = cc.load_vae(tmp_path / "model", prior=prior_of(name))
    assert torch.equal(loaded.sample_prior(9, seed=1), vae.sample_prior(9, seed=1))
    with pytest.raises(cc.ModelFormatError):
        cc.load_vae(tmp_path / "model", prior=prior_of("full"))
    assert vae.to_parts() is None


def test_a_linear_decoder_keeps_its_closed_form():
    decoder = filled(nn.Linear(2, 5))
    mean, root = drawn(2), torch.tensor([[0.7, 0.0], [-0.4, 1.2]]).double()
    vae = cc.VAE(decoder, 2, Gaussian(0.7), prior=GaussianPrior(mean, root))
    data, mask = drawn(4, 5), drawn(4, 5, seed=2) > 0
    posterior = cc.condition(vae, cc.Evidence(data, mask), seed=0)
    assert [stage.name for stage in posterior.trace] == ["closed form"]
    weight = decoder.weight @ root
    covariance = weight @ weight.mT + 0.49 * torch.eye(5)
    for query, own in enumerate(mask):
        marginal = torch.distributions.MultivariateNormal(
            (decoder.weight @ mean + decoder.bias)[own], covariance[own][:, own]
        )
        wanted = marginal.log_prob(data[query, own])
        torch.testing.assert_close(posterior.log_evidence[query], wanted)


def test_linear_levels_and_a_linear_decoder_have_a_closed_form():
    level, decoder = filled(nn.Linear(2, 6)), filled(nn.Linear(3, 7))
    with torch.no_grad():
        level.weight[3:] = 0
    prior = Hierarchical((2, 3), [level], last_only=True)
    vae = cc.VAE(decoder, 5, Gaussian(0.5), prior=prior)
    data, mask = drawn(7), torch.arange(7) < 4
    posterior = cc.condition(vae, cc.Evidence(data, mask), seed=0)
    assert [stage.name for stage in posterior.trace] == ["closed form"]
    variance = level.bias[3:].exp().diag() + level.weight[:3] @ level.weight[:3].mT
    covariance = decoder.weight @ variance @ decoder.weight.mT + 0.25 * torch.eye(7)
    mean = decoder(level.bias[:3])
    wanted = torch.distributions.MultivariateNormal(mean[:4], covariance[:4, :4])
    torch.testing.assert_close(posterior.log_evidence, wanted.log_prob(data[:4]))
    assert posterior.sample(3).shape == (3, 5)


@pytest.mark.parametrize(
    "name",
    ["levels", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mixture", "two maps"))],
)
def test_ranks_of_simulated_truths_are_uniform(name):
    vae, _ = problem(name)
    report = cc.calibrate(vae, torch.arange(5) < 2, num=100, seed=0)
    assert report.p_value() > 0.005
    covered, error = report.coverage(0.9)
    assert abs(covered - 0.9) < 4 * error
    assert report.sandwich.lower.mean() < report.log_evidence.mean() + 0.1
    assert report.sandwich.upper.mean() > report.log_evidence.mean() - 0.1


def test_query_log_prob_is_the_difference_of_exact_evidences():
    vae, evidence = problem("mixture")
    truth = vae.sample_prior(3, seed=0)
    whole = cc.Evidence(truth, torch.ones_like(truth, dtype=torch.bool))
    wanted = exact(vae, whole).log_evidence - exact(vae, evidence).log_evidence
    posterior = cc.condition(vae, evidence, seed=0)
    found, error = cc.query_log_prob(posterior, truth, seed=0)
    assert ((found - wanted).abs() < STANDARD_ERRORS * error + 0.02).all()


def test_calibrate_scale_works_with_a_prior():
    vae, _ = problem("full")
    data = vae.sample_prior(300, seed=1)
    unknown = cc.VAE(curved(), 2, Gaussian(2.0), prior=prior_of("full"))
    assert abs(cc.calibrate_scale(unknown, data) - 0.7) < 0.05


@pytest.mark.slow
def test_check_compares_data_with_the_prior():
    vae, _ = problem("mixture")
    data = vae.sample_prior(300, seed=1)
    encoder = filled(nn.Linear(5, 4))
    report = vae.check(data)
    assert report.ok
    assert report["prior"].status == "ok"
    with_encoder = cc.VAE(curved(), 2, Gaussian(0.7), encoder, prior_of("mixture"))
    assert with_encoder.check(data)["prior"].status == "warning"  # the encoder is not trained


def test_a_bank_serves_a_model_with_a_prior(tmp_path):
    vae, evidence = problem("full")
    bank = cc.Bank.of(vae)
    log_evidence = bank.log_likelihood(evidence.values, evidence.mask).logsumexp(0)
    log_evidence = log_evidence - math.log(len(bank.points))
    wanted = exact(vae, evidence).log_evidence
    torch.testing.assert_close(log_evidence, wanted, rtol=0, atol=0.05)
    bank.save(tmp_path / "bank")
    again = cc.Bank.load(tmp_path / "bank", vae=problem("full")[0])
    assert torch.equal(again.points, bank.points)
    with pytest.raises(cc.ModelFormatError):
        cc.Bank.load(tmp_path / "bank", vae=problem("diagonal")[0])
