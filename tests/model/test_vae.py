"""VAE: a frozen copy of a decoder for which p(t|z) is a distribution; all others are refused."""

import copy

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.model.matching import check_matches


class Function(nn.Module):
    """A module made from a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor):
        return self.function(z)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(0))


# ---- the copy --------------------------------------------------------------------------------


def test_the_decoder_is_a_copy_in_eval_mode_without_gradients():
    decoder = network().train()
    vae = cc.VAE(decoder, 2, Gaussian())
    assert vae.decoder is not decoder
    assert not any(module.training for module in vae.decoder.modules())
    assert not any(parameter.requires_grad for parameter in vae.decoder.parameters())


def test_the_module_that_was_passed_is_not_changed():
    decoder = network().train()
    before = copy.deepcopy(decoder.state_dict())
    vae = cc.VAE(decoder, 2, Gaussian())
    vae.sample_prior(3, seed=0)
    assert all(module.training for module in decoder.modules())
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    for name, tensor in decoder.state_dict().items():  # running statistics too
        assert torch.equal(tensor, before[name])


def test_later_training_of_the_module_does_not_change_the_vae():
    decoder = network()
    vae = cc.VAE(decoder, 2, Gaussian())
    before = vae.decode(points(4, 2))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(vae.decode(points(4, 2)), before)


def test_gradients_flow_to_z_and_not_to_weights():
    vae = cc.VAE(network(), 2, Gaussian())
    z = points(4, 2).requires_grad_()
    vae.decode(z).sum().backward()
    assert (z.grad != 0).all()
    assert all(parameter.grad is None for parameter in vae.decoder.parameters())


def test_attributes_describe_the_model():
    likelihood = Bernoulli()
    decoder = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))).double()
    vae = cc.VAE(decoder, 2, likelihood)
    assert (vae.latent_dim, vae.data_shape, vae.data_size) == (2, (3, 4), 12)
    assert vae.likelihood is likelihood
    assert vae.dtype == torch.double
    assert vae.device == torch.device("cpu")


def test_making_a_vae_leaves_the_global_generator_alone():
    decoder = network()
    before = torch.get_rng_state()
    cc.VAE(decoder, 2, Gaussian()).sample_prior(3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


# ---- decoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (4, 2), (3, 4, 2), (0, 2), (3, 0, 2)], ids=str)
def test_decode_keeps_sample_and_batch_dimensions(shape):
    vae = cc.VAE(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))), 2, Gaussian())
    assert vae.decode(points(*shape)).shape == (*shape[:-1], 3, 4)
    assert vae.decode_flat(points(*shape)).shape == (*shape[:-1], 12)


def test_decode_gives_the_modules_output_in_eval_mode():
    decoder = network()
    decoder(points(50, 2))  # moves the running statistics off their start
    vae = cc.VAE(decoder, 2, Gaussian())
    torch.testing.assert_close(vae.decode(points(4, 2)), decoder.eval()(points(4, 2)))


def test_a_tuple_of_outputs_is_one_parameter_each():
    scale = torch.tensor([0.1, 0.2, 0.3])
    decoder = Function(lambda z: (z.sum(-1, keepdim=True) + scale, scale.expand(len(z), 3)))
    vae = cc.VAE(decoder, 2, Gaussian(scale=None))
    params = vae.decode(points(4, 2))
    assert vae.data_shape == (3,)
    assert params.shape == (4, 3, 2)
    assert torch.equal(params[..., 1], scale.expand(4, 3))


def test_a_last_dimension_of_two_is_one_parameter_each():
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.Unflatten(1, (3, 2)))
    vae = cc.VAE(decoder, 2, Gaussian(scale=None))
    assert vae.data_shape == (3,)
    assert vae.decode_flat(points(4, 2)).shape == (4, 3, 2)


def test_prior_draws_have_the_moments_of_the_model():
    problem = linear_gaussian_problem(latent_dim=2, data_dim=3, scale=0.5)
    weight, bias = problem.vae.decoder.weight, problem.vae.decoder.bias
    draws = problem.vae.sample_prior(20_000, seed=0)
    variance = weight.square().sum(-1) + 0.25
    # five standard errors: of a mean sd / √N, of a variance sqrt(2 / N) relative
    assert ((draws.mean(0) - bias).abs() < 5 * (variance / 20_000).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * (2 / 20_000) ** 0.5).all()


def test_prior_draws_of_the_same_seed_are_the_same_bits():
    vae = cc.VAE(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))), 2, Bernoulli())
    assert torch.equal(vae.sample_prior(5, seed=1), vae.sample_prior(5, seed=seeded(1)))
    assert not torch.equal(vae.sample_prior(5, seed=1), vae.sample_prior(5, seed=2))
    assert vae.sample_prior(0, seed=1).shape == (0, 3, 4)


def test_decode_refuses_points_of_another_size():
    vae = cc.VAE(nn.Linear(2, 5), 2, Gaussian())
    with pytest.raises(ValueError, match=r"\(\*sample, 2\), got \(3, 4\)"):
        vae.decode(points(3, 4))


# ---- refusals --------------------------------------------------------------------------------


def test_a_decoder_that_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got function; wrap a function"):
        cc.VAE(lambda z: z, 2, Gaussian())


@pytest.mark.parametrize("latent_dim", [2.0, "2", True, None])
def test_a_latent_dim_that_is_not_an_int_is_refused(latent_dim):
    with pytest.raises(TypeError, match="latent_dim to be an int, got"):
        cc.VAE(nn.Linear(2, 5), latent_dim, Gaussian())


@pytest.mark.parametrize("latent_dim", [0, -1])
def test_a_latent_dim_below_1_is_refused(latent_dim):
    with pytest.raises(ValueError, match="latent_dim >= 1, got"):
        cc.VAE(nn.Linear(2, 5), latent_dim, Gaussian())


@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, None])
def test_something_other_than_a_likelihood_is_refused(likelihood):
    with pytest.raises(TypeError, match=r"crosscoding\.likelihoods, such as Bernoulli\(\), got"):
        cc.VAE(nn.Linear(2, 5), 2, likelihood)


def test_a_wrong_latent_dim_is_refused_with_the_size_that_was_tried():
    with pytest.raises(
        ValueError, match=r"take rows of shape \(3,\), .* on \(5, 3\).*check latent_dim"
    ):
        cc.VAE(nn.Linear(2, 5), 3, Gaussian())


@pytest.mark.parametrize("output", [{"mean": 1}, None, "logits"], ids=str)
def test_an_output_that_is_not_a_tensor_is_refused(output):
    with pytest.raises(
        ValueError, match=r"^expected a tensor from the decoder, got .* Gaussian takes$"
    ):
        cc.VAE(Function(lambda z: output), 2, Gaussian())
    with pytest.raises(ValueError, match=r"^expected a tensor from the decoder, got"):
        cc.VAE(Function(lambda z: (z, output)), 2, Gaussian(None))


def test_the_message_on_an_output_that_the_likelihood_refuses_does_not_blame_latent_dim():
    for shapes, likelihood, message in (
        ([3, 3], Gaussian(), "^expected one tensor from the decoder for Gaussian, got 2; use"),
        ([3, 4], Gaussian(None), r"; the decoder output \(5, 3\), \(5, 4\)$"),
    ):
        decoder = Function(lambda z, shapes=shapes: tuple(z.new_zeros(len(z), n) for n in shapes))
        with pytest.raises(ValueError, match=message) as caught:
            cc.VAE(decoder, 2, likelihood)
        assert "latent_dim" not in str(caught.value)


class TestBatchMixing:
    """Trap 4: one z's output must not depend on the other z in the batch."""

    def test_batch_norm_with_running_statistics_is_accepted_in_training_mode(self):
        cc.VAE(network().train(), 2, Gaussian())

    def test_batch_norm_over_pixels_without_running_statistics_is_refused(self):
        decoder = nn.Sequential(
            nn.Linear(2, 16),
            nn.Unflatten(1, (4, 2, 2)),
            nn.BatchNorm2d(4, track_running_stats=False),
        )
        with pytest.raises(
            ValueError, match=r"does not depend on the other rows.*track_running_sta"
        ):
            cc.VAE(decoder, 2, Gaussian())

    def test_batch_norm_over_features_without_running_statistics_is_refused(self):
        """It fails on a batch of one by itself, with a message that names no way out."""
        decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False))
        with pytest.raises(
            ValueError, match=r"does not depend on the other rows.*track_running_sta"
        ):
            cc.VAE(decoder, 2, Gaussian())

    def test_a_centred_batch_is_refused(self):
        with pytest.raises(ValueError, match="does not depend on the other rows"):
            cc.VAE(Function(lambda z: z - z.mean(0)), 2, Gaussian())

    def test_an_output_whose_shape_depends_on_the_batch_is_refused(self):
        with pytest.raises(ValueError, match="does not depend on the other rows"):
            cc.VAE(Function(lambda z: z @ z.mT), 2, Gaussian())


