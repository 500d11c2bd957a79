"""Posterior: what can be asked of it, what it refuses, and that it survives a save and a load."""

import json
import math

import pytest
import torch
from cheap import LISTED, every_method
from problems import linear_gaussian_problem, mirrored_problem, mixture_target, seeded
from safetensors.torch import load_file, save_file
from tampering import reseal
from torch import nn

import crosscoding as cc
from crosscoding.crosscoders import FCN, Gaussian, Mixture, Planar
from crosscoding.methods import (
    Grid,
    Importance,
    Laplace,
    NaturalGradient,
    Rejection,
    Variational,
)


@pytest.fixture(autouse=True)
def short_start(monkeypatch):
    """Starts of a few steps: what is tested here holds wherever a fit starts."""
    monkeypatch.setattr("crosscoding.methods.starts._BEND_STEPS", 20)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.fixture(scope="module")
def problem():
    """A 2-d linear-Gaussian problem of three queries."""
    return linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=(3,))


@pytest.fixture(scope="module")
def exact(problem):
    """Its posterior by Grid."""
    return cc.condition(problem.vae, problem.evidence, Grid(), seed=0)


@pytest.fixture(scope="module")
def digit_posterior():
    """Two half-seen digits."""
    vae = cc.zoo.load("mnist-2d")
    digits = cc.zoo.digits()[0][:2]
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    return cc.condition(vae, cc.Evidence(digits, mask), Grid(tolerance=0.01), seed=0)


# ---- answers -------------------------------------------------------------------------------------


def test_mean_and_standard_deviation_are_those_of_the_exact_prediction(problem, exact):
    mean, variance = problem.exact_prediction()
    # Cells stand for their centres: a thousandth of a standard deviation in the mean, and up to 1 %
    # in the spread, of which p(y|z) itself, known exactly, is the larger part here.
    torch.testing.assert_close(exact.mean(), mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(exact.std(), variance.sqrt(), rtol=1e-2, atol=0)


def test_query_log_prob_is_exact_on_a_grid(problem, exact):
    torch.testing.assert_close(
        exact.query_log_prob(problem.truth), problem.exact_query_log_prob(), rtol=0, atol=5e-3
    )


def test_what_truth_says_at_observed_elements_is_not_looked_at(problem, exact):
    rubbish = torch.where(problem.evidence.mask, math.nan, problem.truth)
    assert torch.equal(exact.query_log_prob(rubbish), exact.query_log_prob(problem.truth))


def test_predictions_have_the_mean_and_variance_of_p_y_given_x(problem, exact):
    num = 20_000
    draws = exact.predict(num, seed=0)
    mean, variance = problem.exact_prediction()
    # 5 standard errors of independent Gaussian draws, and 1 % for the cells; float32 sums.
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / num).sqrt() + 5e-3).all()
    allowed = variance * (5 * math.sqrt(2 / num) + 0.02) + 1e-6
    assert ((draws.var(0) - variance).abs() <= allowed).all()


def test_predicted_elements_are_correlated_through_z(problem, exact):
    """Drawn jointly, not each from its own marginal."""
    draws = exact.predict(20_000, seed=0)[:, 0][:, ~problem.evidence.mask[0]].double()
    weight = problem.vae.decoder.weight[~problem.evidence.mask[0]].double()
    covariance = weight @ problem.exact_posterior()[1][0].double() @ weight.mT
    covariance += torch.eye(len(weight)).double()
    sd = covariance.diagonal().sqrt()
    difference = (torch.cov(draws.T) - covariance) / (sd[:, None] * sd)
    assert difference.abs().max() < 5 * math.sqrt(2 / 20_000) + 0.02


