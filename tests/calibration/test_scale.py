"""`calibrate_scale` against the exact maximum of the likelihood, and what it refuses."""

import math

import pytest
import torch
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed, Poisson


def with_likelihood(vae, likelihood):
    return cc.VAE(vae.decoder, vae.latent_dim, likelihood)


def exact_log_likelihood(vae, data, scale):
    """Σ log p(t) of a linear decoder: t ~ N(b, W Wᵀ + diag σ²), in double."""
    weight, bias = vae.decoder.weight.double(), vae.decoder.bias.double()
    variance = torch.as_tensor(scale, dtype=torch.double).expand(len(bias)).square()
    model = torch.distributions.MultivariateNormal(bias, weight @ weight.mT + variance.diag())
    return model.log_prob(data.double()).sum()


def exact_scale(vae, data):
    """The σ at which that is largest, by halving of intervals."""
    low, high = math.log(1e-3), math.log(10.0)
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        values = [exact_log_likelihood(vae, data, math.exp(point)) for point in (left, right)]
        low, high = (left, high) if values[0] < values[1] else (low, right)
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("true_scale", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("guess", [0.01, 3.0])
def test_it_is_the_maximum_of_the_exact_likelihood_of_a_linear_vae(true_scale, guess):
    problem = linear_gaussian_problem(data_dim=10, scale=true_scale, batch=400)
    vae = with_likelihood(problem.vae, Gaussian(guess))
    found = cc.calibrate_scale(vae, problem.truth, tolerance=1e-4)
    assert isinstance(found, float)
    # The M-step is a mean over 400 x 64 draws of 3 directions of 10: its noise is 0.1 % of σ, and
    # what EM stops short of, tolerance / (1 − rate) with a rate up to 0.3 or so, is less.
    assert found == pytest.approx(exact_scale(vae, problem.truth), rel=4e-3)


def test_a_scale_for_each_element_is_a_stationary_point_of_the_exact_likelihood():
    true_scale = torch.tensor([0.3, 0.6, 1.0, 0.4, 0.8, 0.5, 0.7, 0.3], dtype=torch.double)
    problem = linear_gaussian_problem(
        latent_dim=2, scale=true_scale, batch=1000, dtype=torch.double
    )
    vae = with_likelihood(problem.vae, Gaussian(torch.ones(8, dtype=torch.double)))
    found = cc.calibrate_scale(vae, problem.truth, tolerance=1e-4, rounds=1000)
    assert found.shape == (8,)
    # 1,000 data leave 2.2 % of each scale, and thrice that of elements that z mostly follows.
    torch.testing.assert_close(found, true_scale, rtol=0.15, atol=0)
    best = exact_log_likelihood(vae, problem.truth, found)
    for element in range(8):
        for factor in (0.93, 1.07):  # noise and the last of EM leave 3 % where z explains most
            moved = found.clone()
            moved[element] *= factor
            assert exact_log_likelihood(vae, problem.truth, moved) < best


def test_a_scale_that_broadcasts_keeps_its_shape():
    decoder = nn.Sequential(nn.Linear(2, 24), nn.Unflatten(1, (2, 3, 4)))
    scale = torch.tensor([0.2, 0.7]).reshape(2, 1, 1)
    truth = cc.VAE(decoder, 2, Gaussian(scale)).sample_prior(500, seed=0)
    guess = cc.VAE(decoder, 2, Gaussian(torch.ones(2, 1, 1)))
    found = cc.calibrate_scale(guess, truth)
    assert found.shape == (2, 1, 1)
    # 500 x 12 residuals leave 0.9 % of each scale; 4 of these.
    torch.testing.assert_close(found, scale, rtol=0.04, atol=0)


def test_a_curved_decoder_gets_the_scale_its_data_were_drawn_with():
    generator = torch.Generator().manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 60))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    truth = cc.VAE(decoder, 3, Gaussian(0.25)).sample_prior(200, seed=1)
    found = cc.calibrate_scale(cc.VAE(decoder, 3, Gaussian(0.1)), truth)
    # 200 x 60 residuals leave 0.65 % of the scale; 4 of these and 1 % for Laplace's error.
    assert found == pytest.approx(0.25, rel=0.036)


class Sinh(nn.Module):
    """μ(z) = sinh(w z + b), t of two elements: steep away from its middle, and steeper yet."""

    def forward(self, z):
        return torch.sinh(z * z.new_tensor([1.5, -0.3]) + z.new_tensor([-2.2, 0.6]))