def test_dropout_in_eval_mode_is_accepted():
    cc.VAE(nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5)), 2, Gaussian())


def test_dropout_that_stays_on_is_refused():
    decoder = Function(lambda z: nn.functional.dropout(z, 0.5, training=True))
    with pytest.raises(ValueError, match=r"deterministic decoder.*dropout or noise off"):
        cc.VAE(decoder, 2, Gaussian())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    decoder = nn.Linear(2, 5)
    with torch.no_grad():
        decoder.weight[1, 1] = bad
    with pytest.raises(
        cc.NonFiniteError, match=r"finite output from the decoder.*check the loaded weights"
    ):
        cc.VAE(decoder, 2, Gaussian())


def test_an_output_of_another_dtype_than_the_weights_is_refused():
    class Casts(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).double()

    with pytest.raises(ValueError, match=r"dtype torch\.float32, got torch\.float64"):
        cc.VAE(Casts(2, 5), 2, Gaussian())


def test_logits_where_probabilities_were_promised_are_refused():
    with pytest.raises(ValueError, match="probabilities between 0 and 1"):
        cc.VAE(Function(lambda z: 3 * z), 2, Bernoulli(logits=False))
    cc.VAE(Function(torch.sigmoid), 2, Bernoulli(logits=False))


def test_a_logarithm_where_a_scale_was_promised_is_refused():
    with pytest.raises(ValueError, match="scale is > 0"):
        cc.VAE(Function(lambda z: (z, -torch.ones_like(z))), 2, Gaussian(scale=None))


