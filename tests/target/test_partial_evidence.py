"""log p(x|z) and predictions for noisy values, intervals, sets and sums, against exact answers."""

import math

import pytest
import torch
from cheap_methods import every_method_one_fit
from partly_known import (
    DOUBLE,
    TOTAL,
    sums_problem,
    table_evidence,
    table_log_likelihood,
    table_vae,
)
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding import likelihoods

Z = torch.randn(40, 2, generator=seeded(0))


@pytest.fixture(scope="module")
def vae():
    return table_vae()


@pytest.fixture(scope="module")
def target(vae):
    return cc.VAETarget(vae, table_evidence())


def test_log_likelihood_of_every_kind_however_it_is_asked_for(vae, target):
    wanted = table_log_likelihood(vae, Z).float()
    both = Z[:, None].expand(-1, 2, -1)
    which = torch.arange(40) % 2
    selected = target.flatten().select(torch.tensor([1, 0, 1]))
    bank, of_bank = target.log_likelihood_of_bank()
    for found, exact in (
        (target.log_likelihood(both), wanted),
        (target.flatten().prepare().log_likelihood(both), wanted),
        (target.pairwise_log_likelihood(Z), wanted),
        (target.log_likelihood_at(Z, which), wanted[torch.arange(40), which]),
        (selected.log_likelihood(both[:, [1, 0, 1]]), wanted[:, [1, 0, 1]]),
        (of_bank, table_log_likelihood(vae, bank).float()),
    ):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_differences(vae, target):
    z = Z[:6, None].expand(-1, 2, -1).clone().requires_grad_()
    (slope,) = torch.autograd.grad(target.log_likelihood(z).sum(), z)
    for axis, step in enumerate(1e-3 * torch.eye(2)):
        change = table_log_likelihood(vae, Z[:6] + step) - table_log_likelihood(vae, Z[:6] - step)
        torch.testing.assert_close(slope[..., axis], (change / 2e-3).float(), rtol=1e-2, atol=2e-3)


def test_curvature_is_that_of_its_products_and_positive(target):
    z = Z[:3, None].expand(-1, 2, -1)
    curvature = target.flatten().curvature(z)
    assert (torch.linalg.eigvalsh(curvature) >= 1 - 1e-9).all()  # the prior's is 1
    for axis, unit in enumerate(torch.eye(2)):
        along = target.flatten().curvature_along(z, unit.expand_as(z))
        torch.testing.assert_close(along, curvature[..., axis], rtol=1e-4, atol=1e-4)


