"""Low-rank fits: exact if evidence informs few directions, and never a D × D matrix."""

import math

import pytest
import torch
from problems import blocks, linear_gaussian_problem, seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import crosscoding as cc
from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted
from crosscoding.methods.base import silent
from crosscoding.methods.numerics.low_rank_fit import fit_low_rank
from crosscoding.model.bank import prior_points
from crosscoding.target import observed_likelihood
from crosscoding.target.vae_target import Target


def fit(target: Target, decodes: int = 2200, seconds: float | None = None) -> tuple[Fitted, Tensor]:
    return fit_low_rank(target, decodes, generator=seeded(0), report=silent, clock=Clock(seconds))


def log_weights(target: Target, fitted: Fitted, num: int = 64) -> Tensor:
    z, log_q = fitted.rsample_and_log_prob(num, generator=seeded(1))
    return target.log_joint(z) - log_q


@pytest.mark.parametrize(("scale", "data_dim"), [(20.0, 40), (0.5, 40), (0.05, 40), (1.0, 500)])
def test_it_is_exact_on_a_linear_gaussian_model(scale, data_dim):
    """Of as many observed elements as its rank is, or of more: then it has every dimension."""
    problem = linear_gaussian_problem(200, data_dim, scale, batch=2)
    weights = log_weights(problem.target, fit(problem.target)[0])
    exact = problem.exact_log_evidence()
    # log p(z, x) is a sum of hundreds of squares in float32.
    torch.testing.assert_close(weights.mean(0), exact, rtol=1e-5, atol=0.02)
    assert (weights.std(0) < 0.2).all()


def test_the_remaining_directions_have_their_mean_precision():
    """With less rank than evidence: no Gaussian that is round beside them has a higher C-ELBO."""
    problem = linear_gaussian_problem(200, 400, 5.0, batch=1, dtype=torch.double)
    target = problem.target
    fitted, _ = fit(target, 500)  # too few for Adam
    assert fitted.params["directions"].shape[-1] < 50
    bounds = []
    for factor in (0.8, 1.0, 1.25):
        log_scale = 0.5 * torch.tensor(factor, dtype=torch.double).log()
        wider = fitted.params | {
            "log_diagonal": fitted.params["log_diagonal"] + log_scale,
            "log_widths": fitted.params["log_widths"] - log_scale,
        }
        bounds.append(log_weights(target, Fitted(fitted.crosscoder, wider, 200), 400).mean())
    assert bounds[1] > max(bounds[0], bounds[2])
    assert bounds[1] < problem.exact_log_evidence()


def curved(batch: int, dtype: torch.dtype = torch.double) -> cc.VAETarget:
    decoder = nn.Sequential(nn.Linear(60, 40), nn.SiLU(), nn.Linear(40, 80)).to(dtype)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(1)))
    vae = cc.VAE(decoder, 60, cc.likelihoods.Gaussian(0.1))
    truth = vae.sample_prior(batch, seed=1)
    return cc.VAETarget(vae, cc.Evidence(truth, cc.random_mask((80,), 0.3, seed=2))).flatten()


@pytest.mark.slow
def test_a_curved_model_gains_by_adam_and_by_a_second_round():
    target = curved(3)
    one, adam, two = (
        log_weights(target, fit(target, decodes)[0], 400).mean(0) for decodes in (500, 4000, 20_000)
    )
    natural = cc.infer(target, cc.methods.NaturalGradient(num_starts=1), seed=0)
    assert (adam > one + 100).all()
    assert (two > adam + 10).all()
    # Measured: 5 to 15 nats below, of hundreds that Laplace's Gaussian is.
    assert (two > natural.c_elbo - 30).all()


def test_each_entry_of_a_batch_is_what_it_is_alone():
    target = curved(3)
    together, decodes = fit(target)
    for query in range(3):
        alone, own = fit(target.select(torch.tensor([query])))
        assert own == decodes[query]
        z, same = (
            fitted.rsample_and_log_prob(3, generator=seeded(1))[0]
            for fitted in (alone, together.select(torch.tensor([query])))
        )
        torch.testing.assert_close(z, same, rtol=0, atol=1e-6)


