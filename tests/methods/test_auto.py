"""Auto: right wherever the exact answer is known, or else not trusted."""

import math
import time

import pytest
import torch
from problems import (
    BlocksTarget,
    MixtureTarget,
    Waves,
    blocks,
    ill_conditioned_problem,
    linear_gaussian_problem,
    mirrored_vae,
    mixture_target,
    seeded,
)
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.methods import Auto, Grid, auto
from crosscoding.methods.cascade import budget, climb_stages, stages
from crosscoding.methods.cascade.budget import Budget

pytestmark = pytest.mark.usefixtures("without_closed_form")


def labels(posterior: cc.Posterior) -> list[str]:
    return [verdict.label for verdict in posterior.verdicts]


def spent(posterior: cc.Posterior) -> Tensor:
    """Decodes of each query, all stages together."""
    return torch.stack([stage.decodes for stage in posterior.trace]).sum(0)


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


def several_stages() -> cc.VAETarget:
    """Two mirrored queries that take climbs and a swarm, and one that anneals, in double."""
    vae = mirrored_vae(8, 16, 0.3, seed=2, dtype=torch.double)
    truth = mirrored_vae(8, 16, 0.3, seed=2).sample_prior(6, seed=102).double()
    evidence = cc.Evidence(truth, cc.random_mask((16,), 0.7, seed=2))
    return cc.VAETarget(vae, evidence[[0, 3, 5]])


@pytest.fixture(scope="module")
def staged() -> cc.Posterior:
    """The answer for `several_stages`, seed 2."""
    return cc.infer(several_stages(), Auto(), seed=2)


# ---- right answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent", "data", "scale"),
    [(2, 6, 0.5), (2, 6, 0.05), (8, 20, 0.5), (8, 20, 0.1), (32, 64, 0.1)],
)
def test_linear_gaussian_answers_are_trusted_and_right(latent, data, scale):
    problem = linear_gaussian_problem(latent, data_dim=data, scale=scale, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert labels(posterior) == ["trusted"] * 3
    off = posterior.log_evidence - problem.exact_log_evidence()
    # 4 standard errors; the errors of a fit this good are near 0, and float32 has 1e-4 of 100 nats.
    assert (off.abs() < 4 * posterior.log_evidence_error + 1e-3).all()
    mean, covariance = problem.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # 1,000 draws resampled from 600 effective ones at least: 5 standard errors.
    assert (((posterior.draws.mean(0) - mean) / sd).abs() < 5 / math.sqrt(600)).all()
    assert (posterior.draws.std(0) / sd - 1).abs().max() < 5 / math.sqrt(2 * 600)


@pytest.mark.parametrize("condition", [1e6, 1e8, 1e10, 1e14])
@pytest.mark.parametrize("latent", [5, 20])
@pytest.mark.slow
def test_ill_conditioned_answers_are_right_or_not_trusted(latent, condition):
    """In float32, whose rounding is more than the least eigenvalue from 1e7 on."""
    target, exact = ill_conditioned_problem(latent, condition)
    posterior = cc.infer(target, Auto(), seed=0)
    off = abs(posterior.log_evidence.item() - exact)
    if condition <= 1e10:
        assert off < 0.05
    elif posterior.trusted:
        assert off < 0.2


def test_in_128_dimensions_log_evidence_is_right():
    problem = linear_gaussian_problem(128, data_dim=192, scale=0.5, batch=2)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    # Float32 has 1e-3 of 400 nats.
    torch.testing.assert_close(
        posterior.log_evidence, problem.exact_log_evidence(), rtol=0, atol=1e-2
    )
    assert labels(posterior) == ["trusted"] * 2


@pytest.mark.slow
def test_digits_in_two_dimensions_are_those_of_a_fine_grid(mnist_2d):
    digits = cc.zoo.digits()[0][:4]
    mask = torch.stack([cc.random_mask((28, 28), s, seed=1) for s in (0.02, 0.05, 0.1, 0.3)])
    evidence = cc.Evidence(digits, mask)
    posterior = cc.condition(mnist_2d, evidence, Auto(), seed=0)
    exact = cc.condition(mnist_2d, evidence, Grid(tolerance=1e-4), seed=0)
    assert labels(posterior) == ["trusted"] * 4
    # The cascade's grid has 0.05 nats, and it calls a twentieth of a nat trusted.
    torch.testing.assert_close(posterior.log_evidence, exact.log_evidence, rtol=0, atol=0.05)
    # Means of grey values, 0 to 1, over 1,000 draws: 5 standard errors of the most uncertain.
    torch.testing.assert_close(posterior.mean(), exact.mean(), rtol=0, atol=5 * 0.5 / 600**0.5)


def test_the_mixture_with_a_far_mode_is_right():
    target = mixture_target()
    posterior = cc.infer(target, Auto(), seed=0)
    assert labels(posterior) == ["trusted"]
    assert abs(posterior.log_evidence.item()) < 0.05
    # 5 standard errors of a share of 0.25 in 1,000 draws, which are spread better than at random.
    assert abs(target.masses(posterior.draws)[2] - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 1000)


# ---- modes: right, or not trusted --------------------------------------------------------------


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
        assert off < 4 * posterior.log_evidence_error
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
        assert abs(posterior.log_evidence - target.log_evidence) < 0.05
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


def test_modes_found_by_a_single_climb_show_how_many_are_missing(monkeypatch):
    """Of 256 modes 64 climbs find a part, and draws from that part show nothing amiss."""
    monkeypatch.setattr(climb_stages, "_MOST_COMPONENTS", 64)  # a proposal from all that were found
    monkeypatch.setattr(auto, "_MOST_OPERATIONS", 0.0)  # and no swarm
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
    monkeypatch.setattr(auto, "_MOST_OPERATIONS", 0.0)  # no swarm that would find both
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
    assert (off < 0.5).sum() > 6  # particles in islands, which are asked then, mostly find it


# ---- budgets and interruption ------------------------------------------------------------------


@pytest.mark.parametrize("max_decodes", [1, 500])
def test_a_budget_too_small_for_any_stage_leaves_the_banks_answer(max_decodes):
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.3, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_decodes=max_decodes), seed=0)
    assert spent(posterior).tolist() == [0, 0, 0]
    assert posterior.stats["finished"].tolist() == [0, 0, 0]
    assert not posterior.trusted.any()
    assert all("it was stopped before it was finished" in v.reasons for v in posterior.verdicts)
    assert posterior.log_evidence.isfinite().all()
    assert posterior.mean().isfinite().all()