def test_curvature_of_linear_evidence_is_exact():
    problem = sums_problem()
    target = cc.VAETarget(problem.vae, problem.evidence).flatten()
    weight = problem.vae.decoder.weight.detach()
    scale = problem.vae.likelihood.scale
    for query, (row, _, noise) in enumerate(problem.rows):
        inner = row @ scale.square().diag() @ row.mT + noise.square().diag()
        wanted = torch.eye(2) + (row @ weight).mT @ torch.linalg.solve(inner, row @ weight)
        found = target.curvature(torch.zeros(1, 2, 2, dtype=DOUBLE))[0, query]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_curvature_of_an_interval_of_a_normal_value_is_the_second_derivative():
    weight = torch.tensor([[0.8], [1.3]], dtype=DOUBLE)
    decoder = nn.Linear(1, 2, bias=False).double()
    decoder.weight.data = weight
    vae = cc.VAE(decoder, 1, likelihoods.Gaussian(0.5))
    low = torch.tensor([0.2, -math.inf], dtype=DOUBLE)
    evidence = cc.Evidence.interval(low, torch.tensor([0.9, 0.4], dtype=DOUBLE))
    target = cc.VAETarget(vae, evidence).flatten()
    z = torch.tensor([[[0.3]], [[-1.0]], [[2.0]]], dtype=DOUBLE)

    def log_joint(offset):
        return target.log_joint(z + offset)

    second = (log_joint(1e-4) - 2 * log_joint(0) + log_joint(-1e-4)) / 1e-8
    torch.testing.assert_close(-second, target.curvature(z)[..., 0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "likelihood",
    [likelihoods.Gaussian(None), likelihoods.Gaussian(None, log_variance=True)],
)
def test_curvature_of_sums_with_decoded_scales_is_the_expected_one(likelihood):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.5, -0.3, 0.4], dtype=DOUBLE))

        def forward(self, z):
            mean = self.weight * z
            scale = 0.6 + 0.2 * (z * torch.tensor([1.0, 2.0, -1.0])).tanh()
            if likelihood.log_variance:
                scale = 2 * scale.log()
            return torch.stack([mean, scale], -1)

    vae = cc.VAE(Decoder(), 1, likelihood)
    operator = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=DOUBLE)
    z = torch.tensor([[0.7]], dtype=DOUBLE)
    with torch.no_grad():
        draws = vae.flat_likelihood.draw(
            vae.decode_flat(z), torch.randn(40_000, 3, generator=seeded(0), dtype=DOUBLE)
        )
    noise = 0.1 * torch.randn(40_000, 2, generator=seeded(1), dtype=DOUBLE)
    evidence = cc.Evidence.linear(operator, draws @ operator.mT + noise, 0.1)
    target = cc.VAETarget(vae, evidence)
    at = z.expand(40_000, 1).clone().requires_grad_()
    (score,) = torch.autograd.grad(target.log_likelihood(at).sum(), at)
    curvature = target.select(torch.tensor([0])).curvature(z[None]) - 1
    assert score.mean().abs() < 5 * score.std() / 200
    error = score.square().std() / 200
    assert abs(score.square().mean() - curvature.item()) < 5 * error


# ---- predictions -------------------------------------------------------------------------------


def test_predictions_keep_to_what_is_known(vae):
    evidence = table_evidence()
    posterior = cc.condition(vae, evidence, seed=0)
    draws = posterior.predict(3000, seed=1)
    exact = evidence.exact
    assert torch.equal(draws[:, exact], evidence.values[exact].expand(3000, -1))
    assert draws[:, 0, 3].min() == 2
    assert draws[:, 0, 4].max() == 1
    assert torch.equal(draws[:, 1, 5:8].sum(-1), torch.ones(3000))
    assert draws[:, 1, 5].max() == 0
    assert draws[:, 1, 9].min() >= -0.2
    assert draws[:, 1, 9].max() <= 0.3
    sums = draws @ TOTAL[0]
    torch.testing.assert_close(sums, torch.tensor([1.0, 0.5]).expand(3000, 2), rtol=0, atol=1e-6)


def test_means_and_deviations_are_those_of_draws(vae):
    posterior = cc.condition(vae, table_evidence(), seed=0)
    draws, std = posterior.predict(8000, seed=1), posterior.std()
    error = 6 * std / 8000**0.5 + 0.05 * std  # the draws of z are 1,000
    assert ((draws.mean(0) - posterior.mean()).abs() <= error + 1e-6).all()
    assert ((draws.std(0) - std).abs() <= 0.06 * std + 1e-6).all()
    means = posterior.predict_mean(4000, seed=1).mean(0)
    assert ((means - posterior.mean()).abs() <= error + 1e-6).all()


def test_sums_and_noisy_values_are_answered_exactly():
    problem = sums_problem()
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    assert posterior.trace[0].name == "closed form"
    torch.testing.assert_close(
        posterior.log_evidence, problem.log_evidence(), rtol=1e-10, atol=1e-9
    )
    mean, covariance = problem.posterior()
    draws = posterior.predict(20_000, seed=1)
    for query in range(2):
        gap = torch.cov(draws[:, query].mT) - covariance[query]
        assert gap.abs().max() < 0.02  # six standard errors
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(posterior.mean(), mean, rtol=0, atol=0.03)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    torch.testing.assert_close(posterior.std(), deviation, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        cc.methods.Grid(),
        cc.methods.TemperedSMC(),
        cc.methods.Laplace(),
        cc.methods.NaturalGradient(),
    ],
)
def test_methods_agree_with_the_closed_form_of_sums(method):
    problem = sums_problem()
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    torch.testing.assert_close(posterior.log_evidence, problem.log_evidence(), rtol=0, atol=0.1)