def test_a_digits_predictions_are_zeros_and_ones_and_their_mean_is_grey(digit_posterior):
    """Trap 5: a draw from p(y|x) is drawn from p(y|z) too."""
    draws = digit_posterior.predict(400, seed=0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    grey = digit_posterior.predict_mean(400, seed=0)
    assert ((grey > 0.01) & (grey < 0.99)).float().mean() > 0.05
    mean, error = digit_posterior.mean(), digit_posterior.std() / math.sqrt(400)
    hidden = ~digit_posterior.target.evidence.mask
    # 784 pixels: 6 standard errors, and 0.01 where a rare pixel makes them meaningless.
    assert ((draws.mean(0) - mean).abs() <= 6 * error + 0.01)[hidden].all()
    assert ((grey.mean(0) - mean).abs() <= 6 * error + 0.01)[hidden].all()


def test_the_standard_deviation_of_a_zero_or_one_follows_from_its_mean(digit_posterior):
    mean, std = digit_posterior.mean(), digit_posterior.std()
    hidden = ~digit_posterior.target.evidence.mask
    # float32: a probability of 1e-7 is rounded off in 1 − p.
    torch.testing.assert_close(
        std[hidden], (mean * (1 - mean))[hidden].sqrt(), rtol=1e-3, atol=1e-3
    )


def test_predictions_differ_where_predicted_means_are_smooth(problem, exact):
    z = exact.sample(5, seed=3)
    means = exact.predict_mean(5, seed=3)
    hidden = ~problem.evidence.mask
    torch.testing.assert_close(means[:, hidden], problem.vae.decode(z)[:, hidden])
    spread = (exact.predict(5, seed=3) - means)[:, hidden]
    assert spread.std() > 0.5  # the likelihood's scale is 1


# ---- evidence exactly as given -------------------------------------------------------------------

ODD = [-0.0, 0.1, 1e-42, float(torch.tensor(1.0).nextafter(torch.tensor(2.0))), -1 / 3, 0.0]


@every_method
@pytest.mark.parametrize("observed", [slice(0, 3), slice(3, 6), slice(0, 6)])
def test_odd_floats_come_back_bit_for_bit(problem, method, observed):
    mask = torch.zeros(6, dtype=torch.bool)
    mask[observed] = True
    given = torch.tensor(ODD)
    posterior = cc.condition(problem.vae, cc.Evidence(given, mask), method, seed=0)
    answers = [*posterior.predict(2), *posterior.predict_mean(2), posterior.mean()]
    for answer in answers:
        assert torch.equal(bits(answer[mask]), bits(given[mask]))
        assert answer.isfinite().all()
    assert torch.equal(posterior.std()[mask], torch.zeros(int(mask.sum())))
    assert (posterior.std()[~mask] > 0).all()


# ---- shapes and streams --------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("num", [0, 1, 130])
def test_as_many_draws_as_asked_for(problem, method, num):
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.sample(num).shape == (num, 3, 2)
    assert posterior.predict(num).shape == (num, 3, 6)
    assert posterior.predict_mean(num).shape == (num, 3, 6)
    assert posterior.sample(num).dtype == posterior.predict(num).dtype == torch.float32


@pytest.mark.parametrize("ask", ["sample", "predict", "predict_mean"])
def test_a_number_of_draws_that_is_none_is_refused(exact, ask):
    with pytest.raises(ValueError, match="expected a number of draws >= 0, got -1"):
        getattr(exact, ask)(-1)
    for wrong in (1.5, "3", True, None, torch.tensor(3)):
        with pytest.raises(TypeError, match="expected the number of draws to be an int, got"):
            getattr(exact, ask)(wrong)


@every_method
def test_its_own_stream_goes_on_and_a_seed_stands_apart(problem, method):
    first, second = (cc.condition(problem.vae, problem.evidence, method, seed=0) for _ in range(2))
    one = first.sample(5)
    assert not torch.equal(first.sample(5), one)
    aside = second.sample(5, seed=11)
    assert torch.equal(second.sample(5, seed=11), aside)
    assert torch.equal(second.sample(5), one)  # a seed of a call's own leaves the stream alone


def test_stored_draws_are_used_up_before_one_comes_again(problem):
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(40), seed=0)
    z = posterior.sample(40)
    assert not torch.equal(z, posterior.draws)
    assert torch.equal(z[:, 0].sort(0).values, posterior.draws[:, 0].sort(0).values)
    twice = posterior.sample(80)[:, 0, 0]
    assert torch.equal(twice.sort().values, posterior.draws[:, 0, 0].repeat(2).sort().values)


