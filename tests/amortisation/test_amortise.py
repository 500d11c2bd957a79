"""`amortise`: towards exact posteriors, in the right units, resumable, and refusals."""

import pytest
import torch
from problems import LinearGaussianProblem, linear_gaussian_problem, mirrored_vae, seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.amortisation.networks import default_network
from crosscoding.amortisation.record import record_of
from crosscoding.amortisation.training import Training
from crosscoding.crosscoders import Gaussian, Mixture
from crosscoding.likelihoods import Categorical, LogNormal, Mixed, Poisson

QUICK = {"max_seconds": None, "progress": False}


class Beside(nn.Module):
    """Layers that see values and mask side by side."""

    def __init__(self, stack: nn.Sequential) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.stack(torch.cat([values, mask.to(values)], -1))


def trained(steps: int) -> tuple[cc.VAE, LinearGaussianProblem]:
    """A linear-Gaussian model with a small network after some steps, and its problem."""
    problem = linear_gaussian_problem(3, 8, batch=64, seed=1)
    settings = {"crosscoder": Gaussian(), "network": small_network(8, 9, 128)}
    return cc.amortise(problem.vae, max_steps=steps, **settings, **QUICK), problem


@pytest.fixture(scope="module")
def linear() -> tuple[cc.VAE, LinearGaussianProblem]:
    """`trained` for 600 steps."""
    return trained(600)


def small_network(num_elements: int, num_out: int, hidden: int = 64) -> Beside:
    torch.manual_seed(0)
    first, middle = nn.Linear(2 * num_elements, hidden), nn.Linear(hidden, hidden)
    layers = first, nn.SiLU(), middle, nn.SiLU(), nn.Linear(hidden, num_out)
    return Beside(nn.Sequential(*layers))


def divergence(vae: cc.VAE, problem: LinearGaussianProblem) -> tuple[float, float]:
    """KL from p(z|x) to q(z|x), and to the prior, in nats, on average."""
    found = vae.amortised.propose(problem.evidence.values, problem.evidence.mask)
    exact = torch.distributions.MultivariateNormal(*problem.exact_posterior())
    z = exact.sample((200,))
    prior = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    others = found.log_prob(z), prior.log_prob(z)
    here, before = (float((exact.log_prob(z) - other).mean()) for other in others)
    return here, before


def test_the_network_approaches_the_exact_posterior_of_a_linear_model(linear):
    here, before = divergence(*linear)
    assert here < 0.2 * before


@pytest.mark.slow
def test_with_more_steps_it_comes_closer(linear):
    here, _ = divergence(*linear)
    later, before = divergence(*trained(2000))
    assert later < min(0.1 * before, here)


def test_the_held_out_bound_is_never_above_minus_the_entropy(linear):
    """E log q(z|x) ≤ E log p(z|x), which is known for masks and data of the training."""
    vae, problem = linear
    generator = seeded(3)
    mask = cc.masks.mixed().draw(4000, (8,), generator=generator)
    z, data = problem.vae.simulate(4000, generator=generator)
    mean, covariance = problem.exact_posterior(cc.Evidence(data, mask))
    terms = torch.distributions.MultivariateNormal(mean, covariance).log_prob(z)
    record = vae.amortised.record
    error = torch.hypot(terms.std() / 4000**0.5, torch.tensor(record.error))
    assert record.bound < terms.mean() + 4 * error
    assert record.bound > terms.mean() - 0.6


def test_the_bound_is_that_of_twins_that_chose_no_weights(linear):
    vae, problem = linear
    masks, network = cc.masks.mixed(), small_network(8, 9)
    training = Training(problem.vae, masks, network, Gaussian(), seed=0)
    training.bounds = torch.full((2000,), 100.0)
    record = record_of(problem.vae, vae.amortised, masks, training)
    assert abs(record.bound - vae.amortised.record.bound) < 1e-5
    assert record.error == pytest.approx(vae.amortised.record.error)


@pytest.mark.parametrize("seed", [2**53, 2**63])
def test_every_seed_will_do(seed):
    vae = cc.amortise(linear_gaussian_problem().vae, max_steps=2, seed=seed, **QUICK)
    assert vae.amortised.record.steps == 2


def test_the_record_says_what_it_was_trained_on(linear):
    vae, _ = linear
    record = vae.amortised.record
    assert record.masks == repr(cc.masks.mixed())
    assert record.steps == 600
    assert sum(part.num for part in record.shares) == 512
    assert all(0 <= part.tenth <= part.median <= 1 for part in record.shares)
    assert record.shares[0].median > 0.8  # hardly anything is observed
    assert record.outside < 0.02
    assert "600 steps" in str(record)


def test_answers_are_those_without_it(linear, without_closed_form):
    vae, problem = linear
    posterior = cc.condition(vae, problem.evidence[:8], seed=0)
    error = (posterior.log_evidence - problem.exact_log_evidence()[:8]).abs()
    assert ((error < 0.1) | ~posterior.trusted).all()
    assert posterior.trusted.float().mean() > 0.8


def test_forward_divergence_covers_both_of_two_mirrored_modes():
    vae = mirrored_vae(2, 6, 0.3)
    vae = cc.amortise(
        vae, max_steps=300, crosscoder=Mixture(2), network=small_network(6, 12), **QUICK
    )
    z = torch.tensor([1.2, 0.8])
    data = vae.decode(z)[None]
    found = vae.amortised.propose(data, torch.ones_like(data, dtype=torch.bool))
    draws, _ = found.rsample_and_log_prob(2000, generator=seeded(0))
    share = float((draws[:, 0] @ z > 0).float().mean())
    assert 0.2 < share < 0.8
    assert vae.amortised.record.outside < 0.05  # 0.02 to 0.03; 0.5 with one mode alone


