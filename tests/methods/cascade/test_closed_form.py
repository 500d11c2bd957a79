"""Linear decoders with Gaussian noise: exact answers, and only if the decoder is linear."""

import math

import pytest
import torch
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.clock import Clock
from crosscoding.methods import Auto
from crosscoding.methods.cascade.closed_form import _solved, has_closed_form

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


def stages(posterior) -> list[str]:
    return [stage.name for stage in posterior.trace]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("latent_dim", "data_dim"), [(1, 8), (5, 3), (40, 60)])
def test_answers_are_exact_and_trusted(latent_dim, data_dim, dtype):
    problem = linear_gaussian_problem(
        latent_dim, data_dim=data_dim, scale=0.2, batch=(3,), dtype=dtype
    )
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    assert stages(posterior) == ["closed form"]
    assert posterior.trusted.all()
    exact = problem.exact_log_evidence(problem.evidence)
    torch.testing.assert_close(posterior.log_evidence, exact, atol=TOLERANCE[dtype], rtol=1e-6)
    mean, covariance = problem.exact_posterior(problem.evidence)
    draws = cc.condition(problem.vae, problem.evidence, Auto(num_draws=4000), seed=0).draws
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * std / 4000**0.5).all()
    assert ((draws.std(0) / std - 1).abs() < 0.06).all()


def test_a_scale_for_each_element_and_any_batch_shape():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3))).double()
    scale = torch.tensor([0.1, 0.5, 2.0], dtype=torch.double)
    vae = cc.VAE(decoder, 3, cc.likelihoods.Gaussian(scale))
    data = vae.sample_prior(4, seed=0).reshape(2, 2, 2, 3)
    mask = torch.rand(2, 2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    posterior = cc.condition(vae, cc.Evidence(data, mask), seed=0)
    assert stages(posterior) == ["closed form"]
    weight, bias = decoder[0].weight.detach(), decoder[0].bias.detach()
    for i in range(2):
        for j in range(2):
            seen = mask[i, j].flatten()
            noise = scale.expand(2, 3).flatten()[seen].square().diag()
            exact = torch.distributions.MultivariateNormal(
                bias[seen], weight[seen] @ weight[seen].mT + noise
            ).log_prob(data[i, j].flatten()[seen])
            torch.testing.assert_close(posterior.log_evidence[i, j], exact)
            alone = cc.condition(vae, cc.Evidence(data[i, j], mask[i, j]), seed=0)
            torch.testing.assert_close(alone.draws, posterior.draws[:, i, j])


def test_without_evidence_the_closed_form_is_the_prior():
    problem = linear_gaussian_problem(2, batch=(2,))
    posterior = cc.condition(problem.vae, cc.Evidence(problem.truth, torch.tensor(False)), seed=0)
    assert posterior.log_evidence.tolist() == [0, 0]
    assert (posterior.draws.std(0) - 1).abs().max() < 0.1


class Bent(nn.Module):
    """Linear but for what is added."""

    def __init__(self, bend) -> None:
        super().__init__()
        self.linear, self.bend = nn.Linear(2, 4), bend

    def forward(self, z):
        return self.linear(z) + self.bend(z)


@pytest.mark.parametrize(
    "bend",
    [
        lambda z: 1e-3 * z[:, :1].sin(),
        lambda z: 0.1 * (z[:, :1] - 5).relu(),
        lambda z: 0.1 * (z[:, :1] + 50).clamp_max(0),
        lambda z: 1e-3 * z[:, :1] * z[:, 1:],
        lambda z: 0.01 * (z[:, :1] > 3).float(),
    ],
    ids=["ripple", "kink", "kink far out", "product", "step"],
)
def test_a_decoder_that_is_nearly_linear_is_not_taken_for_one(bend):
    torch.manual_seed(0)
    vae = cc.VAE(Bent(bend), 2, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(torch.zeros(1, 4), torch.tensor(True))
    assert not has_closed_form(cc.VAETarget(vae, evidence)).any()


@pytest.mark.parametrize(
    "likelihood", [cc.likelihoods.Laplace(0.1), cc.likelihoods.StudentT(4.0, 0.1)]
)
def test_other_likelihoods_have_no_closed_form(likelihood):
    vae = cc.VAE(nn.Linear(2, 4), 2, likelihood)
    evidence = cc.Evidence(torch.zeros(1, 4), torch.tensor(True))
    assert not has_closed_form(cc.VAETarget(vae, evidence)).any()


def test_a_budget_of_decodes_is_kept():
    problem = linear_gaussian_problem(2)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_decodes=1), seed=0)
    assert posterior.trusted.all()
    assert (posterior.trace[0].decodes == 1).all()


