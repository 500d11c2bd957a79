"""R-hat and ESS, on chains with known answers."""

import math

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.diagnostics import chain_ess, r_hat


def independent(*shape: int, seed: int = 0, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def autoregressive(rho: float, chains: int, draws: int, events: int) -> Tensor:
    """Stationary AR(1) chains z_t = ρ z_{t−1} + sqrt(1 − ρ²) ε_t, (chain, draw, event)."""
    noise = independent(chains, draws, events)
    steps = [noise[:, 0]]
    for t in range(1, draws):
        steps.append(rho * steps[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return torch.stack(steps, 1)


def test_r_hat_of_independent_draws_is_near_one():
    # r_hat − 1 is of the order (chains − 1) / (chains · draws) and noise about as large
    assert ((r_hat(independent(8, 1000, 20)) - 1).abs() < 5e-3).all()


def test_r_hat_detects_chains_stuck_in_two_modes():
    draws = independent(8, 500, 3)
    draws[4:, :, 0] += 6.0
    draws[:1, :, 1] += 6.0  # a single one is enough
    result = r_hat(draws)
    assert (result[:2] > 1.1).all()
    assert result[2] < 1.01


def test_r_hat_detects_one_chain_that_drifts():
    """Split in halves, a drifting chain disagrees with itself although its mean is right."""
    draws = 0.3 * independent(1, 1000, 1) + torch.linspace(-2, 2, 1000).double()[None, :, None]
    assert r_hat(draws).item() > 1.5


def test_r_hat_needs_no_finite_variance():
    """Ranks work on Cauchy draws too, whose means do not converge: it is 1."""
    draws = torch.tan(math.pi * (torch.rand(8, 1000, 5, generator=seeded(0)).double() - 0.5))
    assert (r_hat(draws) < 1.01).all()


def test_r_hat_is_the_same_after_any_increasing_map():
    draws = independent(4, 200, 3)
    torch.testing.assert_close(r_hat(draws.exp()), r_hat(draws))


def test_r_hat_is_the_formula_of_vehtari():
    """Written out with loops for one quantity of three chains."""
    draws = independent(3, 10)
    flat = draws.flatten().tolist()
    rank = {value: index + 1 for index, value in enumerate(sorted(flat))}
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.double), 1.0)
    z = torch.tensor(
        [[(rank[v] - 0.375) / 30.25 for v in chain] for chain in draws.tolist()]
    ).double()
    halves = [half for chain in normal.icdf(z) for half in (chain[:5], chain[5:])]
    within = sum(half.var() for half in halves) / 6
    between = 5 * torch.stack([half.mean() for half in halves]).var()
    expected = ((4 / 5 * within + between / 5) / within).sqrt()
    torch.testing.assert_close(r_hat(draws), expected, rtol=1e-6, atol=0)  # z by float32 shares


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_chain_ess_of_an_autoregression_is_its_closed_form(rho):
    """N (1 − ρ) / (1 + ρ), the mean over 20 independent quantities."""
    chains, draws = 4, 4000
    ess = chain_ess(autoregressive(rho, chains, draws, 20))
    exact = chains * draws * (1 - rho) / (1 + rho)
    # one estimate is good to about 10 % here (Geyer's cut of a noisy sum), 20 of them to 3 %;
    # the cut also leaves a bias of some per cent
    assert ess.mean().item() == pytest.approx(exact, rel=0.1)


def test_chain_ess_measures_the_error_of_the_mean():
    """The spread of the means of 400 replications is sd / sqrt(ESS)."""
    draws = autoregressive(0.8, 1, 1000, 400)
    ess = chain_ess(draws).mean()
    spread = draws.mean((0, 1)).std()
    # the spread of 400 is known to 1 / sqrt(800) = 3.5 %, twice that and the ESS's own bias
    assert spread.item() == pytest.approx(ess.item() ** -0.5, rel=0.12)


def test_chain_ess_of_chains_stuck_in_modes_is_a_few_per_chain():
    draws = independent(8, 500) + 100.0 * torch.arange(8.0)[:, None]
    assert chain_ess(draws).item() < 16


def test_chain_ess_of_chains_that_never_moved_is_at_most_one_per_chain():
    """All proposals rejected, from one place: the worst chains there are, not the best."""
    assert (chain_ess(torch.zeros(1, 100)) <= 1).all()
    assert (chain_ess(torch.full((4, 100, 2), 0.3)) <= 4).all()


def test_chain_ess_is_at_most_draws_times_their_logarithm():
    """Draws that alternate around their mean are better than independent ones, up to a limit."""
    signs = torch.tensor([1.0, -1.0]).double().repeat(500)[None, :]
    draws = signs + 0.01 * independent(4, 1000)
    assert chain_ess(draws).item() <= 4000 * math.log10(4000) * (1 + 1e-9)
    assert chain_ess(draws).item() > 4000


@pytest.mark.parametrize("measure", [r_hat, chain_ess])
def test_each_quantity_is_measured_separately(measure):
    draws = autoregressive(0.5, 4, 200, 6)
    together = measure(draws.reshape(4, 200, 2, 3))
    assert together.shape == (2, 3)
    alone = torch.stack([measure(draws[..., i]) for i in range(6)])
    torch.testing.assert_close(together.flatten(), alone)


@pytest.mark.parametrize("measure", [r_hat, chain_ess])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_draws(measure, dtype):
    assert measure(independent(4, 100, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("measure", [r_hat, chain_ess])
@pytest.mark.parametrize("draws", [4, 5, 101])
def test_an_odd_number_and_the_smallest_number_of_draws_are_accepted(measure, draws):
    assert measure(independent(4, draws, 2)).isfinite().all()


@pytest.mark.parametrize("measure", [r_hat, chain_ess])
@pytest.mark.parametrize("shape", [(10,), (4, 3), (4, 3, 10)])
def test_draws_without_a_chain_dimension_are_refused(measure, shape):
    with pytest.raises(
        ValueError, match=r"\(chain, draw, \*event\) with 4 or more draws per chain"
    ):
        measure(torch.zeros(shape))
