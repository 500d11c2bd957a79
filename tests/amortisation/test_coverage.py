"""What twins say of proposals whose coverage is known."""

import pytest
import torch
from amortised_problems import ExactGaussian, narrow_at
from problems import linear_gaussian_problem, seeded
from torch import Tensor

import crosscoding as cc
from crosscoding.amortisation import coverage
from crosscoding.amortisation.coverage import coverage_of
from crosscoding.crosscoders import Gaussian
from crosscoding.masks import MaskDistribution
from crosscoding.model.amortised_record import ShareRecord

FEW = ShareRecord(0.25, 0.75, 100, 0.9, 0.8)
MASKS = cc.masks.shares(0.25, 0.75)


class Alternate(MaskDistribution):
    """Every other element, or the others."""

    def draw(self, num: int, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        first = torch.randint(2, (num, 1), generator=generator)
        return (torch.arange(shape[0]) + first) % 2 == 0


@pytest.fixture(autouse=True)
def fewer_twins(monkeypatch):
    monkeypatch.setattr(coverage, "_NUM_TWINS", 200)
    monkeypatch.setattr(coverage, "_MOST_SIMULATED", 1000)


def test_the_exact_posterior_covers_itself():
    problem = linear_gaussian_problem(4, 8)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    found = coverage_of(problem.vae, made, MASKS, (FEW,), seeded(0))
    (part,) = found.shares
    assert (part.low, part.high, part.num, part.outside) == (0.25, 0.75, 200, 0)
    assert part.lacking == pytest.approx(1 - 0.05 ** (1 / 200))
    _, data = problem.vae.simulate(2000, generator=seeded(1))
    mask = MASKS.draw(2000, (8,), generator=seeded(2))
    exact = problem.exact_log_evidence(cc.Evidence(data, mask))
    share = mask.double().mean(1)
    exact = exact[(share >= 0.25) & (share < 0.75)]
    levels = exact.quantile(torch.tensor([0.0, 0.05, 0.95, 1.0]))
    assert levels[0] - 3 < part.least < levels[1]
    assert levels[2] < part.most < levels[3] + 3


class Folded(torch.nn.Module):
    """A decoder of |z₀| and the other latents, so that p(z|x) has two modes alike."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(torch.cat([z[..., :1].abs(), z[..., 1:]], -1))


def test_a_network_that_knows_one_of_two_modes_is_not_vouched_for():
    """Half of the twins lie in the mode that it lacks, though its weights are even."""
    problem = linear_gaussian_problem(4, 8, scale=0.3)
    vae = cc.VAE(Folded(problem.vae.own_decoder), 4, problem.vae.likelihood)
    made = cc.Amortised.of(vae, ExactGaussian(problem), Gaussian())
    assert coverage_of(problem.vae, made, MASKS, (FEW,), seeded(0)) is not None
    assert coverage_of(vae, made, MASKS, (FEW,), seeded(0)) is None


def test_shares_with_uneven_weights_or_unlike_masks_are_not_vouched_for():
    problem = linear_gaussian_problem(4, 8)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    uneven = ShareRecord(0.25, 0.75, 100, 0.2, 0.1)
    assert coverage_of(problem.vae, made, MASKS, (uneven,), seeded(0)) is None
    assert coverage_of(problem.vae, made, Alternate(), (FEW,), seeded(0)) is None
    far_off = narrow_at(problem.vae, 5 * torch.ones(4), -2.0)
    assert coverage_of(problem.vae, far_off, MASKS, (FEW,), seeded(0)) is None