def test_a_decoder_that_gets_steeper_gets_the_scale_that_is_likeliest_on_a_grid():
    """Under the first, wide scale draws of z are wide too, and go where μ is far from all data."""
    data = cc.VAE(Sinh(), 1, Gaussian(0.1)).sample_prior(50, seed=1)
    found = cc.calibrate_scale(cc.VAE(Sinh(), 1, Gaussian(1.0)), data)
    z = torch.linspace(-6, 6, 20_001, dtype=torch.double)[:, None]
    squares = (data.double() - Sinh()(z)[:, None]).square().sum(-1)
    scales = [found * 1.02**step for step in range(-20, 21)]
    log_likelihood = [
        ((-0.5 * (z.square() + squares / scale**2)).logsumexp(0) - 2 * math.log(scale)).sum().item()
        for scale in scales
    ]
    best = scales[max(range(len(scales)), key=lambda index: log_likelihood[index])]
    # A step is 2 %, and 3 % are Laplace's error where μ bends within the width of p(z|t).
    assert found == pytest.approx(best, rel=0.05)


# ---- Gaussian parts of a table -------------------------------------------------------------------

TABLE = Mixed([(Gaussian(1.0), 4), (Poisson(), 6), Categorical(3), (Gaussian(1.0), 3)])


def table(scales, dtype=torch.float32, latent_dim=2, flat=13 + 3) -> cc.VAE:
    """A linear decoder of 4 and 3 Gaussian columns, with 6 counts and a class between them."""
    decoder = nn.Linear(latent_dim, flat)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            parameter.copy_(noise)
    parts = iter(Gaussian(scale) for scale in scales)
    pairs = [(next(parts) if isinstance(p, Gaussian) else p, num) for p, num in TABLE.pairs]
    return cc.VAE(decoder.to(dtype), latent_dim, Mixed(pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("guess", [0.05, 3.0])
def test_gaussian_parts_of_a_table_get_the_scales_of_their_data(dtype, guess):
    data = table((0.3, 1.2), dtype).sample_prior(500, seed=0)
    found = cc.calibrate_scale(table((guess, guess), dtype), data)
    assert [type(scale) for scale in found] == [float, float]
    # 500 x 4 residuals, half of which z takes up, leave 2.2 % of the first; of 500 x 3 the second
    # has 1.8 %; 3 of these.
    assert found == pytest.approx((0.3, 1.2), rel=0.066)


@pytest.mark.slow
def test_scales_of_a_table_are_those_of_the_likelihood_on_a_grid():
    data = table((0.3, 1.2), latent_dim=1).sample_prior(60, seed=1)
    found = cc.calibrate_scale(table((1.0, 1.0), latent_dim=1), data)
    z = torch.linspace(-6, 6, 4001)[:, None]

    def log_likelihood(scales) -> float:
        """Σ log p(t) but for a constant, by the trapezoidal rule."""
        target = cc.VAETarget(table(scales, latent_dim=1), cc.Evidence(data, torch.tensor(True)))
        log_joint = target.pairwise_log_likelihood(z).double() - 0.5 * z.square()
        return log_joint.logsumexp(0).sum().item()

    for part in range(2):
        scales = [[*found] for _ in range(41)]
        for step, own in enumerate(scales):
            own[part] *= 1.01 ** (step - 20)
        best = max(scales, key=log_likelihood)
        # A step is 1 %; p(z|t) is no Gaussian where counts are few, and 2 % are allowed for it.
        assert found[part] == pytest.approx(best[part], rel=0.03)


def test_other_columns_help_to_infer_z():
    """One Gaussian column and its two latents: without the counts, all of it would be matched."""
    decoder = nn.Linear(2, 13)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
            parameter.copy_(noise)
        decoder.bias[1:] += 3.0
    truth, guess = (
        cc.VAE(decoder, 2, Mixed([Gaussian(scale), (Poisson(), 12)])) for scale in (0.7, 0.1)
    )
    (found,) = cc.calibrate_scale(guess, truth.sample_prior(500, seed=0))
    assert found == pytest.approx(0.7, rel=0.1)  # 500 residuals leave 3.2 %; 3 of these


def test_scales_of_channels_keep_their_shape_and_decoded_ones_stay():
    """(rows, columns, channels of the part): what a tensor in `Mixed` broadcasts to."""
    network = nn.Sequential(nn.Linear(2, 7 * 12), nn.Unflatten(1, (7, 3, 4)))
    with torch.no_grad():
        noise = torch.randn(7 * 12, 2, generator=torch.Generator().manual_seed(5))
        network[0].weight.copy_(noise)
        network[0].bias.zero_()

    def model(scale) -> cc.VAE:
        log_variance = Gaussian(None, log_variance=True)
        parts = [Bernoulli(), (Gaussian(scale), 2), (log_variance, 2)]
        return cc.VAE(network, 2, Mixed(parts, dim=-3))

    data = model(torch.tensor([0.2, 0.6])).sample_prior(200, seed=0)
    (found,) = cc.calibrate_scale(model(torch.ones(2)), data)
    # 200 x 12 residuals leave 1.4 %; 4 of these.
    torch.testing.assert_close(found, torch.tensor([0.2, 0.6]), rtol=0.06, atol=0)
    (found,) = cc.calibrate_scale(model(torch.ones(3, 1, 1)), data)
    assert found.shape == (3, 1, 1)


def test_a_part_whose_data_z_can_match_is_named():
    decoder = nn.Linear(3, 4)
    nn.init.orthogonal_(decoder.weight, generator=torch.Generator().manual_seed(0))
    vae = cc.VAE(decoder, 3, Mixed([Bernoulli(), (Gaussian(0.3), 3)]))
    data = vae.sample_prior(2, seed=0).repeat(16, 1)
    with pytest.raises(cc.BudgetError, match=r"^for part 1, expected data that z cannot match"):
        cc.calibrate_scale(vae, data)


def test_data_that_the_means_equal_are_refused():
    decoder = nn.Linear(2, 4)
    nn.init.zeros_(decoder.weight)
    vae = cc.VAE(decoder, 2, Gaussian(0.1))
    with pytest.raises(cc.BudgetError, match="the decoder's means equal all values"):
        cc.calibrate_scale(vae, decoder.bias.detach().expand(5, 4).clone())


def test_data_that_z_can_match_exactly_are_refused():
    problem = linear_gaussian_problem(latent_dim=3, data_dim=3, scale=0.3, batch=32)
    data = problem.truth[:2].repeat(16, 1)
    with pytest.raises(cc.BudgetError, match=r"that z cannot match exactly, .* z of 3 dimensions"):
        cc.calibrate_scale(problem.vae, data)


def test_the_model_is_not_changed_and_the_same_call_gives_the_same_bits():
    problem = linear_gaussian_problem(batch=50)
    found = [cc.calibrate_scale(problem.vae, problem.truth) for _ in range(2)]
    assert found[0] == found[1]
    assert problem.vae.likelihood.scale == 0.5


def test_progress_is_reported():
    problem, seen = linear_gaussian_problem(batch=50), []
    cc.calibrate_scale(problem.vae, problem.truth, report=lambda share, what: seen.append(what))
    assert seen[0].startswith("round 1, mean scale")


LINEAR = linear_gaussian_problem()


@pytest.mark.parametrize(
    ("vae", "data", "options", "error", "message"),
    [
        (LINEAR.vae.decoder, LINEAR.truth, {}, TypeError, "expected a crosscoding.VAE, got Linear"),
        (
            with_likelihood(LINEAR.vae, Bernoulli()),
            LINEAR.truth,
            {},
            TypeError,
            "a VAE with a Gaussian likelihood, .* got Bernoulli; for another likelihood, compare",
        ),
        (
            with_likelihood(LINEAR.vae, Mixed([(Bernoulli(), 8)])),
            LINEAR.truth,
            {},
            TypeError,
            "a Mixed with a Gaussian part, of fixed scale, got Mixed; for another",
        ),
        (
            cc.VAE(nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (8, 2)), nn.Softplus()), 3,
                   Gaussian(None)),
            LINEAR.truth,
            {},
            ValueError,
            r"with a fixed scale, got Gaussian\(scale=None\)",
        ),
        (LINEAR.vae, [1.0], {}, TypeError, "data to be a torch.Tensor or a NumPy array, got list"),
        (LINEAR.vae, torch.zeros(4, 7), {}, ValueError, r"expected data of shape \(\*batch, 8\)"),
        (LINEAR.vae, torch.zeros(8), {}, ValueError, r"data of shape \(N, 8\) with N >= 1, got"),
        (LINEAR.vae, torch.zeros(0, 8), {}, ValueError, r"data of shape \(N, 8\) with N >= 1, got"),
        (
            LINEAR.vae,
            torch.full((2, 8), math.nan),
            {},
            cc.NonFiniteError,
            "expected finite observed values",
        ),
        (LINEAR.vae, LINEAR.truth, {"rounds": 0}, ValueError, "expected rounds >= 1"),
        (LINEAR.vae, LINEAR.truth, {"tolerance": 0.0}, ValueError, "tolerance > 0"),
        (LINEAR.vae, LINEAR.truth, {"rounds": 1}, cc.BudgetError, "settles within 1 round,"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(vae, data, options, error, message):
    with pytest.raises(error, match=message):
        cc.calibrate_scale(vae, data, **options)


def test_arrays_are_taken_in_the_models_dtype():
    data = LINEAR.truth.numpy()
    assert cc.calibrate_scale(LINEAR.vae, data) == cc.calibrate_scale(LINEAR.vae, LINEAR.truth)
    with pytest.raises(ValueError, match=r'got torch.float64; .*\.astype\("float32"\)'):
        cc.calibrate_scale(LINEAR.vae, data.astype("float64"))