def test_queries_of_few_and_of_many_elements_are_exact_side_by_side():
    problem = linear_gaussian_problem(100, 60, 0.5, batch=3, dtype=torch.double)
    few = torch.arange(60) < torch.tensor([0, 3, 50])[:, None]
    evidence = cc.Evidence(problem.truth, few)
    target = cc.VAETarget(problem.vae, evidence)
    weights = log_weights(target, fit(target)[0])
    exact = problem.exact_log_evidence(evidence)
    torch.testing.assert_close(weights, exact.expand_as(weights), rtol=0, atol=1e-6)


def test_decodes_stay_within_the_limit():
    for decodes in (240, 1000, 4000):
        assert (fit(curved(2), decodes)[1] <= decodes).all()


def test_a_density_with_negative_curvature_is_fitted():
    target = blocks(20, dtype=torch.double).select(torch.zeros(2, dtype=torch.long))
    weights = log_weights(target, fit(target)[0], 400)
    assert weights.isfinite().all()
    assert (weights.mean(0) < blocks(20).log_evidence).all()


def test_a_density_whose_gradient_has_no_derivative_is_fitted():
    bare = cc.DensityTarget(lambda z: -z.abs().sum(-1), 30)
    weights = log_weights(bare.select(torch.zeros(1, dtype=torch.long)), fit(bare.flatten())[0])
    assert weights.isfinite().all()
    assert weights.mean() < 30 * math.log(2)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation outputs."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        parts = output if isinstance(output, tuple | list) else (output,)
        sizes = [part.numel() for part in parts if isinstance(part, Tensor)]
        self.size = max(self.size, *sizes, 0) if sizes else self.size
        return output


def test_no_matrix_of_size_latent_by_latent_is_made():
    problem = linear_gaussian_problem(4096, 40, 1.0, batch=1)
    target = problem.target.flatten()
    problem.vae.kept["bank"] = cc.Bank(problem.vae, prior_points(16, 4096, target.like))
    with Largest() as largest:
        fitted, _ = fit(target, 1000)
    assert largest.size < 4096 * 4096 / 16
    # p(x) of the observed elements, of which there are few
    weight, mask = problem.vae.decoder.weight.double(), problem.evidence.mask[0]
    covariance = weight[mask] @ weight[mask].mT + torch.eye(int(mask.sum()))
    centre = problem.vae.decoder.bias.double()[mask]
    exact = torch.distributions.MultivariateNormal(centre, covariance)
    expected = exact.log_prob(problem.truth[0][mask].double())
    assert log_weights(target, fitted).mean() == pytest.approx(float(expected), abs=0.1)


def test_products_with_the_curvature_are_computed_in_bounded_pieces(monkeypatch):
    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(30, 24)
            self.rows = []

        def forward(self, z):
            self.rows.append(len(z))
            return torch.tanh(self.layer(z)).exp()

    vae = cc.VAE(Recording(), 30, cc.likelihoods.Gaussian(0.2))
    truth = vae.sample_prior(9, seed=0)
    evidence = cc.Evidence(truth, cc.random_mask((24,), 0.7, seed=0))
    target = cc.VAETarget(vae, evidence).prepare()
    z, directions = torch.randn(2, 1, 9, 30, generator=seeded())
    whole = target.curvature_along(z, directions)
    one = vae.cost.values + 8 * vae.params_size
    monkeypatch.setattr(observed_likelihood, "_PIECE_BYTES", 4 * one * 4)
    for limit in (1e7, 0.0):  # by forward mode, and by differences
        monkeypatch.setattr("crosscoding.target.vae_target._EXPENSIVE", limit)
        vae.decoder.rows.clear()
        pieces = target.curvature_along(z, directions)
        assert max(vae.decoder.rows) <= 4
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("seconds", [1e-9, 10.0, 100.0])
def test_a_fit_ends_when_time_is_up_and_leaves_an_answer(seconds, monkeypatch):
    """A clock by which each decode takes a tenth of a second."""
    now, target = [0.0], curved(2)
    for name in ("log_joint", "curvature_along"):
        method = getattr(cc.VAETarget, name)

        def slow(*arguments, method=method, **keywords):
            now[0] += 0.1
            return method(*arguments, **keywords)

        monkeypatch.setattr(cc.VAETarget, name, slow)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    fitted, decodes = fit(target, 12_000, seconds)
    assert now[0] < seconds + 3
    assert (decodes < 12_000).all()
    assert log_weights(target, fitted).isfinite().all()
