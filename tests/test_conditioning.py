"""`condition` and its relatives: bad arguments raise clear errors, and no NaN passes silently."""

import math

import pytest
import torch
from problems import Waves, linear_gaussian_problem, mixture_target
from torch import nn

import crosscoding as cc
from crosscoding.crosscoders import FCN, Gaussian, Planar
from crosscoding.methods import HMC, Auto, Grid, Importance, Laplace, Rejection, Variational


@pytest.fixture(scope="module")
def problem():
    """Three queries in two latent dimensions."""
    return linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=(3,))


# ---- values and masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (7,), (3, 5), (6, 3), (), (6, 1)])
def test_values_that_do_not_end_in_the_datas_shape_are_refused(problem, shape):
    evidence = cc.Evidence(torch.zeros(shape), torch.tensor(True))
    with pytest.raises(ValueError, match=r"expected evidence of shape \(\*batch, 6\), got"):
        cc.condition(problem.vae, evidence, seed=0)


@pytest.mark.parametrize("shape", [(5,), (2, 6), (1, 3, 6), (3, 1, 6)])
def test_a_mask_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"a mask that broadcasts to the values' shape \(3, 6\)"):
        cc.Evidence(torch.zeros(3, 6), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_observed_values_that_are_not_finite_are_refused_and_located(wrong):
    values = torch.zeros(3, 6)
    values[1, 4] = wrong
    with pytest.raises(cc.NonFiniteError, match=r"got 1 NaN or infinite, first at index \(1, 4\)"):
        cc.Evidence(values, torch.tensor(True))


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 255.0])
def test_observed_values_outside_the_likelihoods_support_are_refused(mnist_2d, wrong):
    values = cc.zoo.digits()[0][:2].clone()
    values[1, 3, 4] = wrong
    with pytest.raises(ValueError, match=r"observed values between 0 and 1 for Bernoulli, got"):
        cc.condition(mnist_2d, cc.Evidence(values, torch.tensor(True)), seed=0)