@pytest.mark.parametrize("max_decodes", [1000, 9000, 20_000, 200_000])
@pytest.mark.slow
def test_decodes_stay_within_the_budget(max_decodes):
    posterior = cc.infer(blocks(16), Auto(max_decodes=max_decodes), seed=0)
    assert spent(posterior) <= max_decodes


def test_an_answer_cut_short_by_the_budget_is_not_trusted():
    for max_decodes in (1500, 9000):
        posterior = cc.infer(blocks(16), Auto(max_decodes=max_decodes), seed=0)
        assert posterior.stats["finished"] == 0
        assert not posterior.trusted
        assert posterior.log_evidence.isfinite()


@pytest.mark.slow
def test_no_stage_starts_after_the_time_is_up(monkeypatch):
    """A clock that stands still but in the first stage, which takes too long."""
    now, bank = [0.0], stages.Stages.bank

    def slow_bank(*arguments):
        result = bank(*arguments)
        now[0] += 5.0
        return result

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages.Stages, "bank", slow_bank)
    posterior = cc.infer(blocks(16), Auto(max_seconds=4.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank"]
    assert posterior.stats["finished"] == 0
    assert labels(posterior)[0] != "trusted"
    assert posterior.log_evidence.isfinite()


def test_without_any_time_there_is_an_answer_that_says_so():
    problem = linear_gaussian_problem(8, data_dim=20, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=1e-9), seed=0)
    assert labels(posterior) == ["unreliable"] * 3
    assert posterior.stats["finished"].tolist() == [0, 0, 0]
    assert posterior.sample(4).shape == (4, 3, 8)


def test_stages_that_can_end_at_any_time_end_when_time_is_up(monkeypatch):
    """A clock by which each decode takes a second; fits and climbs end within a few steps of it."""
    now = [0.0]
    problem = linear_gaussian_problem(24, data_dim=40, scale=0.02, batch=2)
    log_joint = cc.VAETarget.log_joint

    def slow(*arguments, **keywords):
        now[0] += 1.0
        return log_joint(*arguments, **keywords)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cc.VAETarget, "log_joint", slow)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=10.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "climb"]
    assert now[0] < 20
    assert posterior.log_evidence.isfinite().all()