def test_density_of_complete_data_given_exact_sums():
    """Per volume of the plane that the sum leaves: compared with the normal law in that plane."""
    problem = sums_problem()
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    truth = posterior.predict(1, seed=3)[0]
    mean, covariance = problem.posterior()
    found, error = cc.query_log_prob(posterior, truth, seed=0)
    for query in range(2):
        values, axes = torch.linalg.eigh(covariance[query])
        kept = values > 1e-9
        along = axes[:, kept].mT @ (truth[query] - mean[query])
        wanted = (
            -0.5 * (along.square() / values[kept]).sum()
            - 0.5 * (values[kept].log() + math.log(2 * math.pi)).sum()
        )
        assert abs(found[query] - wanted) < 1e-6 + 5 * error[query]
        assert abs(posterior.query_log_prob(truth)[query] - wanted) < 0.2


def test_density_of_complete_data_of_every_kind(vae):
    posterior = cc.condition(vae, table_evidence(), seed=0)
    truth = posterior.predict(1, seed=3)[0]
    found, error = cc.query_log_prob(posterior, truth, seed=0)
    torch.testing.assert_close(posterior.query_log_prob(truth), found, rtol=0, atol=0.1)
    assert (error < 0.1).all()
    outside = truth.clone()
    outside[0, 3] = 1.0
    assert posterior.query_log_prob(outside)[0] == -math.inf
    with pytest.raises(ValueError, match="within the evidence's intervals and sets"):
        cc.query_log_prob(posterior, outside, seed=0)


def test_queries_are_answered_as_they_would_be_alone(vae):
    evidence = table_evidence()
    both = cc.condition(vae, evidence, seed=0)
    for query in range(2):
        alone = cc.condition(vae, evidence[query], seed=0)
        torch.testing.assert_close(alone.log_evidence, both.log_evidence[query], rtol=0, atol=1e-4)
        gap = alone.predict(7, seed=1) - both.predict(7, seed=1)[:, query]
        assert gap.abs().max() < 1e-4


def test_a_query_of_exact_values_alone_beside_noisy_ones():
    """It needs fewer outputs of the decoder than the others' noisy values do."""
    torch.manual_seed(0)
    vae = cc.VAE(nn.Linear(3, 6), 3, likelihoods.Gaussian(0.5))
    data, mask = vae.sample_prior(2, seed=1), torch.arange(6) < torch.tensor([[2], [5]])
    evidence = cc.Evidence(data, mask, noise=torch.tensor([[0.0], [0.5]]))
    z = torch.randn(4, 2, 3, generator=seeded(0))
    both = cc.VAETarget(vae, evidence).flatten()
    alone = both.select(torch.tensor([0])).log_likelihood(z[:, :1])
    torch.testing.assert_close(alone, both.log_likelihood(z)[:, :1])


def test_a_saved_posterior_has_the_same_predictions(tmp_path, vae):
    posterior = cc.condition(vae, table_evidence(), seed=0)
    with pytest.warns(UserWarning, match="not a stack of common layers"):
        posterior.save(tmp_path / "answer")
    loaded = cc.Posterior.load(tmp_path / "answer", vae=vae)
    assert torch.equal(loaded.predict(5, seed=1), posterior.predict(5, seed=1))
    assert torch.equal(loaded.mean(), posterior.mean())