def mixed_table() -> cc.VAE:
    """Columns of three kinds, one of them with values of very different sizes."""
    torch.manual_seed(0)
    likelihood = Mixed([(LogNormal(), 1), (Poisson(), 1), (Categorical(3), 1)])
    return cc.VAE(nn.Linear(4, 5), 4, likelihood)


def test_columns_of_every_kind_reach_the_network_in_its_units():
    vae = mixed_table()
    data = vae.sample_prior(2000, seed=0)
    network = default_network(vae, Gaussian(), data, seeded(0))
    features = network.features(data, torch.ones_like(data, dtype=torch.bool))
    assert features.shape == (2000, 3 + 3 + 3)
    assert features[:, :2].abs().max() < 20
    assert torch.equal(features[:, 6:].argmax(1), data[:, 2].long())
    nothing = network.features(data, torch.zeros_like(data, dtype=torch.bool))
    assert (nothing == 0).all()


def test_tables_and_priors_of_any_kind_are_amortised():
    vae = cc.amortise(mixed_table(), max_steps=3, **QUICK)
    assert vae.amortised.latent_dim == 4
    prior = cc.priors.Mixture(torch.ones(2), torch.tensor([[-1.0], [2.0]]), torch.ones(2, 1))
    other = cc.VAE(nn.Linear(1, 3), 1, cc.likelihoods.Gaussian(0.3), prior=prior)
    assert cc.amortise(other, max_steps=3, **QUICK).amortised.made_for.same_as(other.own_print())


@pytest.mark.parametrize(
    "shape", [(12, 12), pytest.param((3, 32, 32), marks=pytest.mark.slow)], ids=str
)
def test_pictures_of_every_size_have_a_network(shape, tmp_path):
    size = torch.Size(shape).numel()
    decoder = nn.Sequential(nn.Linear(3, size), nn.Unflatten(1, shape))
    vae = cc.amortise(cc.VAE(decoder, 3, cc.likelihoods.Bernoulli()), max_steps=2, **QUICK)
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    assert again.amortised.record == vae.amortised.record
    assert again.amortised.network.describe() == vae.amortised.network.describe()


def test_the_same_seed_gives_the_same_network_and_resumes_to_it(tmp_path):
    vae, small = linear_gaussian_problem().vae, {"network": small_network(8, 9)}
    own = {"max_steps": 40, "seed": 3, "crosscoder": Gaussian()} | small | QUICK
    whole = cc.amortise(vae, **own)
    assert same_weights(whole, cc.amortise(vae, **own))

    class StoppedError(Exception):
        pass

    def stop(share: float, what: str) -> None:
        if share > 0.5:
            raise StoppedError

    settings = own | {"checkpoint": tmp_path / "c"}
    with pytest.raises(StoppedError):
        cc.amortise(vae, report=stop, **settings)
    assert same_weights(whole, cc.amortise(vae, **settings))
    with pytest.raises(ValueError, match="a checkpoint of this training, got one of another"):
        cc.amortise(vae, **(settings | {"seed": 4}))
    with pytest.raises(ValueError, match="a checkpoint of this training, got one of another"):
        cc.amortise(vae, **(settings | {"crosscoder": Mixture(2), "network": None}))


def same_weights(one: cc.VAE, other: cc.VAE) -> bool:
    pairs = zip(
        one.amortised.network.parameters(), other.amortised.network.parameters(), strict=True
    )
    return all(torch.equal(here, there) for here, there in pairs)


def test_training_stops_early_where_nothing_is_left_to_learn():
    """A decoder that ignores z: q(z|x) is the prior, which the network starts near."""
    decoder = nn.Linear(2, 3)
    nn.init.zeros_(decoder.weight)
    vae = cc.VAE(decoder, 2, cc.likelihoods.Gaussian(1.0))
    network = small_network(3, 5)
    nn.init.zeros_(network.stack[-1].weight)
    nn.init.zeros_(network.stack[-1].bias)
    found = cc.amortise(vae, max_steps=400, crosscoder=Gaussian(), network=network, **QUICK)
    assert found.amortised.record.steps < 200


def test_masks_of_ones_own_are_used():
    vae = linear_gaussian_problem().vae
    mask = torch.arange(8) < 3
    record = cc.amortise(vae, mask, max_steps=2, **QUICK).amortised.record
    assert [part.num for part in record.shares] == [512]
    assert record.shares[0].low == 0.25


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"masks": torch.ones(7) > 0}, ValueError, r"expected masks of shape \(8,\)"),
        ({"masks": torch.ones(8)}, TypeError, "expected boolean masks"),
        ({"masks": "mixed"}, TypeError, "expected masks to be a distribution"),
        ({"masks": cc.masks.halves()}, ValueError, "expected the shape of a picture"),
        ({"max_seconds": 0}, ValueError, "expected max_seconds > 0 or None"),
        ({"max_seconds": "1"}, TypeError, "expected max_seconds to be a number"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"max_seconds": None, "max_steps": None}, ValueError, "max_seconds or max_steps"),
        ({"seed": -1}, ValueError, "seed >= 0"),
        ({"seed": None}, TypeError, "expected seed to be an int"),
        ({"crosscoder": cc.crosscoders.Planar(2)}, TypeError, "expected crosscoder to be"),
        ({"network": nn.Linear(8, 4)}, ValueError, "expected network to take rows"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, error, words):
    vae = linear_gaussian_problem().vae
    settings = {"max_steps": 1, "progress": False} | change
    with pytest.raises(error, match=words):
        cc.amortise(vae, **settings)


def test_only_vaes_are_amortised():
    with pytest.raises(TypeError, match=r"expected a crosscoding\.VAE"):
        cc.amortise(nn.Linear(2, 3))