def test_draws_of_queries_with_other_answers_are_spread_by_their_own_weights():
    target = mixture_target()
    z = cc.infer(target, Grid(), seed=0).sample(5000, seed=1)
    mean, sd = target.mean(), target.covariance().diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * sd / math.sqrt(5000)).all()


def test_it_says_what_it_is(exact):
    assert repr(exact).startswith("Posterior(method=Grid, batch_shape=(3,), seconds=")


# ---- log_prob ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [Grid(), Variational(Gaussian(), steps=100), Variational(Planar(4), steps=100)],
    ids=["grid", "gvi", "nf"],
)
def test_the_density_integrates_to_one_and_its_draws_follow_it(problem, method):
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    count, half = 301, 7.0
    axis = (torch.arange(count) + 0.5) * (2 * half / count) - half
    points = torch.cartesian_prod(axis, axis)
    log_prob = posterior.log_prob(points[:, None].expand(-1, 3, -1))
    assert log_prob.shape == (len(points), 3)
    log_total = log_prob.logsumexp(0) + 2 * math.log(2 * half / count)
    # The midpoint rule at 0.05 is exact for densities this smooth; 5e-3 covers Grid's own
    # normaliser and the bisection that inverts a planar flow in float32.
    torch.testing.assert_close(log_total, torch.zeros(3), rtol=0, atol=5e-3)
    mass = (log_prob + 2 * math.log(2 * half / count)).exp()
    mean = mass.mT @ points
    variance = mass.mT @ points.square() - mean.square()
    z = posterior.sample(4000, seed=0)
    assert ((z.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt() + 0.01).all()
    assert ((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 4000) + 0.02).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rejection", "Rejection leaves draws and no density; use Variational or Grid"),
        ("hmc", "HMC leaves draws and no density; use Variational or Grid"),
        ("fcn", "FCN is not one-to-one: it has no density at a given z; use Gaussian or Planar"),
    ],
)
def test_where_there_is_no_density_it_says_so(problem, name, said):
    posterior = cc.condition(problem.vae, problem.evidence, LISTED[name], seed=0)
    with pytest.raises(NotImplementedError, match=said):
        posterior.log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("name", ["grid", "gvi", "nf"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_density_takes_any_sample_shape(name, batch):
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    posterior = cc.condition(problem.vae, problem.evidence, LISTED[name], seed=0)
    z = torch.randn(4, 5, *batch, 2, generator=seeded(0))
    log_prob = posterior.log_prob(z)
    assert log_prob.shape == (4, 5, *batch)
    torch.testing.assert_close(posterior.log_prob(z[1, 2]), log_prob[1, 2])


@pytest.mark.parametrize("shape", [(2,), (4, 2), (3, 3), (5, 2, 2), ()])
def test_a_density_at_points_of_another_shape_is_refused(exact, shape):
    with pytest.raises(ValueError, match=r"expected z of shape \(\*sample, 3, 2\), got"):
        exact.log_prob(torch.zeros(shape))


# ---- truth that is none --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (2, 6), (3, 5), (1, 3, 6), ()])
def test_truth_of_another_shape_is_refused(exact, shape):
    with pytest.raises(ValueError, match=r"expected truth of shape \(3, 6\), got"):
        exact.query_log_prob(torch.zeros(shape))


def test_truth_of_another_dtype_or_device_is_refused(problem, exact):
    with pytest.raises(
        ValueError, match=r"model's dtype torch.float32, got torch.float64; convert"
    ):
        exact.query_log_prob(problem.truth.double())
    with pytest.raises(
        ValueError, match="expected truth on the model's device cpu, got meta; move"
    ):
        exact.query_log_prob(problem.truth.to("meta"))


def test_truth_that_is_no_tensor_is_refused(problem, exact):
    with pytest.raises(TypeError, match=r"expected truth to be a torch.Tensor, got list"):
        exact.query_log_prob(problem.truth.tolist())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_truth_that_is_not_finite_where_it_is_asked_for_is_refused(problem, exact, wrong):
    truth = torch.where(problem.evidence.mask, problem.truth, wrong)
    with pytest.raises(cc.NonFiniteError, match="finite unobserved elements of truth, got NaN"):
        exact.query_log_prob(truth)


def test_truth_outside_the_support_is_refused(digit_posterior):
    truth = cc.zoo.digits()[0][:2].clone()
    truth[1, 27, 27] = 2.0
    with pytest.raises(ValueError, match="expected elements of truth between 0 and 1"):
        digit_posterior.query_log_prob(truth)
    truth[1, 27, 27], truth[0, 0, 0] = 1.0, 2.0  # an observed element may be anything
    assert digit_posterior.query_log_prob(truth).isfinite().all()


# ---- without a decoder ---------------------------------------------------------------------------


def test_a_bare_density_has_draws_and_a_density_and_no_data():
    posterior = cc.infer(mixture_target(), Grid(), seed=0)
    assert posterior.sample(3).shape == (3, 2)
    assert posterior.log_prob(torch.zeros(4, 2)).shape == (4,)
    asked = (
        lambda: posterior.predict(1),
        lambda: posterior.predict_mean(1),
        posterior.mean,
        posterior.std,
        lambda: posterior.query_log_prob(torch.zeros(2)),
    )
    for ask in asked:
        with pytest.raises(ValueError, match="expected a posterior with a decoder for this"):
            ask()


# ---- Pareto k ------------------------------------------------------------------------------------


@every_method
def test_pareto_k_is_that_of_importance_weights_and_nan_elsewhere(problem, method):
    weighs = (Variational, Laplace, NaturalGradient, Importance, Grid)  # Auto: the bank answers
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.pareto_k.shape == (3,)
    assert posterior.pareto_k.dtype == torch.float32
    assert posterior.pareto_k.isnan().all() == (not isinstance(method, weighs))


# ---- save and load -------------------------------------------------------------------------------


def assert_same_posterior(first, second, truth):
    names = ("log_evidence", "log_evidence_error", "c_elbo", "c_elbo_error", "ess", "draws")
    for name in (*names, "pareto_k"):
        torch.testing.assert_close(
            getattr(second, name), getattr(first, name), rtol=0, atol=0, equal_nan=True
        )
    assert first.stats.keys() == second.stats.keys()
    for name, value in first.stats.items():
        assert torch.equal(second.stats[name], value)
    assert (second.method, second.batch_shape) == (first.method, first.batch_shape)
    assert (second.seconds, second.bound) == (first.seconds, first.bound)
    assert torch.equal(second.sample(7), first.sample(7))  # the streams go on where they were
    assert torch.equal(second.predict(7), first.predict(7))
    assert torch.equal(second.predict_mean(7), first.predict_mean(7))
    # Not bitwise: a product of matrices rounds by how they lie in memory, which is not saved.
    torch.testing.assert_close(second.mean(), first.mean())
    torch.testing.assert_close(second.std(), first.std())
    torch.testing.assert_close(second.query_log_prob(truth), first.query_log_prob(truth))


@every_method
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=["none", "2x2"])
def test_a_saved_posterior_goes_on_as_if_nothing_had_happened(method, batch, tmp_path):
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    posterior.sample(3)  # in the middle of its stream
    posterior.save(tmp_path / "saved")
    assert_same_posterior(posterior, cc.Posterior.load(tmp_path / "saved"), problem.truth)


@pytest.mark.parametrize(
    "crosscoder",
    [Gaussian(), Gaussian(rank=1), Planar(3, affine=False), FCN((5,)), FCN((4, 3)), Mixture(3)],
    ids=repr,
)
def test_a_saved_fit_keeps_its_settings(problem, crosscoder, tmp_path):
    method = Variational(crosscoder, steps=5, num_fresh=20)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(loaded.sample(5, seed=1), posterior.sample(5, seed=1))
    if crosscoder.has_density:
        z = torch.randn(4, 3, 2, generator=seeded(0))
        assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


def test_a_posterior_of_the_zoo_needs_no_vae_to_load(digit_posterior, tmp_path):
    digit_posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert loaded.predict(2).shape == (2, 2, 28, 28)
    assert torch.equal(loaded.predict(3, seed=1), digit_posterior.predict(3, seed=1))


def test_an_empty_batch_is_saved_too(problem, tmp_path):
    posterior = cc.condition(problem.vae, problem.evidence[:0], Grid(), seed=0)
    posterior.save(tmp_path / "saved")
    assert cc.Posterior.load(tmp_path / "saved").predict(2).shape == (2, 0, 6)


DECODERS = {
    "one layer": nn.Linear(2, 6),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 6)),
    "convolutions": nn.Sequential(
        nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 4, 2, 1),
        nn.BatchNorm2d(3), nn.LeakyReLU(0.1), nn.Conv2d(3, 1, 3, padding=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoders_of_common_layers_are_saved_along(name, dtype, tmp_path):
    decoder = DECODERS[name].to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(decoder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))
    scale = cc.likelihoods.Gaussian(torch.tensor(0.7, dtype=dtype))
    vae = cc.VAE(decoder, 2, scale)
    truth = vae.sample_prior(3, seed=0)
    mask = cc.random_mask(vae.data_shape, 0.5, seed=0)
    posterior = cc.condition(vae, cc.Evidence(truth, mask), Rejection(20), seed=0)
    posterior.save(tmp_path / "saved")
    assert_same_posterior(posterior, cc.Posterior.load(tmp_path / "saved"), truth)


