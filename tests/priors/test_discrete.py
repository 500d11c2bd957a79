"""What holds for every prior over discrete latents."""

import pytest
import torch
from discrete_models import Shifted, every_state, pairs_of, priors
from problems import seeded

from crosscoding.priors import Bernoulli, Categorical
from crosscoding.priors.elimination import elimination_order
from crosscoding.priors.pair_annealing import annealed

PRIORS = priors()
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())
LIKE = torch.empty(0)


@every_prior
def test_probabilities_of_all_states_sum_to_one(prior):
    total = prior.log_prob(every_state(prior)).double().logsumexp(0)
    assert abs(total) < 1e-5  # rounding of float32 logits


@every_prior
def test_states_are_counted_in_order_and_in_pieces(prior):
    states = every_state(prior)
    assert prior.num_states == len(states)
    pieces = [prior.states(start, start + 100, LIKE) for start in range(0, len(states), 100)]
    assert torch.equal(torch.cat(pieces), states)


@every_prior
def test_draws_have_the_probabilities_of_the_states(prior):
    num, states = 40_000, every_state(prior)
    z = prior.sample(num, generator=seeded(0), like=LIKE)
    p = prior.log_prob(states).exp()
    inputs, exact = prior.decoder_input(z).flatten(1), prior.decoder_input(states).flatten(1)
    first, second = p @ exact, (exact.mT * p) @ exact
    error = 5 * (second * (1 - second) / num).clamp_min(1e-12).sqrt() + 1e-4
    assert ((inputs.mT @ inputs / num - second).abs() < error).all()
    assert ((inputs.mean(0) - first).abs() < error.diagonal()).all()


@every_prior
def test_changes_are_those_of_a_function_linear_in_the_inputs(prior):
    z = prior.sample(7, generator=seeded(1), like=LIKE)
    slope = torch.randn(7, *prior.input_shape, generator=seeded(2))
    changes = prior.changes(z, slope)
    for place in range(prior.latent_dim):
        for value in range(prior.num_values):
            other = z.clone()
            other[:, place] = value
            gap = prior.decoder_input(other) - prior.decoder_input(z)
            wanted = (gap * slope).flatten(1).sum(1)
            torch.testing.assert_close(changes[:, place, value], wanted)


@every_prior
def test_other_numbers_are_no_states(prior):
    z = prior.sample(3, generator=seeded(0), like=LIKE)
    for wrong in (-1.0, 0.5, float(prior.num_values), float("nan")):
        bad = z.clone()
        bad[1, 0] = wrong
        for ask in (prior.log_prob, prior.decoder_input):
            with pytest.raises(ValueError, match=f"whole numbers from 0 to {prior.num_values - 1}"):
                ask(bad)
    with pytest.raises(ValueError, match=rf"shape \(\*sample, {prior.latent_dim}\)"):
        prior.log_prob(z[:, 1:])


def grouped(small: int, large: int) -> torch.Tensor:
    pairs = pairs_of(small + large)
    pairs[:small, :small] = pairs[small:, small:] = 0
    return pairs


CHAIN = torch.diag(torch.ones(39), 1) + torch.diag(torch.ones(39), -1)


@pytest.mark.parametrize(
    ("pairs", "largest"),
    [(grouped(12, 52), 12), (CHAIN, 1), (pairs_of(20), 19), (torch.zeros(64, 64), 0)],
    ids=["two groups", "chain", "all pairs", "none"],
)
def test_pairs_with_structure_are_summed_exactly(pairs, largest):
    steps = elimination_order(pairs != 0)
    assert steps is not None
    assert max(len(step.neighbours) for step in steps) == largest
    prior = Bernoulli(torch.zeros(len(pairs)), pairs)
    assert prior.log_normaliser_error == 0


def test_log_z_of_two_groups_is_the_sum_over_the_small_one():
    pairs, logits = grouped(6, 30).double(), torch.randn(36, generator=seeded(3)).double()
    small = every_state(Bernoulli(torch.zeros(6))).double()
    rest = torch.nn.functional.softplus(logits[6:] + small @ pairs[:6, 6:]).sum(1)
    wanted = (small @ logits[:6] + rest).logsumexp(0)
    torch.testing.assert_close(Bernoulli(logits, pairs).log_normaliser, wanted)