# ---- many dimensions, large decoders -------------------------------------------------------------


@pytest.mark.parametrize("scale", [20.0, 0.5])
def test_in_very_many_dimensions_there_is_one_fit_and_it_is_not_trusted(scale):
    problem = linear_gaussian_problem(600, data_dim=40, scale=scale, batch=2)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "fit"]
    exact = problem.exact_log_evidence()
    torch.testing.assert_close(posterior.c_elbo, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=0.05)
    assert not posterior.trusted.any()
    reason = "nothing has searched for modes that it may lack"
    assert all(reason in verdict.reasons for verdict in posterior.verdicts)


@pytest.mark.slow
def test_entries_in_very_many_dimensions_are_what_they_are_alone():
    decoder = nn.Sequential(nn.Linear(520, 6), nn.Tanh(), nn.Linear(6, 30)).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(0)))
    vae = cc.VAE(decoder, 520, cc.likelihoods.Gaussian(0.1))
    evidence = cc.Evidence(vae.sample_prior(3, seed=1), cc.random_mask((30,), 0.5, seed=2))
    posterior = cc.condition(vae, evidence, Auto(), seed=0)
    assert (posterior.c_elbo_error > 0.01).all()  # it is curved
    assert_entries_are_those_alone(posterior, seed=0)


def test_a_fit_in_very_many_dimensions_ends_when_time_is_up(monkeypatch):
    """A clock by which each evaluation and each product takes a second."""
    now = [0.0]
    problem = linear_gaussian_problem(600, data_dim=40, scale=0.5, batch=2)
    for name in ("log_joint", "curvature_along"):
        method = getattr(cc.VAETarget, name)

        def slow(*arguments, method=method, **keywords):
            now[0] += 1.0
            return method(*arguments, **keywords)

        monkeypatch.setattr(cc.VAETarget, name, slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=100.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "fit"]
    assert now[0] < 105
    # The Gaussian that had the prior's width would be thousands of nats below.
    assert (posterior.c_elbo > problem.exact_log_evidence() - 200).all()
    assert not posterior.trusted.any()


def test_a_decoder_that_takes_seconds_has_one_fit():
    assert Budget(latent_dim=8, operations=1.1e8).low_rank
    assert not Budget(latent_dim=8, operations=0.9e8).low_rank
    assert Budget(latent_dim=4096, operations=1e12).fit_decodes == 240


@pytest.mark.parametrize(
    ("where", "stage"),
    [(stages.Stages, "anneal"), (climb_stages.ClimbStages, "climb"), (stages.Stages, "swarm")],
)
def test_an_interrupted_stage_leaves_the_finished_answers(staged, where, stage, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stage, interrupted)
    posterior = cc.infer(several_stages(), Auto(), seed=2)
    assert posterior.trace[-1].name == stage
    finished = posterior.stats["finished"] > 0
    assert not finished.all()
    assert not (posterior.trusted & ~finished).any()
    assert posterior.log_evidence.isfinite().all()
    assert posterior.mean().isfinite().all()
    assert torch.equal(posterior.log_evidence[finished], staged.log_evidence[finished])


@pytest.mark.parametrize("stage", ["climb", "look"])
def test_an_answer_whose_second_look_was_interrupted_is_not_trusted(stage, monkeypatch):
    """Nor one whose second look had not started, as climbs for another query were running."""

    def interrupted(*_):
        raise KeyboardInterrupt

    problem = linear_gaussian_problem(8, data_dim=20, scale=0.1, batch=3)
    whole = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    looked = next(trace.decodes for trace in whole.trace if trace.name == "look") > 0
    climbed = next(trace.decodes for trace in whole.trace if trace.name == "climb") > 0
    assert looked.any()
    assert climbed.any()
    monkeypatch.setattr(climb_stages.ClimbStages, stage, interrupted)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert (posterior.stats["finished"][looked] == 0).all()
    assert not posterior.trusted[looked].any()
    if stage == "look":
        assert torch.equal(posterior.trusted[climbed], whole.trusted[climbed])


@pytest.mark.parametrize(
    "wrong",
    [{"max_seconds": 0}, {"max_seconds": -1.0}, {"max_decodes": 0}, {"num_draws": 1}],
    ids=str,
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} "):
        Auto(**wrong)


# ---- batches, seeds, saving --------------------------------------------------------------------