def test_unobserved_values_may_be_outside_the_support(mnist_2d):
    digits = cc.zoo.digits()[0][:1]
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    clean = cc.condition(mnist_2d, cc.Evidence(digits, mask), Grid(tolerance=0.1), seed=0)
    loud = torch.where(mask, digits, 255.0)
    other = cc.condition(mnist_2d, cc.Evidence(loud, mask), Grid(tolerance=0.1), seed=0)
    assert torch.equal(clean.log_evidence, other.log_evidence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_that_is_not_boolean_is_refused(dtype):
    with pytest.raises(TypeError, match=r"expected a boolean mask \(True = observed\), got"):
        cc.Evidence(torch.zeros(3, 6), torch.ones(3, 6, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_evidence_of_another_dtype_is_refused_and_not_cast(problem, dtype):
    evidence = cc.Evidence(problem.truth.to(dtype), torch.tensor(True))
    with pytest.raises(ValueError, match=r"evidence of the model's dtype torch.float32, got"):
        cc.condition(problem.vae, evidence, seed=0)


def test_whole_numbers_are_refused_as_values():
    with pytest.raises(TypeError, match=r"values of a floating-point dtype, got torch.int64"):
        cc.Evidence(torch.zeros(6, dtype=torch.int64), torch.tensor(True))


def test_a_mask_on_another_device_is_refused():
    with pytest.raises(ValueError, match=r"values and mask on one device, got cpu and meta"):
        cc.Evidence(torch.zeros(6), torch.ones(6, dtype=torch.bool, device="meta"))


def test_evidence_on_another_device_is_refused(problem):
    evidence = cc.Evidence(problem.truth, torch.tensor(True))
    # Without a second device there is only "meta", which Evidence itself cannot check for NaN.
    object.__setattr__(evidence, "values", evidence.values.to("meta"))
    with pytest.raises(ValueError, match=r"evidence on the model's device cpu, got meta; move"):
        cc.VAETarget(problem.vae, evidence)


# ---- arguments of other types --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [nn.Linear(2, 6), "mnist-2d", None])
def test_something_other_than_a_vae_is_refused(problem, wrong):
    with pytest.raises(TypeError, match=r"expected a crosscoding.VAE, got"):
        cc.condition(wrong, problem.evidence, seed=0)


def test_something_other_than_evidence_is_refused(problem):
    for wrong in (problem.truth, (problem.truth, problem.evidence.mask), None):
        with pytest.raises(TypeError, match=r"Evidence\(values, mask\) or Evidence.from_nan\(val"):
            cc.condition(problem.vae, wrong, seed=0)


@pytest.mark.parametrize("wrong", ["grid", Grid, Gaussian(), 3])
def test_something_other_than_a_method_is_refused(problem, wrong):
    with pytest.raises(TypeError, match=r"one of crosscoding.methods, such as HMC\(\), got"):
        cc.condition(problem.vae, problem.evidence, wrong, seed=0)


def test_something_other_than_a_target_is_refused(problem):
    for wrong in (problem.vae, problem.evidence, lambda z: -z.square().sum(-1)):
        with pytest.raises(TypeError, match="expected a crosscoding target, got"):
            cc.infer(wrong, seed=0)


@pytest.mark.parametrize("wrong", ["0", 1.0, True, torch.tensor(1)])
def test_a_seed_of_another_type_is_refused(problem, wrong):
    with pytest.raises(TypeError, match=r"expected seed to be an int, a torch.Generator or None"):
        cc.condition(problem.vae, problem.evidence, seed=wrong)


def test_a_negative_seed_is_refused(problem):
    with pytest.raises(ValueError, match="expected seed >= 0, got -1"):
        cc.condition(problem.vae, problem.evidence, seed=-1)


# ---- what comes of good arguments ----------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 3, 4])
def test_the_default_is_auto(latent_dim):
    problem = linear_gaussian_problem(latent_dim, data_dim=4, scale=2.0, batch=(2,))
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    assert posterior.method == "Auto"
    assert posterior.trusted.all()
    # "trusted" allows a standard error of 0.04 nats; an error of 3 of them is a chance of 1 in 370
    difference = posterior.log_evidence - problem.exact_log_evidence()
    assert difference.abs().max() < 3 * posterior.log_evidence_error.max() + 1e-4


def test_without_a_seed_the_draws_are_new_each_time(problem):
    one, other = (cc.condition(problem.vae, problem.evidence, Rejection(20)) for _ in range(2))
    assert not torch.equal(one.draws, other.draws)


def test_infer_takes_a_target_as_condition_takes_its_parts(problem):
    direct = cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0)
    through = cc.infer(cc.VAETarget(problem.vae, problem.evidence), Rejection(20), seed=0)
    assert torch.equal(direct.draws, through.draws)
    assert torch.equal(direct.predict(3), through.predict(3))


def test_a_bare_density_is_answered_without_a_batch():
    posterior = cc.infer(mixture_target(), seed=0)
    assert posterior.method == "Auto"
    assert posterior.batch_shape == ()
    assert posterior.log_evidence.item() == pytest.approx(0.0, abs=0.02)


def test_the_time_it_took_is_reported(problem):
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0)
    assert posterior.seconds > 0


# ---- decoders that break in places ---------------------------------------------------------------


class BreaksBeyond(nn.Module):
    """Linear, and NaN, or infinite, where the first latent is above a limit."""

    def __init__(self, limit: float, value: float, elements: slice) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0], [0, 1.0], [1.0, 1.0], [1.0, -1.0]]))
        self.limit, self.value, self.elements = limit, value, elements

    def forward(self, z):
        output = self.linear(z)
        broken = (z[:, :1] > self.limit) & torch.ones_like(output, dtype=torch.bool)
        broken[:, [i for i in range(4) if i not in range(4)[self.elements]]] = False
        return torch.where(broken, self.value, output)


METHODS = [
    Grid(),
    Rejection(50),
    HMC(num_chains=8, num_warmup=50, num_draws=20),
    Variational(Gaussian(), steps=300),
    Variational(Planar(2), steps=300),
    Variational(FCN((8,)), steps=300),
]
IDS = ["grid", "rejection", "hmc", "gvi", "nf", "fcn"]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("elements", [slice(0, 4), slice(0, 1), slice(3, 4)], ids=str)
def test_a_decoder_that_is_nan_where_the_posterior_lies_raises(method, elements):
    """Also where only an element breaks that is not observed."""
    vae = cc.VAE(BreaksBeyond(2.0, math.nan, elements), 2, cc.likelihoods.Gaussian(0.3))
    values = torch.tensor([3.0, 0.0, 3.0, 3.0])
    evidence = cc.Evidence(values, torch.tensor([True, True, True, False]))
    with pytest.raises(
        cc.NonFiniteError, match=r"expected a finite|expected element 3 to have a pred"
    ):
        cc.condition(vae, evidence, method, seed=0).predict(50)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_broken_decoder_never_gives_an_answer_that_is_not_finite(method):
    """The break is far from the posterior: a method may not meet it, and is then right."""
    vae = cc.VAE(BreaksBeyond(3.5, math.nan, slice(0, 4)), 2, cc.likelihoods.Gaussian(0.3))
    evidence = cc.Evidence(torch.tensor([-1.0, 0.0, -1.0, -1.0]), torch.tensor(True))
    try:
        posterior = cc.condition(vae, evidence, method, seed=0)
    except cc.NonFiniteError:
        return
    assert not isinstance(method, Grid)  # it looks everywhere
    assert posterior.draws.isfinite().all()
    assert posterior.mean().isfinite().all()
    # p(z|x) = N(precision⁻¹ Wᵀ x / 0.09, …) with WᵀW = 3 I and Wᵀx = (−3, 0)
    mean = torch.tensor([-3.0 / 0.09 / (1 + 3 / 0.09), 0.0])
    assert (posterior.sample(500, seed=0).mean(0) - mean).abs().max() < 0.2