def test_outputs_of_the_bank_are_decoded_once(monkeypatch):
    vae, num = table_vae(), 0
    run = vae._run

    def counted(z):
        nonlocal num
        num += len(z)
        return run(z)

    monkeypatch.setattr(vae, "_run", counted)
    target = cc.VAETarget(vae, table_evidence())
    points, first = target.log_likelihood_of_bank()
    assert num == 2 * len(points)  # for exact values, and for all others
    again = cc.VAETarget(vae, table_evidence()).log_likelihood_of_bank()[1]
    assert num == 2 * len(points)
    assert torch.equal(first, again)
    wanted = target.log_likelihood(points[:50, None].expand(-1, target.num_queries, -1))
    torch.testing.assert_close(first[:50], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (cc.Evidence.interval(torch.tensor([1e30, math.nan])), "which lies between 1e.30 and inf"),
        (
            cc.Evidence(torch.tensor([1e30, 0.0]), torch.tensor([True, False]), noise=1.0),
            "whose value is 1e.30",
        ),
        (
            cc.Evidence.linear(torch.ones(1, 2), torch.tensor([1e30])),
            "for which a sum or a set is known",
        ),
    ],
    ids=["interval", "noise", "sum"],
)
def test_evidence_too_far_out_for_its_precision_is_named(evidence, words):
    decoder = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(2))
    model = cc.VAE(decoder, 2, likelihoods.Gaussian(0.5))
    with pytest.raises(cc.NonFiniteError, match=rf"possible at some z.*element 0, {words}"):
        cc.condition(model, evidence, cc.methods.TemperedSMC(160), seed=0)


def test_an_interval_too_far_out_for_its_precision_gives_a_reason():
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(0)))
    far = cc.Evidence.interval(torch.tensor([1e30, math.nan]))
    answer = cc.condition(cc.VAE(decoder, 2, likelihoods.Gaussian(0.5)), far, seed=0)
    assert answer.verdicts[0].label == "unreliable"
    assert "-inf at every z that was tried" in answer.verdicts[0].reasons[0]
    assert "in double" in answer.verdicts[0].advice
    student = cc.VAE(decoder, 2, likelihoods.StudentT(40.0, 0.5))
    assert cc.condition(student, far, seed=0).log_evidence.isfinite()  # it falls as a power


def test_a_rounded_value_has_nearly_the_mass_of_its_width():
    linear = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(1.0)
    vae = cc.VAE(linear, 1, likelihoods.Gaussian(0.5))
    rounded = cc.Evidence.interval(torch.tensor([3.15]), torch.tensor([3.25]))
    exact = cc.Evidence(torch.tensor([3.2]), torch.tensor([True]))
    found, wanted = (cc.condition(vae, e, seed=0).log_evidence for e in (rounded, exact))
    assert abs(found - wanted - math.log(0.1)) < 0.05


# ---- every method --------------------------------------------------------------------------------


@every_method_one_fit
def test_every_method_answers_evidence_of_every_kind(vae, method):
    evidence = table_evidence()
    posterior = cc.condition(vae, evidence, method, seed=0)
    assert len(posterior.verdicts) == 2
    draws = posterior.predict(50, seed=1)
    exact = evidence.exact
    assert torch.equal(draws[:, exact], evidence.values[exact].expand(50, -1))
    assert draws[:, 0, 3].min() >= 2
    assert ((draws @ TOTAL[0]) - torch.tensor([1.0, 0.5])).abs().max() < 1e-5
    assert posterior.mean().isfinite().all()
    assert posterior.std().isfinite().all()


@pytest.mark.parametrize("kind", ["interval", "noise", "sums"])
def test_budgets_of_decodes_hold_with_partial_evidence(kind):
    problem = sums_problem() if kind == "sums" else None
    model = table_vae() if problem is None else problem.vae
    known = {
        "interval": lambda: cc.Evidence.interval(torch.tensor([-0.1] + [math.nan] * 9)),
        "noise": lambda: cc.Evidence.from_nan(torch.tensor([0.3] + [math.nan] * 9), noise=0.2),
        "sums": lambda: problem.evidence,
    }[kind]()
    for most in (100, 9000):
        answer = cc.condition(model, known, cc.methods.Auto(max_decodes=most), seed=0)
        spent = [stage.decodes for stage in answer.trace]
        assert not spent or (torch.stack(spent).sum(0) <= most).all()