class PartlyLinear(nn.Module):
    """Two linear elements and a bent one."""

    def forward(self, z):
        return torch.stack([0.7 * z[:, 0], -1.1 * z[:, 0] + 0.2, z[:, 0].square()], -1)


def test_what_is_not_observed_need_not_be_linear():
    vae = cc.VAE(PartlyLinear(), 1, cc.likelihoods.Gaussian(0.5))
    values = torch.tensor([[0.3, 0.1, 0.4], [0.3, 0.1, 0.4]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    posterior = cc.condition(vae, cc.Evidence(values, mask), seed=0)
    solved = next(stage.seconds > 0 for stage in posterior.trace if stage.name == "closed form")
    assert solved.tolist() == [True, False]
    assert posterior.ess.isinf().tolist() == [True, False]
    weight, bias = torch.tensor([0.7, -1.1]), torch.tensor([0.0, 0.2])
    exact = torch.distributions.MultivariateNormal(
        bias, weight[:, None] * weight + 0.25 * torch.eye(2)
    ).log_prob(values[0, :2])
    torch.testing.assert_close(posterior.log_evidence[0], exact)
    assert posterior.trusted.all()
    alone = cc.condition(vae, cc.Evidence(values[1], mask[1]), seed=0)
    assert torch.equal(alone.log_evidence, posterior.log_evidence[1])
    hurried = cc.condition(vae, cc.Evidence(values, mask), Auto(max_seconds=20), seed=0)
    assert torch.equal(hurried.log_evidence[0], posterior.log_evidence[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_entries_are_what_they_are_alone_whatever_others_observe(dtype):
    problem = linear_gaussian_problem(3, data_dim=9, scale=0.2, batch=(6,), dtype=dtype)
    mask = torch.arange(9) < torch.tensor([[1], [2], [4], [4], [7], [9]])
    together = cc.condition(problem.vae, cc.Evidence(problem.truth, mask), seed=0)
    for i in range(6):
        alone = cc.condition(problem.vae, cc.Evidence(problem.truth[i], mask[i]), seed=0)
        torch.testing.assert_close(
            alone.log_evidence, together.log_evidence[i], rtol=1e-14, atol=1e-13
        )
        torch.testing.assert_close(alone.draws, together.draws[:, i], rtol=1e-6, atol=1e-12)


def test_a_bend_hidden_by_an_offset_is_not_taken_for_a_line():
    """64 eps of an offset of 101,325 are more than the noise."""

    class Barometer(nn.Module):
        def forward(self, z):
            return 101_325 + 0.6 * (10 * (z.sum(-1, keepdim=True) - 2.5)).sigmoid()

    vae = cc.VAE(Barometer(), 2, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(torch.full((1, 1), 101_325.5), torch.tensor(True))
    assert not has_closed_form(cc.VAETarget(vae, evidence)).any()


def test_large_outputs_are_not_searched_for_lines():
    decoder = nn.Sequential(nn.Linear(64, 70_000))
    vae = cc.VAE(decoder, 64, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(torch.zeros(1, 70_000), torch.tensor(True))
    assert not has_closed_form(cc.VAETarget(vae, evidence)).any()
    assert "linear elements" not in vae.kept


@pytest.mark.parametrize("scale", [1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize(("latent_dim", "data_dim"), [(20, 10), (3, 8), (1, 1)])
def test_a_tiny_scale_does_not_take_the_digits(latent_dim, data_dim, scale):
    """Against W Wᵀ + σ², or the least squares of W and its singular values."""
    torch.manual_seed(0)
    decoder = nn.Linear(latent_dim, data_dim).double()
    vae = cc.VAE(decoder, latent_dim, cc.likelihoods.Gaussian(scale))
    x = vae.sample_prior(2, seed=0)
    posterior = cc.condition(vae, cc.Evidence(x, torch.tensor(True)), seed=0)
    assert stages(posterior) == ["closed form"]
    gaps = (x - decoder.bias).detach().mT  # in the basis of W, and beside it
    u, s, _ = torch.linalg.svd(decoder.weight.detach(), full_matrices=False)
    inside = u.mT @ gaps
    beside = ((gaps - u @ inside) / scale).square().sum(0)
    variances = s.square()[:, None] + scale**2
    exact = -0.5 * (inside.square() / variances + variances.log()).sum(0) - 0.5 * beside
    exact = exact - (data_dim - len(s)) * math.log(scale) - 0.5 * data_dim * math.log(2 * math.pi)
    error = (posterior.log_evidence - exact).abs()
    assert (~posterior.trusted | (error < 1e-3 + 4 * posterior.log_evidence_error)).all()
    assert posterior.trusted.all() or scale < 1e-8


def test_answers_have_fewer_draws_if_time_is_short(monkeypatch):
    problem = linear_gaussian_problem(4, data_dim=8, scale=0.1, batch=300)
    whole, now = _solved, [0.0]

    def slow(linear, elements, values, eps):
        now[0] += 1e-5 * len(elements) * eps.shape[1]
        return whole(linear, elements, values, eps)

    monkeypatch.setattr("crosscoding.methods.cascade.closed_form._solved", slow)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=1.0), seed=0)
    assert now[0] <= 1.1
    assert 100 < len(posterior.draws) < 500
    exact = problem.exact_log_evidence(problem.evidence)
    torch.testing.assert_close(posterior.log_evidence, exact, atol=1e-3, rtol=1e-6)
    assert (posterior.ess == len(posterior.draws)).all()  # so they are not trusted
    assert {verdict.label for verdict in posterior.verdicts} == {"approximate"}


class Hat(nn.Module):
    """Linear, but for a hat of height 3 between 1.945 and 2.201."""

    def forward(self, z):
        hat = torch.relu(1 - (z - 2.073).abs() / 0.128)
        return torch.cat([z + 3 * hat, z.square()], -1)


def test_an_element_with_a_narrow_bend_is_not_taken_for_linear():
    vae = cc.VAE(Hat(), 1, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(torch.tensor([4.7, 0.0]), torch.tensor([True, False]))
    exact = cc.condition(vae, evidence, cc.methods.Grid(), seed=0)
    posterior = cc.condition(vae, evidence, seed=0)
    assert posterior.log_evidence.item() == pytest.approx(exact.log_evidence.item(), abs=0.1)


class FarBend(nn.Module):
    """Linear up to z = 450, farther than is looked for before there is evidence."""

    def forward(self, z):
        return torch.cat([z + 0.1 * torch.relu(z - 450).square(), z], -1)


def test_draws_are_decoded_to_see_whether_they_are_where_the_decoder_is_linear():
    vae = cc.VAE(FarBend(), 1, cc.likelihoods.Gaussian(1e-3))
    evidence = cc.Evidence(torch.tensor([[500.0, 0.0], [2.0, 0.0]]), torch.tensor([True, False]))
    posterior = cc.condition(vae, evidence, Auto(max_decodes=2000), seed=0)
    (exact,) = (stage for stage in posterior.trace if stage.name == "closed form")
    assert exact.decodes[1] > 0
    assert exact.decodes[0] == 0  # answered by other stages
    assert posterior.trusted[1]


def test_there_is_no_search_for_linear_elements_if_it_takes_too_long():
    vae = cc.VAE(nn.Linear(300, 5000), 300, cc.likelihoods.Gaussian(0.1))
    mask = torch.ones(1, 5000, dtype=torch.bool)
    target = cc.VAETarget(vae, cc.Evidence(vae.sample_prior(1, seed=0), mask))
    for seconds, is_looked_for in ((0.05, False), (60.0, True), (0.05, True)):  # then it is known
        assert has_closed_form(target.timed(Clock(seconds))).all() == is_looked_for
