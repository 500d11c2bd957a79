"""Each family as the likelihood of a small VAE: log p(x) against a grid, evidence kept, draws."""

import pytest
import torch
from families import FAMILIES, E
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Likelihood
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.numerics.gauss_newton import climb

LATENT = 2
ONE_HOT = "one-hot"
every_model = pytest.mark.parametrize("name", [*FAMILIES, ONE_HOT])


class Decoder(nn.Module):
    """A random network, followed by the map from its output to a family's parameters."""

    def __init__(self, name: str, latent: int = LATENT) -> None:
        super().__init__()
        likelihood = FAMILIES[name].likelihood if name in FAMILIES else None
        self.num = max(sum(likelihood.param_shape), 1) if likelihood else 1
        self.last = FAMILIES[name].params if name in FAMILIES else lambda noise: 2 * noise[..., 0]
        self.layers = nn.Sequential(nn.Linear(latent, 16), nn.Tanh(), nn.Linear(16, E * self.num))
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, 0, 0.6 if index == 2 else 1.0, generator=seeded(index))

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.layers(z).unflatten(-1, (E, self.num)))


def model(name: str) -> cc.VAE:
    """In single precision, like most models."""
    likelihood = Categorical(3, one_hot=True)
    if name in FAMILIES:
        tensors, description = FAMILIES[name].likelihood.to_parts()
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
        likelihood = Likelihood.from_parts((tensors, description))
    return cc.VAE(Decoder(name), LATENT, likelihood)


def question(vae: cc.VAE, name: str) -> tuple[Tensor, cc.Evidence]:
    """Four data drawn from the model: one unobserved, one fully observed, two half observed."""
    truth = vae.sample_prior(4, seed=3)
    mask = torch.tensor(
        [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    )
    return truth, cc.Evidence.from_nan(torch.where(mask.bool(), truth, torch.nan))


def by_brute_force(vae: cc.VAE, evidence: cc.Evidence) -> Tensor:
    """log p(x) by trapezoids over [−5, 5]², steps of 1/40."""
    axis = torch.linspace(-5, 5, 401)
    total = torch.full(evidence.values.shape[:1], -torch.inf, dtype=torch.double)
    for row in axis.split(40):
        z = torch.cartesian_prod(row, axis)
        params = vae.decode_flat(z).unsqueeze(1)
        log_prob = vae.flat_likelihood.log_prob(params, evidence.values).double()
        log_joint = torch.where(evidence.mask, log_prob, 0.0).sum(-1)
        log_joint = log_joint - 0.5 * z.double().square().sum(-1, keepdim=True)
        total = torch.logaddexp(total, log_joint.logsumexp(0))
    return total - torch.log(torch.tensor(2 * torch.pi)) - 2 * torch.log(torch.tensor(40.0))


@every_model
@pytest.mark.filterwarnings("ignore:the decoder is not a stack")
@pytest.mark.slow
def test_a_vae_with_each_family_answers(name, tmp_path):
    vae = model(name)
    truth, evidence = question(vae, name)
    exact = by_brute_force(vae, evidence)
    posterior = cc.condition(vae, evidence, seed=0)
    torch.testing.assert_close(posterior.log_evidence.double(), exact, rtol=0, atol=0.02)
    draws = posterior.predict(30, seed=0)
    assert draws.shape == (30, 4, E)
    assert vae.likelihood.in_support(draws).all()
    given = evidence.mask.expand(draws.shape)
    assert torch.equal(draws[given], truth.expand(draws.shape)[given])  # bit for bit
    assert torch.equal(posterior.mean()[evidence.mask], truth[evidence.mask])
    assert (posterior.std()[evidence.mask] == 0).all()
    assert posterior.query_log_prob(truth).isfinite().all()
    assert posterior.predict(0).dtype == draws.dtype
    posterior.save(tmp_path / "posterior")
    loaded = cc.Posterior.load(tmp_path / "posterior", vae=vae)
    assert torch.equal(loaded.predict(5, seed=1), posterior.predict(5, seed=1))


@every_model
def test_gauss_newton_climbs_to_a_high_mode(name):
    """Using J^T F J with the family's Fisher information, which is positive definite there."""
    vae = model(name)
    _, evidence = question(vae, name)
    target = cc.VAETarget(vae, evidence).flatten()
    starts = spread_starts(target, 8, generator=seeded(0))
    modes = climb(target, starts, 50)
    assert (modes.log_joint >= target.log_joint(starts)).all()
    assert (torch.linalg.cholesky_ex(modes.precision).info == 0).all()
    grid = torch.cartesian_prod(torch.linspace(-4, 4, 201), torch.linspace(-4, 4, 201))
    log_joint = target.pairwise_log_likelihood(grid) + target.log_prior(grid)[:, None]
    # these posteriors have several modes of similar height: 8 climbs may miss the highest
    assert (modes.log_joint.amax(0) > log_joint.amax(0) - 0.6).all()


@every_model
def test_a_model_that_is_saved_is_the_same_model(name):
    """Made of common layers: a linear decoder whose bias makes its outputs valid parameters."""
    likelihood = model(name).likelihood
    num = max(sum(likelihood.param_shape), 1)
    linear = nn.Linear(LATENT, E * num)
    nn.init.zeros_(linear.weight)
    bias = torch.tensor([0.2, 0.6, 1.1, 1.5]).repeat(num)[:num].repeat(E)
    linear.bias = nn.Parameter(bias)
    shape = (E, *likelihood.param_shape)
    vae = cc.VAE(nn.Sequential(linear, nn.Unflatten(1, shape)), LATENT, likelihood)
    parts = vae.to_parts()
    assert parts is not None
    again = cc.VAE.from_parts(parts)
    assert torch.equal(again.sample_prior(9, seed=0), vae.sample_prior(9, seed=0))


@every_model
def test_the_bank_and_observed_rows_are_log_likelihoods_of_the_whole_decoder(name):
    vae = model(name)
    _, evidence = question(vae, name)
    target = cc.VAETarget(vae, evidence).flatten()
    points, log_likelihood = target.log_likelihood_of_bank()
    some = torch.arange(0, len(points), 997)
    each = target.log_likelihood(points[some][:, None].expand(-1, 4, -1))
    torch.testing.assert_close(log_likelihood[some], each, rtol=1e-4, atol=1e-3)
    query = torch.tensor([3, 1, 0, 2] * len(some))[: len(some)]
    paired = target.log_likelihood_at(points[some], query)
    torch.testing.assert_close(paired, each[torch.arange(len(some)), query], rtol=1e-4, atol=1e-3)