def test_a_decoder_of_ones_own_class_is_passed_to_load(tmp_path):
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0)
    posterior.save(tmp_path / "saved")
    without = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(without.sample(5, seed=0), posterior.sample(5, seed=0))
    for ask in (without.mean, lambda: without.predict(1)):
        with pytest.raises(ValueError, match=r"pass Posterior.load\(path, vae=...\)"):
            ask()
    within = cc.Posterior.load(tmp_path / "saved", vae=problem.vae)
    assert_same_posterior(posterior, within, problem.truth)


def test_a_grids_density_needs_its_model(tmp_path):
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    posterior.save(tmp_path / "saved")
    z = torch.zeros(4, 2)
    with pytest.raises(NotImplementedError):
        cc.Posterior.load(tmp_path / "saved").log_prob(z)
    loaded = cc.Posterior.load(tmp_path / "saved", vae=problem.vae)
    assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


class Shifted(nn.Module):
    """Another decoder with the same weights."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z) + 0.1


def test_a_model_that_the_evidence_does_not_fit_is_refused(tmp_path):
    problem = mirrored_problem()
    cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0).save(tmp_path / "saved")
    other = linear_gaussian_problem(2, data_dim=9).vae
    with pytest.raises(cc.ModelFormatError, match=r"the model that .* expected evidence of shape"):
        cc.Posterior.load(tmp_path / "saved", vae=other)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda vae: cc.VAE(Shifted(vae.decoder), 2, vae.likelihood), "expected the model that"),
        (lambda vae: cc.VAE(vae.decoder, 2, cc.likelihoods.Gaussian(9.0)), "the likelihood that"),
    ],
    ids=["outputs", "likelihood"],
)
def test_another_model_of_the_same_shapes_is_refused(problem, exact, other, said, tmp_path):
    exact.save(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved", vae=other(problem.vae))


def test_a_posterior_of_a_bare_density_is_saved_without_one(tmp_path):
    posterior = cc.infer(mixture_target(), LISTED["nf"], seed=0)
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(loaded.sample(5), posterior.sample(5))
    z = torch.zeros(4, 2)
    assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


def test_loading_leaves_torchs_global_random_state_alone(exact, tmp_path):
    exact.save(tmp_path / "saved")
    before = torch.random.get_rng_state()
    cc.Posterior.load(tmp_path / "saved").predict(2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_saving_again_replaces_what_was_saved(problem, exact, tmp_path):
    cc.condition(problem.vae, problem.evidence, LISTED["rejection"], seed=0).save(tmp_path / "a")
    exact.save(tmp_path / "a")
    assert cc.Posterior.load(tmp_path / "a").method == "Grid"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_something_else_is_never_overwritten(exact, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter").write_text("all of it")
    with pytest.raises(ValueError, match="expected a new folder or a saved posterior at"):
        exact.save(folder)
    model = tmp_path / "model"
    model.mkdir()
    (model / "description.json").write_text('{"kind": "vae"}')
    with pytest.raises(ValueError, match="expected a new folder or a saved posterior at"):
        exact.save(model)
    assert [path.name for path in folder.iterdir()] == ["chapter"]
    assert [path.name for path in model.iterdir()] == ["description.json"]


def test_a_place_that_cannot_be_written_to_is_named_and_left_as_it_was(exact, tmp_path):
    file = tmp_path / "file"
    file.write_text("here")
    with pytest.raises(ValueError, match=r"cannot write to|something else"):
        exact.save(file / "below" / "saved")
    with pytest.raises(ValueError, match="something else"):
        exact.save(file)
    assert file.read_text() == "here"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_save_that_breaks_off_leaves_the_old_one_whole(exact, tmp_path, monkeypatch):
    def full_disk(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    exact.save(tmp_path / "old")
    before = exact.sample(3, seed=0)
    monkeypatch.setattr("crosscoding.storage.save_file", full_disk)
    for name in ("old", "new"):
        with pytest.raises((OSError, ValueError), match="No space left on device"):
            exact.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert torch.equal(cc.Posterior.load(tmp_path / "old").sample(3, seed=0), before)


def edit_parts(change):
    """Change tensors and description, and their checksums too: what lies deeper must notice."""

    return lambda folder: reseal(folder, change)


def edit_description(**changes):
    return edit_parts(lambda _, description: description.update(changes))


def without_description(key):
    return edit_parts(lambda _, description: description.pop(key))


def edit_vae(**changes):
    return edit_parts(lambda _, description: description["vae"].update(changes))


def edit_tensor(name, change):
    return edit_parts(lambda tensors, _: tensors.update({name: change(tensors[name])}))


def without_tensor(name):
    return edit_parts(lambda tensors, _: tensors.pop(name))


def truncated(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES = {
    "no description": lambda folder: (folder / "description.json").unlink(),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "tensors cut short": truncated,
    "tensors empty": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
    "tensors of noise": lambda folder: (folder / "tensors.safetensors").write_bytes(b"\xff" * 99),
    "description no JSON": lambda folder: (folder / "description.json").write_text('{"kind": '),
    "description binary": lambda folder: (folder / "description.json").write_bytes(b"\xff\x00"),
    "description a list": lambda folder: (folder / "description.json").write_text("[]"),
    "another kind": edit_description(kind="vae"),
    "no batch shape": without_description("batch_shape"),
    "batch shape of words": edit_description(batch_shape=["a"]),
    "batch shape of another size": edit_description(batch_shape=[7]),
    "batch shape negative": edit_description(batch_shape=[-3]),
    "seconds a word": edit_description(seconds="long"),
    "seconds nothing": edit_description(seconds=None),
    "has_evidence missing": without_description("has_evidence"),
    "method missing": without_description("method"),
    "vae a number": edit_description(vae=3),
    "likelihood unknown": edit_vae(likelihood={"name": "Cauchy", "settings": {}}),
    "likelihood a word": edit_vae(likelihood="Gaussian"),
    "layer unknown": edit_vae(architecture=[["Evil", {}]]),
    "architecture a number": edit_vae(architecture=3),
    "latent a word": edit_vae(latent_dim="two"),
    "latent of another size": edit_vae(latent_dim=5),
    "crosscoder a number": edit_description(crosscoder=3),
    "crosscoder unknown": edit_description(crosscoder={"name": "X", "settings": {}, "dim": 2}),
    "crosscoder of another dim": edit_description(
        crosscoder={"name": "Gaussian", "settings": {}, "dim": 3}
    ),
    "crosscoder of dim -1": edit_description(
        crosscoder={"name": "Gaussian", "settings": {}, "dim": -1}
    ),
    "draws missing": without_tensor("findings.draws"),
    "draws flat": edit_tensor("findings.draws", lambda t: t.flatten()),
    "draws of other queries": edit_tensor("findings.draws", lambda t: t[:, :1].contiguous()),
    "ess missing": without_tensor("findings.ess"),
    "ess of other queries": edit_tensor("findings.ess", lambda t: t[:1].clone()),
    "pareto_k of other queries": edit_tensor("findings.pareto_k", lambda t: t[:1].clone()),
    "draws of integers": edit_tensor("findings.draws", lambda t: t.int()),
    "draws of another dtype": edit_tensor("findings.draws", lambda t: t.double()),
    "no draw": edit_tensor("findings.draws", lambda t: t[:0].clone()),
    "ess of integers": edit_tensor("findings.ess", lambda t: t.long()),
    "log_evidence of NaN": edit_tensor("findings.log_evidence", lambda t: t * math.nan),
    "parameters of another dtype": edit_tensor("findings.crosscoder.shift", lambda t: t.double()),
    "everything of another dtype": edit_parts(
        lambda tensors, _: tensors.update(
            {k: t.double() for k, t in tensors.items() if k.startswith("findings")}
        )
    ),
    "outputs missing": without_tensor("fingerprint"),
    "outputs of integers": edit_tensor("fingerprint", lambda t: t.int()),
    "chains a word": edit_description(num_chains="two"),
    "chains none": edit_description(num_chains=0),
    "chains that do not divide the draws": edit_description(num_chains=7),
    "parameters missing": without_tensor("findings.crosscoder.shift"),
    "parameters of another shape": edit_tensor(
        "findings.crosscoder.lower", lambda t: t[:, :1].clone()
    ),
    "weights missing": without_tensor("vae.decoder.0.weight"),
    "weights of another shape": edit_tensor("vae.decoder.0.weight", lambda t: t.mT.contiguous()),
    "evidence missing": without_tensor("evidence.values"),
    "evidence of NaN": edit_tensor("evidence.values", lambda t: torch.full_like(t, math.nan)),
    "evidence of other data": edit_tensor("evidence.values", lambda t: t[:, :4].contiguous()),
    "mask of numbers": edit_tensor("evidence.mask", lambda t: t.float()),
    "generator missing": without_tensor("generator"),
    "generator cut short": edit_tensor("generator", lambda t: t[:10].clone()),
}


@pytest.fixture(scope="module")
def fit(problem):
    """A fitted Gaussian with all its parts."""
    return cc.condition(problem.vae, problem.evidence, LISTED["gvi"], seed=0)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused(fit, damage, tmp_path):
    fit.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError):
        cc.Posterior.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("findings.pareto_k"), "'findings.pareto_k' is missing"),
        (lambda tensors: tensors.pop("findings.stats.finished"), "stats.finished' is missing"),
        (lambda tensors: tensors["findings.ess"].fill_(9e9), "'findings.ess' is damaged"),
        (lambda t: t.update({"findings.draws": t["findings.draws"].flip(1)}), "draws' is damaged"),
    ],
    ids=["pareto_k", "finished", "ess", "queries permuted"],
)
def test_what_would_make_an_answer_trusted_is_missed(change, said, tmp_path):
    """Auto cut short is not trusted; without these figures, or with others, it would be."""
    problem = linear_gaussian_problem(6, data_dim=8, scale=0.5, batch=(2,))
    method = cc.methods.Auto(max_decodes=1)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert not posterior.trusted.any()
    posterior.save(tmp_path / "saved")
    path = tmp_path / "saved" / "tensors.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved")


def test_a_posterior_without_checksums_is_refused(exact, tmp_path):
    exact.save(tmp_path / "saved")
    path = tmp_path / "saved" / "description.json"
    description = json.loads(path.read_text())
    del description["checksums"]
    path.write_text(json.dumps(description))
    with pytest.raises(cc.ModelFormatError, match="expected checksums in"):
        cc.Posterior.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("ess", lambda t: t.long(), "got torch.int64 for 'ess'"),
        ("draws", lambda t: t[:0].clone(), "at least 1 draw in 'draws', got 0"),
        ("log_evidence", lambda t: t * math.nan, "expected a number in 'log_evidence'"),
    ],
)
def test_a_tensor_that_cannot_be_right_is_named(fit, name, change, said, tmp_path):
    fit.save(tmp_path / "saved")
    edit_tensor(f"findings.{name}", change)(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(cc.ModelFormatError, match=r"expected a saved posterior in .*is missing"):
        cc.Posterior.load(tmp_path / "nowhere")
