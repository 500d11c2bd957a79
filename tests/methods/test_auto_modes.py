"""Auto on several modes: right, or else not trusted."""

import pytest
import torch
from auto_answers import labels
from problems import BlocksTarget, MixtureTarget, Waves, blocks, mirrored_vae
from torch import Tensor

import crosscoding as cc
from crosscoding.methods import Auto
from crosscoding.methods.cascade import cascade, climb_stages

pytestmark = pytest.mark.usefixtures("without_closed_form")


def narrow_blocks(dim: int, scale: float) -> BlocksTarget:
    """`blocks` with modes so narrow that they are climbed to and not annealed to."""
    target = BlocksTarget(dim)
    target.block = MixtureTarget(
        target.block.weights,
        target.block.means,
        torch.full((2, 2), scale),
        prior_scale=1.0,
        log_evidence=target.block.log_evidence,
    )
    return target


def assert_right_or_not_trusted(posterior: cc.Posterior, target: BlocksTarget) -> None:
    """A trusted log p(x) has an error of 0.05 nats at most, and the modes' shares follow it.

    One that is not trusted says why, and its error is of the size that it says.
    """
    off = abs(posterior.log_evidence - target.log_evidence)
    if not posterior.trusted:
        assert any(
            word in posterior.verdicts[0].reasons[0]
            for word in ("above", "fewer", "no search", "unaccounted")
        )
        assert off < 8 * posterior.log_evidence_error  # 6.8 of them for 2^32 modes, with one seed
    else:
        assert off < 0.2  # 4 standard errors
        # 5 standard errors of a share of 0.65 in 600 draws, the largest of several blocks.
        assert (target.masses(posterior.draws) - 0.65).abs().max() < 0.1


@pytest.mark.parametrize("dim", [2, 4, 8])
@pytest.mark.slow
def test_few_blocks_are_right(dim):
    target = blocks(dim)
    for seed in range(3):
        posterior = cc.infer(target, Auto(), seed=seed)
        assert labels(posterior) == ["trusted" if dim == 2 else "approximate"]
        assert abs(posterior.log_evidence - target.log_evidence) < 0.1
        assert (target.masses(posterior.draws) - 0.65).abs().max() < 0.1


@pytest.mark.parametrize(("dim", "num_seeds"), [(16, 2), (64, 1)])
@pytest.mark.slow
def test_many_blocks_are_right_or_not_trusted(dim, num_seeds):
    target = blocks(dim)
    for seed in range(num_seeds):
        assert_right_or_not_trusted(cc.infer(target, Auto(), seed=seed), target)


@pytest.mark.parametrize("scale", [0.1, 0.02])
@pytest.mark.parametrize("dim", [4, 8])
@pytest.mark.slow
def test_narrow_blocks_are_right_or_not_trusted(dim, scale):
    """16 modes in 8 dimensions are more than are proposed from: those left out are missed."""
    target = narrow_blocks(dim, scale)
    for seed in range(2):
        assert_right_or_not_trusted(cc.infer(target, Auto(), seed=seed), target)


@pytest.mark.slow
def test_modes_found_by_a_single_climb_show_how_many_are_missing(monkeypatch):
    """Of 256 modes 64 climbs find a part, and draws from that part show nothing amiss."""
    monkeypatch.setattr(climb_stages, "_MOST_COMPONENTS", 64)  # a proposal from all that were found
    monkeypatch.setattr(cascade, "_MOST_OPERATIONS", 0.0)  # and no swarm
    target = narrow_blocks(16, 0.02)
    posterior = cc.infer(target, Auto(), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "climb"]
    assert posterior.ess > 600
    lacking = 1 - (posterior.log_evidence - target.log_evidence).exp()
    assert lacking > 0.2
    assert target.log_evidence - posterior.log_evidence < 4 * posterior.log_evidence_error
    # The share of modes found once is that of p(z|x) not found: a standard error of 0.06 in 64
    # climbs, if each mode were found as often as it weighs, and here that is so within a half.
    assert posterior.stats["missed"] > 0.5 * lacking
    assert not posterior.trusted


def side_shares(draws: Tensor) -> Tensor:
    """Share of draws (S, B, latent) on one side of 0, along their longest axis, (B,)."""
    axis = torch.linalg.svd(draws.double().transpose(0, 1), full_matrices=False)[2][:, 0]
    return (torch.einsum("sbi,bi->sb", draws.double(), axis) > 0).double().mean(0)


@pytest.mark.parametrize(
    ("latent", "data", "scale", "seed"),
    [
        (4, 8, 0.3, 0),
        (4, 12, 0.1, 2),
        (8, 16, 0.3, 2),  # a Gaussian at one of two modes was trusted here
        (8, 32, 0.1, 2),
        (8, 16, 0.5, 0),
    ],
)
@pytest.mark.slow
def test_a_trusted_mirrored_answer_has_both_sides(latent, data, scale, seed):
    vae = mirrored_vae(latent, data, scale, seed=seed)
    evidence = cc.Evidence(
        vae.sample_prior(6, seed=seed + 100), cc.random_mask((data,), 0.7, seed=seed)
    )
    posterior = cc.condition(vae, evidence, Auto(), seed=seed)
    off = (side_shares(posterior.draws) - 0.5).abs()
    assert (off[posterior.trusted] <= 0.05).all()
    assert posterior.trusted.any()  # an answer that trusts nothing says nothing


def test_a_gaussian_at_one_of_two_modes_reports_the_missing_mass(monkeypatch):
    """Where the mixture of modes is poor and a Gaussian is better, half of p(z|x) is missed."""
    monkeypatch.setattr(cascade, "_MOST_OPERATIONS", 0.0)  # no swarm that would find both
    vae = mirrored_vae(8, 16, 0.3, seed=2)
    truth = vae.sample_prior(6, seed=102)
    evidence = cc.Evidence(truth, cc.random_mask((16,), 0.7, seed=2))[[3]]
    posterior = cc.condition(vae, evidence, Auto(), seed=2)
    one_sided = (side_shares(posterior.draws) - 0.5).abs() > 0.4
    assert not (posterior.trusted & one_sided).any()


@pytest.mark.parametrize(("latent", "rate"), [(4, 6.0), (6, 5.0), (8, 4.0)])
@pytest.mark.slow
def test_climbs_that_get_stuck_do_not_count_as_a_search(latent, rate):
    """Of the many local modes nearly all have no mass; particles and climbs end in them."""
    vae = cc.VAE(Waves(rate), latent, cc.likelihoods.Gaussian(0.1))
    data = vae.sample_prior(12, seed=0)
    posterior = cc.condition(vae, cc.Evidence(data, torch.tensor(True)), Auto(), seed=0)
    off = (posterior.log_evidence - vae.decoder.log_evidence(data, 0.1)).abs()
    assert not (posterior.trusted & (off > 0.15)).any()
    assert (off < 0.5).sum() >= 4  # the swarm, which is asked then, finds it for a third