def test_one_parameter_where_two_were_promised_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5, \*data, 2\) for 5 points, .* got \(5, 7\)"):
        cc.VAE(nn.Linear(2, 7), 2, Gaussian(scale=None))


@pytest.mark.parametrize(
    "function", [lambda z: z.sum(-1), lambda z: z.sum(), lambda z: z.repeat(2, 1)]
)
def test_an_output_that_is_not_one_datum_per_point_is_refused(function):
    with pytest.raises(ValueError, match=r"decoder output of shape \(5, \*data\) for 5 points"):
        cc.VAE(Function(function), 2, Gaussian())


def test_a_scale_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ValueError, match="broadcasts to the data's shape"):
        cc.VAE(nn.Linear(2, 5), 2, Gaussian(torch.tensor([0.1, 0.2])))


# ---- data that must match --------------------------------------------------------------------


def image_vae() -> cc.VAE:
    return cc.VAE(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))), 2, Gaussian())


@pytest.mark.parametrize("batch", [(), (5,), (2, 5), (0,)])
def test_data_of_any_batch_match(batch):
    check_matches(image_vae(), torch.zeros(*batch, 3, 4), "evidence", None)
    check_matches(image_vae(), torch.zeros(*batch, 3, 4), "truth", batch)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (5, 4, 3), (12,)])
def test_data_of_another_shape_do_not_match(shape):
    with pytest.raises(ValueError, match=r"expected evidence of shape \(\*batch, 3, 4\), got"):
        check_matches(image_vae(), torch.zeros(shape), "evidence", None)


def test_data_of_another_batch_do_not_match():
    with pytest.raises(ValueError, match=r"truth of shape \(5, 3, 4\), got \(1, 3, 4\)"):
        check_matches(image_vae(), torch.zeros(1, 3, 4), "truth", (5,))


def test_data_of_another_dtype_do_not_match_and_are_not_cast():
    with pytest.raises(ValueError, match=r"dtype torch\.float32, got torch\.float64; convert"):
        check_matches(image_vae(), torch.zeros(3, 4).double(), "evidence", None)


def test_data_on_another_device_do_not_match_and_are_not_moved():
    with pytest.raises(ValueError, match=r"device cpu, got meta; move with"):
        check_matches(image_vae(), torch.zeros(3, 4, device="meta"), "evidence", None)


def test_its_repr_describes_the_model():
    vae = cc.VAE(nn.Linear(2, 5), 2, cc.likelihoods.Gaussian(0.1))
    assert repr(vae) == "VAE(Linear, latent_dim=2, data_shape=(5,), Gaussian(scale=0.1))"


# ---- devices ---------------------------------------------------------------------------------


def test_a_model_that_is_already_on_the_device_is_returned_itself():
    vae = cc.VAE(network(), 2, Gaussian())
    assert vae.to("cpu") is vae
    assert vae.to(torch.device("cpu")) is vae


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_moves_with_its_likelihood_and_encoder():
    vae = cc.VAE(network(), 2, Gaussian(torch.full((5,), 0.2)), encoder=nn.Linear(5, 4))
    moved = vae.to("cuda")
    assert moved.device.type == "cuda"
    assert moved.likelihood.scale.device.type == "cuda"
    assert next(moved.encoder.parameters()).device.type == "cuda"
    z = points(3, 2)
    torch.testing.assert_close(moved.decode(z.cuda()).cpu(), vae.decode(z))
    assert vae.device.type == "cpu"
