"""Autoencoders of diffusers: scaled as in diffusion, differentiable in forward mode."""

import copy
import json

import pytest
import torch
from problems import seeded
from safetensors.torch import load_file, save_file

import crosscoding as cc
from crosscoding.adapters import from_diffusers
from crosscoding.crosscoders import Gaussian
from crosscoding.errors import ModelFormatError
from crosscoding.methods import HMC, Auto, Importance, Laplace, NaturalGradient, Variational

diffusers = pytest.importorskip("diffusers", reason="needs the extra `diffusers`")

SMALL_KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
SMALL_TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
SCALED = {
    "unscaled": ({"scaling_factor": 1.0}, 1.0, 0.0),
    "scaled": ({}, 0.18215, 0.0),
    "shifted": ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159),
}


def kl(**settings):
    """A small AutoencoderKL, the same at every call; pictures are twice as large as latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(**SMALL_KL | settings).eval()


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderTiny(**SMALL_TINY).eval()


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.randn(3, 16, generator=seeded(0))


@pytest.mark.parametrize("name", SCALED)
def test_z_is_unscaled_as_diffusion_does(name, z):
    settings, factor, shift = SCALED[name]
    model = kl(**settings)
    vae = from_diffusers(model, 4)
    wanted = model.decode(z.reshape(3, 4, 2, 2) / factor + shift).sample
    assert (vae.latent_dim, vae.data_shape) == (16, (3, 4, 4))
    torch.testing.assert_close(vae.decode(z), wanted)


def test_latents_with_statistics_of_each_channel_are_unscaled_by_them(z):
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    model = kl(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    mean, std = (torch.tensor(each)[:, None, None] for each in (mean, std))
    wanted = model.decode(z.reshape(3, 4, 2, 2) * std / 0.5 + mean).sample
    torch.testing.assert_close(from_diffusers(model, 4).decode(z), wanted)


def test_the_tiny_one_takes_z_as_it_is(z):
    model = tiny()
    vae = from_diffusers(model, 4)
    torch.testing.assert_close(vae.decode(z), model.decode(z.reshape(3, 4, 2, 2)).sample)
    # From [0, 1] to [-1, 1], the range of pictures throughout diffusers.
    torch.testing.assert_close(
        vae.decode(z), 2 * model.decoder.layers(3 * torch.tanh(z.reshape(3, 4, 2, 2) / 3)) - 1
    )


def test_a_model_without_quantisation_layer_or_attention_is_accepted(z):
    model = kl(use_post_quant_conv=False, use_quant_conv=False, mid_block_add_attention=False)
    wanted = model.decode(z.reshape(3, 4, 2, 2) / 0.18215).sample
    torch.testing.assert_close(from_diffusers(model, 4).decode(z), wanted)


@pytest.mark.parametrize("model", [kl, tiny])
def test_height_and_width_may_differ(model):
    vae = from_diffusers(model(), (8, 4))
    assert (vae.latent_dim, vae.data_shape) == (4 * 4 * 2, (3, 8, 4))


@pytest.mark.parametrize("size", [5, (4, 7), 0, -2])
@pytest.mark.parametrize("model", [kl, tiny])
def test_a_size_that_the_model_cannot_output_is_refused(model, size):
    with pytest.raises(ValueError, match="expected a size in multiples of 2 pixels"):
        from_diffusers(model(), size)


@pytest.mark.parametrize("model", [kl, tiny])
def test_tangents_are_those_of_backward_mode(model, z):
    vae = from_diffusers(model(), 4)
    direction = torch.randn(3, 16, generator=seeded(1))
    _, forward = torch.func.jvp(vae.decode, (z,), (direction,))
    _, pull = torch.func.vjp(vae.decode, z)
    cotangent = torch.randn(3, 3, 4, 4, generator=seeded(2))
    torch.testing.assert_close(
        (forward * cotangent).sum(), (pull(cotangent)[0] * direction).sum(), rtol=1e-3, atol=1e-3
    )


def test_the_model_is_not_changed(z):
    model = kl()
    before = copy.deepcopy(model.state_dict())
    from_diffusers(model, 4).decode(z)
    assert type(model.decoder.mid_block.attentions[0].processor).__name__ == "AttnProcessor2_0"
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model.state_dict(), before)


def test_the_decoder_holds_nothing_of_the_encoder():
    model = kl()
    parts = model.decoder, model.post_quant_conv
    wanted = sum(weight.numel() for part in parts for weight in part.parameters())
    kept = sum(weight.numel() for weight in from_diffusers(model, 4).decoder.parameters())
    assert kept == wanted


STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
POSTERIORS = {name: settings for name, (settings, _, _) in SCALED.items()} | {
    "statistics": {"scaling_factor": 0.5, **STATISTICS},
    "bare": {"use_quant_conv": False, "mid_block_add_attention": False},
    "nearly certain": {},
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_an_encoder_outputs_the_librarys_posterior_in_coordinates_of_z(name):
    model, pictures = kl(**POSTERIORS[name]), torch.rand(3, 3, 8, 4, generator=seeded(0)) * 2 - 1
    if name == "nearly certain":  # diffusers clamps the log-variance
        model.quant_conv.bias.data[4:] = -99.0
    mean, std = from_diffusers(model, (8, 4)).encode(pictures)
    theirs = model.encode(pictures).latent_dist
    shift, spread = model.config.get("shift_factor") or 0.0, 1.0
    if name == "statistics":
        shift, spread = (torch.tensor(each)[:, None, None] for each in STATISTICS.values())
    spread = spread / model.config.scaling_factor
    wanted = (theirs.mean - shift) / spread, theirs.std / spread
    torch.testing.assert_close(mean, wanted[0].flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, wanted[1].flatten(1), rtol=1e-5, atol=1e-9)


def test_an_encoder_is_left_out_if_it_has_no_deviation_or_is_not_wanted():
    assert from_diffusers(kl(), 4).encoder is not None
    assert from_diffusers(kl(), 4, with_encoder=False).encoder is None
    assert from_diffusers(tiny(), 4).encoder is None


def test_saving_says_what_to_save_instead(tmp_path):
    for model in (kl, tiny):
        with pytest.raises(ValueError, match=r"adapters made, save the library's own"):
            from_diffusers(model(), 4).save(tmp_path / "model")


METHODS = [
    Auto(num_draws=200),
    HMC(num_chains=2, num_warmup=10, num_draws=10, num_leapfrog=3),
    Importance(rounds=1, num_adapt=100, num_draws=100),
    Laplace(num_starts=1, num_fresh=50),
    NaturalGradient(steps=5, num_fresh=50),
    Variational(Gaussian(rank=2), steps=10, num_draws=4, num_fresh=50),
    Variational(Gaussian(diagonal=True), steps=10, num_draws=4, num_fresh=50),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_kind_of_method_answers(method):
    vae = from_diffusers(kl(), 4, scale=0.2)
    mask = cc.rectangle_mask((4, 4), rows=(0, 1)).expand(3, 4, 4)
    evidence = cc.Evidence(vae.sample_prior(2, seed=0), mask)
    posterior = cc.condition(vae, evidence, method, seed=0)
    assert posterior.predict(4).shape == (4, 2, 3, 4, 4)
    assert posterior.sample(4).isfinite().all()


def test_the_scale_of_the_data_is_recovered():
    vae = from_diffusers(tiny(), 4, scale=1.0)
    truth = from_diffusers(tiny(), 4, scale=0.3)
    found = cc.calibrate_scale(vae, truth.sample_prior(10, seed=0))
    # 10 pictures of 48 elements, of which z could explain 16: the standard error is 4 %.
    assert found == pytest.approx(0.3, rel=0.15)


def test_double_precision_is_kept(z):
    model = kl().double()
    vae = from_diffusers(model, 4)
    wanted = model.decode(z.double().reshape(3, 4, 2, 2) / 0.18215).sample
    assert vae.dtype == torch.double
    torch.testing.assert_close(vae.decode(z.double()), wanted, rtol=1e-6, atol=1e-6)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="expected a decoder in float32 or float64"):
        from_diffusers(kl().half(), 4)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="expected AutoencoderKL or AutoencoderTiny, got Linear"):
        from_diffusers(torch.nn.Linear(2, 5), 4)


# ---- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [kl, tiny])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_saved_folder_is_loaded(model, kind, tmp_path, z):
    model().save_pretrained(tmp_path)
    vae = from_diffusers(kind(tmp_path), 4)
    torch.testing.assert_close(vae.decode(z), from_diffusers(model(), 4).decode(z))


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path):
    kl().save_pretrained(tmp_path, safe_serialization=False)
    said = r"expected no pickle, but {} looks like a pickle.*safe_serialization"
    with pytest.raises(ModelFormatError, match=said.format(r".*\.bin")):
        from_diffusers(tmp_path, 4)
    torch.save({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match=said.format(r"model\.safetensors")):
        from_diffusers(tmp_path / "model.safetensors", 4)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="expected a folder that save_pretrained wrote"):
        from_diffusers(tmp_path, 4)
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(ModelFormatError, match="expected a diffusers configuration"):
        from_diffusers(tmp_path, 4)
    config.write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ModelFormatError, match=r"expected AutoencoderKL or .* got VQModel"):
        from_diffusers(tmp_path, 4)
    kl().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="expected weights in safetensors"):
        from_diffusers(tmp_path, 4)


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.startswith("decoder.")))
    save_file(tensors, path)
    with pytest.raises(ModelFormatError, match="is missing, left over or of another shape"):
        from_diffusers(tmp_path, 4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"block_out_channels": [2**17] * 2, "norm_num_groups": 32},
            r"expected the \d{13} weights",
        ),
        ({"block_out_channels": 3}, "expected a configuration that AutoencoderKL takes"),
    ],
)
def test_a_configuration_larger_than_its_weights_takes_no_memory(tmp_path, changed, said):
    kl().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(ModelFormatError, match=said):
        from_diffusers(tmp_path, 4)


def test_weights_in_several_files_are_refused_as_one_could_be_a_pickle(tmp_path):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.rename(tmp_path / "dummy.safetensors")
    with pytest.raises(ModelFormatError, match="expected weights in safetensors, in one file"):
        from_diffusers(tmp_path, 4)
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(ModelFormatError, match="expected no pickle"):
        from_diffusers(tmp_path, 4)