def test_the_grid_notices_nan_wherever_prior_draws_may_be():
    vae = cc.VAE(BreaksBeyond(4.9, math.nan, slice(0, 4)), 2, cc.likelihoods.Gaussian(0.3))
    evidence = cc.Evidence(torch.zeros(4), torch.tensor(True))
    with pytest.raises(cc.NonFiniteError, match=r"at a z of norm 7\.06 .* nan .* for element 0"):
        cc.condition(vae, evidence, Grid(), seed=0)


def test_the_grid_has_no_mass_where_a_decoder_overflows_far_out():
    likelihood = cc.likelihoods.Gaussian(0.3)
    evidence = cc.Evidence(torch.zeros(4), torch.tensor(True))
    whole, broken = (
        cc.condition(
            cc.VAE(BreaksBeyond(limit, math.nan, slice(0, 4)), 2, likelihood),
            evidence,
            Grid(),
            seed=0,
        )
        for limit in (math.inf, 7.0)
    )
    torch.testing.assert_close(broken.log_evidence, whole.log_evidence)


@pytest.mark.parametrize("method", [Grid(), Auto()], ids=["grid", "auto"])
def test_an_answer_next_to_points_without_output_is_not_trusted(method):
    """p(z|x) has its mean at 6.4, where there is NaN from 5.9 on."""
    vae = cc.VAE(BreaksBeyond(5.9, math.nan, slice(0, 4)), 2, cc.likelihoods.Gaussian(0.5))
    evidence = cc.Evidence(torch.tensor([8.0, 0, 0, 0]), torch.arange(4) < 1)
    with pytest.warns(UserWarning, match="p.z.x. of query 0 lies .* the decoder outputs NaN"):
        posterior = cc.condition(vae, evidence, method, seed=0)
    assert posterior.verdicts[0].label != "trusted"
    elsewhere = cc.Evidence(torch.zeros(4), torch.arange(4) < 1)
    assert cc.condition(vae, elsewhere, method, seed=0).trusted


def test_a_bare_density_of_nan_raises():
    target = cc.DensityTarget(lambda z: (z[..., 0] - 1).log() - z.square().sum(-1), 2)
    for method in METHODS:
        with pytest.raises(cc.NonFiniteError, match="NaN"):
            cc.infer(target, method, seed=0)


# ---- log p(y|x) by conditioning twice ------------------------------------------------------------


def test_log_p_of_the_query_is_exact_where_an_average_over_draws_is_not():
    """Data of many elements that say much of z: few draws of p(z|x) predict the rest."""
    problem = linear_gaussian_problem(8, data_dim=60, scale=0.2, batch=(3,))
    evidence = cc.Evidence(problem.truth, torch.arange(60) < 4)
    posterior = cc.condition(problem.vae, evidence, seed=0)
    answer = cc.query_log_prob(posterior, problem.truth, seed=0)
    found, error = answer
    assert found is answer.log_prob
    assert error is answer.error
    exact = problem.exact_query_log_prob(evidence=evidence)
    assert ((found - exact).abs() < 4 * error + 1e-3).all()
    assert (posterior.query_log_prob(problem.truth) < exact - 1).all()
    assert (posterior.query_ess(problem.truth) < 20).all()


def test_log_p_of_the_query_takes_arrays_in_the_models_dtype():
    problem = linear_gaussian_problem(2, batch=(2,))
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    found, wanted = (
        cc.query_log_prob(posterior, truth, seed=0).log_prob
        for truth in (problem.truth.numpy(), problem.truth)
    )
    assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match=r'float32, got torch.float64.*\.astype\("float32"\)'):
        cc.query_log_prob(posterior, problem.truth.double().numpy())