def assert_entries_are_those_alone(together: cc.Posterior, seed: int) -> None:
    target = together.target
    for entry in range(target.num_queries):
        alone = cc.condition(target.vae, target.evidence[[entry]], Auto(), seed=seed)
        # In double, sums in another order are 1e-16 apart; hundreds of moves make it 1e-12.
        torch.testing.assert_close(together.draws[:, entry], alone.draws[:, 0], rtol=0, atol=1e-8)
        for name in ("log_evidence", "log_evidence_error", "ess", "c_elbo"):
            one, other = getattr(together, name)[entry], getattr(alone, name)[0]
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True)
        assert together.verdicts[entry] == alone.verdicts[0]
        assert spent(together)[entry] == spent(alone)[0]


def test_each_entry_of_a_batch_is_what_it_is_alone(staged):
    assert {"anneal", "climb", "swarm"} <= {stage.name for stage in staged.trace}
    assert_entries_are_those_alone(staged, seed=2)


def test_a_query_that_particles_do_not_reach_does_not_affect_others(monkeypatch):
    """The last lies far outside, and is not annealed to; nor do the bank's draws differ there."""
    monkeypatch.setattr(auto, "GRID_DIM", 0)
    monkeypatch.setattr(auto, "_MOST_OPERATIONS", 0.0)  # no swarm, which takes long
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.01, dtype=torch.double)
    values = problem.truth.clone()
    values[3] = 30.0
    target = cc.VAETarget(problem.vae, cc.Evidence(values, torch.tensor(True)))
    posterior = cc.infer(target, Auto(), seed=0)
    assert posterior.trusted.tolist() == [True, True, True, False]
    assert posterior.stats["finished"].tolist() == [1, 1, 1, 0]
    assert_entries_are_those_alone(posterior, seed=0)


def test_the_size_of_a_swarm_does_not_depend_on_the_rest_of_the_batch(monkeypatch):
    """The number of particles follows the cost, and the queries' distances differ."""
    monkeypatch.setattr(stages, "NUM_WEIGHED", 100)  # too few effective draws: all need the swarm
    target = several_stages()
    cost = (512 + 32 * 8) * 5 * 10 * target.operations
    monkeypatch.setattr(budget, "_SWARM_OPERATIONS", 2 * cost)
    monkeypatch.setattr(stages, "NUM_ADAPT", 200)
    posterior = cc.infer(target, Auto(), seed=2)
    swarm = next(stage for stage in posterior.trace if stage.name == "swarm")
    assert (swarm.decodes > 0).sum() >= 2
    assert_entries_are_those_alone(posterior, seed=2)


def test_the_same_seed_gives_the_same_bits(staged):
    again = cc.infer(several_stages(), Auto(), seed=2)
    assert torch.equal(again.draws, staged.draws)
    assert torch.equal(again.log_evidence, staged.log_evidence)
    assert again.verdicts == staged.verdicts


def test_the_trace_adds_up(staged):
    posterior = staged
    assert posterior.trace[0].name == "bank"
    assert (posterior.trace[0].decodes == 0).all()
    names = [stage.name for stage in posterior.trace]
    assert names == [name for name in auto._STAGES if name in names]
    seconds = sum(float(stage.seconds.sum()) for stage in posterior.trace)
    assert 0 < seconds <= posterior.seconds
    for stage in posterior.trace:
        assert stage.decodes.shape == stage.seconds.shape == (3,)
        assert ((stage.decodes > 0) <= (stage.seconds > 0)).all()


def test_every_decode_is_counted():
    """The trace counts the decodes that ran, except for checks of chosen sizes."""
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.3, batch=2)
    cc.Bank.of(problem.vae)
    counted = []
    problem.vae.decoder.register_forward_hook(lambda _, inputs, output: counted.append(len(output)))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    ratio = spent(posterior).sum().item() / sum(counted)
    assert 0.8 < ratio < 1.25  # climbs that fail a step, and where particles start


def test_a_saved_answer_keeps_its_verdicts_and_its_trace(tmp_path):
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.1, batch=(2, 2))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert again.verdicts == posterior.verdicts
    assert torch.equal(again.trusted, posterior.trusted)
    assert [stage.name for stage in again.trace] == [stage.name for stage in posterior.trace]
    for one, other in zip(again.trace, posterior.trace, strict=True):
        assert torch.equal(one.decodes, other.decodes)
        assert torch.equal(one.seconds, other.seconds)
        assert one.decodes.shape == (2, 2)