def test_the_gradient_of_log_z_is_the_mean():
    logits = torch.nn.Parameter(torch.randn(8, generator=seeded(0)).double())
    prior = Bernoulli(logits, pairs_of(8).double())
    (slope,) = torch.autograd.grad(prior.log_normaliser, logits)
    states = every_state(prior).double()
    with torch.no_grad():
        torch.testing.assert_close(slope, prior.log_prob(states).exp() @ states)


def test_log_z_follows_trained_parameters():
    logits = torch.nn.Parameter(torch.zeros(3))
    prior = Bernoulli(logits, pairs_of(3))
    with torch.no_grad():
        before = prior.log_normaliser.clone()
        logits += 1.0
        assert prior.log_normaliser > before + 0.5


def test_annealed_particles_agree_with_exact_sums():
    logits, pairs = torch.randn(16, generator=seeded(4)), pairs_of(16)
    prior = Bernoulli(logits, pairs)
    draws, log_groups = annealed(logits, pairs, 8000, generator=seeded(0))
    error = log_groups.std() / len(log_groups) ** 0.5
    assert abs(log_groups.mean() - prior.log_normaliser) < 5 * error
    states = every_state(prior)
    exact = prior.log_prob(states).exp() @ states
    assert (draws.mean(0) - exact).abs().max() < 0.06  # correlated draws; 0.01 if independent


def test_dense_pairs_have_an_estimate_with_an_error():
    prior = Bernoulli(torch.zeros(32), pairs_of(32, strength=0.3))
    assert 0 < prior.log_normaliser_error < 0.1
    draws = prior.sample(50, generator=seeded(0), like=LIKE)
    assert draws.shape == (50, 32)
    assert draws.unique().tolist() == [0.0, 1.0]


def wrong(**changes):
    return {"logits": torch.zeros(3), "pairs": torch.zeros(3, 3)} | changes


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (wrong(logits=[0.0]), TypeError, "logits to be a floating-point tensor, got list"),
        (wrong(logits=torch.zeros(3, dtype=torch.long)), TypeError, "got torch.int64"),
        (wrong(logits=torch.tensor([0.0, torch.inf, 0.0])), ValueError, "finite logits"),
        (wrong(logits=torch.zeros(3, 1)), ValueError, r"shape \(D,\), got \(3, 1\)"),
        (wrong(pairs=torch.zeros(2, 2)), ValueError, r"pairs of shape \(3, 3\), got \(2, 2\)"),
        (wrong(pairs=torch.full((3, 3), torch.nan)), ValueError, "finite pairs"),
        (wrong(pairs=torch.ones(3, 3).triu(1)), ValueError, r"pass pairs \+ pairs.mT"),
        (wrong(pairs=torch.eye(3)), ValueError, "zero diagonal"),
        (wrong(pairs=torch.zeros(3, 3).double()), ValueError, "dtype of logits"),
    ],
)
def test_pairs_and_logits_that_do_not_fit_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Bernoulli(**arguments)


class LooksAhead(Shifted):
    def forward(self, one_hot):
        return torch.einsum("ikjl,njl->nik", self.weight, one_hot)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_codes": 1}, ValueError, "number of values >= 2, got 1"),
        ({"num_places": 2.0}, TypeError, "number of places to be an int"),
        ({"logits": torch.zeros(5, 3)}, ValueError, r"shape \(5, 4\) or \(4,\), got \(5, 3\)"),
        ({"logits": torch.tensor([0.0, 0, 0, torch.nan])}, ValueError, "finite logits"),
        ({"network": Shifted(5, 3)}, ValueError, r"takes one-hot codes of shape \(N, 5, 4\)"),
        ({"network": torch.nn.Flatten()}, ValueError, r"output \(N, 5, 4\).*got \(8, 20\)"),
        ({"network": LooksAhead(5, 4)}, ValueError, "depend only on the codes before it"),
        ({"network": lambda x: x}, TypeError, "torch.nn.Module"),
        ({"network": Shifted(5, 4), "logits": torch.zeros(4)}, ValueError, "got both"),
    ],
)
def test_codes_that_do_not_fit_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Categorical(**{"num_codes": 4, "num_places": 5} | arguments)


def test_a_network_with_numbers_that_are_not_finite_is_refused():
    network = Shifted(5, 4)
    with torch.no_grad():
        network.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="finite logits from the network"):
        Categorical(4, 5, network=network)