def test_log_p_of_no_query_is_zero():
    problem = linear_gaussian_problem(2, batch=(2,))
    posterior = cc.condition(problem.vae, cc.Evidence(problem.truth, torch.tensor(True)), seed=0)
    found, error = cc.query_log_prob(posterior, problem.truth, seed=0)
    assert found.tolist() == [0, 0]
    assert error.tolist() == [0, 0]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_log_p_of_the_query_refuses_a_truth_that_contradicts_the_evidence(batch):
    problem = linear_gaussian_problem(2, batch=batch)
    mask = torch.arange(8) < 3
    posterior = cc.condition(problem.vae, cc.Evidence(problem.truth, mask), seed=0)
    truth = torch.where(mask, math.nan, problem.truth)  # which says nothing of what is observed
    assert cc.query_log_prob(posterior, truth, seed=0).log_prob.isfinite().all()
    truth[..., 1] = problem.truth[..., 1] + 1
    number = truth.reshape(-1, 8)[0, 1]
    words = rf"observed elements, or NaN, got {number:.6g} for element 1 of query 0, observed as "
    with pytest.raises(ValueError, match=words):
        cc.query_log_prob(posterior, truth, seed=0)


def test_log_p_of_the_query_needs_a_model_and_a_truth_that_fits_it():
    posterior = cc.infer(cc.DensityTarget(lambda z: -z.square().sum(-1), 2), seed=0)
    with pytest.raises(
        ValueError, match=r"expected the posterior of a VAE, with its model, .*log_prob\(z\) is"
    ):
        cc.query_log_prob(posterior, torch.zeros(2))
    problem = linear_gaussian_problem(2, batch=(2,))
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    with pytest.raises(ValueError, match="expected truth of shape"):
        cc.query_log_prob(posterior, problem.truth[0])


def test_log_p_of_the_query_is_at_least_what_the_posteriors_draws_show():
    """Even if the answer on the complete datum is caught in a local mode, as by this method."""
    vae = cc.VAE(Waves(8.0), 4, cc.likelihoods.Gaussian(0.1))
    data = vae.sample_prior(6, seed=0)
    posterior = cc.condition(vae, cc.Evidence(data, torch.arange(8) >= 4), seed=0)
    caught = Laplace(num_starts=1, steps=4)
    found, error = cc.query_log_prob(posterior, data, caught, seed=0)
    exact = vae.decoder.log_evidence(data, 0.1) - posterior.log_evidence
    by_draws = posterior.query_log_prob(data)
    assert (found >= by_draws - 2 * error).all()
    assert ((found - exact).abs() < 4 * error + 0.1).all()


@pytest.mark.parametrize(("latent_dim", "scale"), [(1, 0.1), (1, 0.3), (2, 0.1), (6, 0.2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_correct_difference_is_not_replaced_by_a_noisy_average(latent_dim, scale, dtype):
    """Two of eight elements observed: few draws of p(z|x) predict the other six."""
    problem = linear_gaussian_problem(latent_dim, data_dim=8, scale=scale, batch=(20,), dtype=dtype)
    evidence = cc.Evidence(problem.truth, torch.arange(8) < 2)
    posterior = cc.condition(problem.vae, evidence, seed=0)
    found, error = cc.query_log_prob(posterior, problem.truth, seed=0)
    exact = problem.exact_query_log_prob(evidence=evidence)
    assert ((found - exact).abs() < 0.02 + 3 * error).all()
    assert (error < 0.06).all()


@pytest.mark.slow
def test_log_probabilities_of_digits_are_those_of_a_grid(mnist_2d):
    digits = cc.zoo.digits()[0]
    seen = cc.Evidence(digits, cc.random_mask((28, 28), 0.05, seed=0))
    whole = cc.Evidence(digits, torch.tensor(True))
    grid = Grid(1e-2)
    exact = [cc.condition(mnist_2d, part, grid, seed=0).log_evidence for part in (whole, seen)]
    posterior = cc.condition(mnist_2d, seen, seed=0)
    found, _ = cc.query_log_prob(posterior, digits, seed=0)
    assert ((found - (exact[0] - exact[1])).abs() < 0.1).all()


def test_the_average_is_used_where_it_is_more_precise():
    """One element of twenty is asked for, and log p of the whole is estimated roughly."""
    problem = linear_gaussian_problem(3, data_dim=20, scale=0.5, batch=(4,))
    evidence = cc.Evidence(problem.truth, torch.arange(20) > 0)
    posterior = cc.condition(problem.vae, evidence, seed=0)
    rough = Importance(rounds=1, num_adapt=50, num_draws=50)
    found, error = cc.query_log_prob(posterior, problem.truth, rough, seed=0)
    exact = problem.exact_query_log_prob(evidence=evidence)
    assert (error < 0.04).all()
    assert ((found - exact).abs() < 4 * error).all()