def test_verdicts_are_flat_and_trusted_has_the_batchs_shape():
    problem = linear_gaussian_problem(2, data_dim=6, batch=(2, 3))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert posterior.trusted.shape == (2, 3)
    assert posterior.trusted.dtype == torch.bool
    assert len(posterior.verdicts) == 6
    assert [
        label == "trusted" for label in labels(posterior)
    ] == posterior.trusted.flatten().tolist()
    alone = cc.condition(problem.vae, problem.evidence[0, 0], Auto(), seed=0)
    assert alone.trusted.shape == ()
    assert len(alone.verdicts) == 1


# ---- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [2, 8])
def test_an_empty_batch_has_empty_answers(latent):
    problem = linear_gaussian_problem(latent, data_dim=10)
    posterior = cc.condition(problem.vae, problem.evidence[:0], Auto(), seed=0)
    assert posterior.verdicts == posterior.trace == []
    assert posterior.trusted.shape == (0,)
    assert posterior.sample(3).shape == (3, 0, latent)


@pytest.mark.parametrize("latent", [2, 8, 32])
def test_without_evidence_the_answer_is_the_prior(latent):
    problem = linear_gaussian_problem(latent, data_dim=2 * latent, batch=2)
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, Auto(), seed=0)
    assert labels(posterior) == ["trusted"] * 2
    assert posterior.log_evidence.tolist() == [0, 0]
    assert spent(posterior).tolist() == [0, 0]
    # 5 standard errors of 1,000 draws, in the worst of 64 directions.
    assert posterior.draws.mean(0).abs().max() < 5 / math.sqrt(1000)
    assert (posterior.draws.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("latent", [2, 8, 32])
def test_with_everything_observed_log_evidence_is_exact(latent):
    problem = linear_gaussian_problem(latent, data_dim=2 * latent, batch=2)
    everything = cc.Evidence(problem.truth, torch.tensor(True))
    posterior = cc.condition(problem.vae, everything, Auto(), seed=0)
    exact = problem.exact_log_evidence(everything)
    assert ((posterior.log_evidence - exact).abs() < 4 * posterior.log_evidence_error + 1e-3).all()
    assert torch.equal(posterior.mean(), problem.truth)


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_faint_evidence_does_not_raise(scale):
    """The distance from the prior is 0 then."""
    problem = linear_gaussian_problem(6, data_dim=8, scale=scale, batch=4)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    off = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert (off < 4 * posterior.log_evidence_error + 1e-3).all()


def test_a_swarm_next_to_the_prior_does_not_raise():
    """A wide mode and a small one: the bank reaches it in one go, and the first fit is poor."""
    means = torch.tensor([[0.0] * 4, [1.0] * 4])
    scales = torch.tensor([[0.7] * 4, [0.2] * 4])
    target = MixtureTarget(torch.tensor([0.9, 0.1]), means, scales, prior_scale=1.2)
    posterior = cc.infer(target, Auto(), seed=0)
    if posterior.trusted:
        assert posterior.log_evidence.abs() < 0.2


class FarOverflow(nn.Module):
    """Outputs NaN at one prior draw in a hundred, beyond 2.3 along the first axis."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) / (z[:, :1] < 2.3).to(z.dtype) * (z[:, :1] < 2.3)


@pytest.mark.parametrize("latent", [2, 8])
def test_a_decoder_that_outputs_nan_raises(latent):
    decoder = FarOverflow(latent)
    vae = cc.VAE(decoder, latent, cc.likelihoods.Gaussian(0.5))
    evidence = cc.Evidence(torch.zeros(2, 8), torch.tensor(True))
    with pytest.raises(cc.NonFiniteError, match="the decoder outputs"):
        cc.condition(vae, evidence, Auto(), seed=0)


def test_torchs_global_random_state_is_left_alone():
    target, before = several_stages(), torch.random.get_rng_state()
    cc.infer(target, Auto())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_goes_from_0_to_1():
    shares = []
    target = several_stages()
    cc.infer(target, Auto(), seed=0, report=lambda share, what: shares.append(share))
    assert shares
    assert all(0 <= share <= 1 for share in shares)


# ---- what must not be trusted ------------------------------------------------------------------


class Funnel(nn.Module):
    """Means z₁ … and one scale exp(a z₀) for all of them: p(z|x) is wide where z₀ is large."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.register_buffer("steepness", torch.tensor(steepness))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, 1:], (self.steepness * z[:, :1]).exp().expand(-1, z.shape[1] - 1)


def funnel_log_evidence(dim: int, steepness: float) -> float:
    """log p(x = 0): given z₀ every element is N(0, 1 + exp(2 a z₀)); the rest by quadrature."""
    z = torch.linspace(-12, 12, 400_001, dtype=torch.double)
    normal = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    given = -0.5 * (1 + (2 * steepness * z).exp()).log() - 0.5 * math.log(2 * math.pi)
    log_density = normal.log_prob(z) + (dim - 1) * given
    return (log_density.logsumexp(0) + (z[1] - z[0]).log()).item()


@pytest.mark.parametrize(("dim", "steepness"), [(4, 3.0), (8, 2.0), (10, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_funnel_is_right_or_not_trusted(dim, steepness, seed):
    vae = cc.VAE(Funnel(steepness), dim, cc.likelihoods.Gaussian(None))
    evidence = cc.Evidence(torch.zeros(dim - 1), torch.tensor(True))
    posterior = cc.condition(vae, evidence, seed=seed)
    error = (posterior.log_evidence - funnel_log_evidence(dim, steepness)).abs()
    assert error < 0.1 or not posterior.trusted


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_tails_heavier_than_the_priors_are_right_or_not_trusted(dim, seed):
    def log_cauchy(z):
        return -(math.pi * (1 + z.square())).log().sum(-1)

    posterior = cc.infer(cc.DensityTarget(log_cauchy, dim), seed=seed)  # log p(x) is 0
    assert posterior.log_evidence.abs() < 0.1 or not posterior.trusted


@pytest.mark.parametrize("far", [1e3, 1e4, 1e10, 1e18])
@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.slow
def test_evidence_far_outside_of_the_model_is_right_or_not_trusted(dim, far):
    problem = linear_gaussian_problem(dim, data_dim=5, scale=0.1, batch=(1,))
    evidence = cc.Evidence(torch.tensor([[far, 0.0, 0.0, 0.0, -5.0]]), torch.arange(5) != 1)
    posterior = cc.condition(problem.vae, evidence, seed=0)
    error = (posterior.log_evidence - problem.exact_log_evidence(evidence)).abs()
    assert (error < 0.1) | ~posterior.trusted


def test_a_query_that_the_grid_cannot_do_does_not_keep_it_from_others():
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.01, batch=(3,), dtype=torch.double)
    values = problem.truth.clone()
    values[1] += 40 * problem.vae.decoder.weight[:, 0]
    evidence = cc.Evidence(values, torch.tensor(True))
    posterior = cc.condition(problem.vae, evidence, seed=0)
    integrated = next(stage.decodes for stage in posterior.trace if stage.name == "grid") > 0
    assert integrated[[0, 2]].all()
    exact = problem.exact_log_evidence(evidence)[[0, 2]]
    assert ((posterior.log_evidence[[0, 2]] - exact).abs() < 0.01).all()
    assert_entries_are_those_alone(posterior, seed=0)


def test_the_bank_alone_is_not_trusted_where_its_error_is_large(monkeypatch):
    """There are enough effective points, but the islands disagree, so the grid has to answer."""
    monkeypatch.setattr(stages, "_ISLAND_FACTOR", 1e6)
    problem = linear_gaussian_problem(2, scale=0.5)
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "grid"]


class Ripple(nn.Module):
    """A sine whose period is in step with the cells of a grid: they all see one phase of it."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(128 * math.pi * z[:, :1])


def test_the_grid_is_not_trusted_where_the_bank_found_more():
    """Two periods of a ripple are a cell: most cells hold peaks that no midpoint sees."""
    vae = cc.VAE(Ripple(), 1, cc.likelihoods.Gaussian(0.01))
    posterior = cc.condition(vae, cc.Evidence(torch.zeros(1), torch.tensor(True)), seed=0)
    sine = torch.linspace(0, 2 * math.pi, 1_000_001, dtype=torch.double)[:-1].sin()
    exact = torch.distributions.Normal(sine, 0.01).log_prob(torch.zeros(())).exp().mean().log()
    assert (posterior.log_evidence - exact).abs() < 0.1 or not posterior.trusted
