"""VAE.save and load_vae: the same model comes back, and with it the same answers."""

import pytest
import torch
from problems import seeded
from saved_models import ARGUMENTS, MODELS
from tampering import reseal
from torch import nn
from user_networks import Residual

import crosscoding as cc
from crosscoding.likelihoods import Gaussian

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_a_loaded_model_equals_the_saved_one(saved, name):
    vae, folder = saved(name)
    again = cc.load_vae(folder, allow_code=True)
    assert (again.latent_dim, again.data_shape) == (vae.latent_dim, vae.data_shape)
    assert (again.dtype, again.device) == (vae.dtype, vae.device)
    assert repr(again.likelihood) == repr(vae.likelihood)
    assert type(again.decoder) in (type(vae.decoder), nn.Sequential)
    assert not any(module.training for module in again.decoder.modules())
    z = torch.randn(50, 2, generator=seeded(0)).to(vae.dtype)
    assert torch.equal(again.decode(z), vae.decode(z))
    assert (again.encoder is None) == (vae.encoder is None)
    if vae.encoder is not None:
        data = vae.sample_prior(5, seed=1)
        for one, other in zip(again.encode(data), vae.encode(data), strict=True):
            assert torch.equal(one, other)


@every_model
def test_answers_are_the_same_bits_before_and_after(saved, name):
    vae, folder = saved(name)
    truth = vae.sample_prior(3, seed=0)
    evidence = cc.Evidence(truth, cc.random_mask(vae.data_shape, 0.4, seed=0))
    before, after = (
        cc.condition(model, evidence, seed=0)
        for model in (vae, cc.load_vae(folder, allow_code=True))
    )
    assert torch.equal(after.log_evidence, before.log_evidence)
    assert torch.equal(after.draws, before.draws)
    assert torch.equal(after.predict(4, seed=1), before.predict(4, seed=1))
    assert [str(v) for v in after.verdicts] == [str(v) for v in before.verdicts]


@every_model
def test_saving_a_loaded_model_writes_the_same_files(saved, name, tmp_path):
    _, folder = saved(name)
    cc.load_vae(folder, allow_code=True).save(tmp_path / "again", **ARGUMENTS.get(name, {}))
    for file in ("description.json", "tensors.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("name", cc.zoo.names())
def test_a_model_of_the_zoo_can_be_saved(name, tmp_path):
    vae = cc.zoo.load(name)
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    z = vae.prior.sample(3, generator=seeded(0), like=torch.empty(0))
    assert torch.equal(again.decode(z), vae.decode(z))
    data = vae.sample_prior(2, seed=0)
    assert torch.equal(again.sample_prior(2, seed=0), data)
    if vae.encoder is not None:
        assert torch.equal(again.encode(data)[0], vae.encode(data)[0])


def test_a_decoder_with_shared_layers_is_saved(tmp_path):
    shared = nn.Linear(2, 2)
    cc.VAE(nn.Sequential(shared, nn.Tanh(), shared), 2, Gaussian()).save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    z = torch.ones(1, 2)
    torch.testing.assert_close(again.decode(z), shared(shared(z).tanh()))


def test_saving_and_loading_leave_torchs_global_random_state_alone(tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian(0.5))
    before = torch.get_rng_state()
    vae.save(tmp_path / "model", decoder_arguments={"hidden": 7})
    cc.load_vae(tmp_path / "model", allow_code=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_in_half_precision_are_read_in_single(saved):
    vae, folder = saved("layers")

    def halve(tensors, _):
        del tensors["outputs"]
        tensors.update({k: t.half() for k, t in tensors.items() if k.startswith("decoder.")})

    reseal(folder, halve)
    again = cc.load_vae(folder)
    assert again.dtype == torch.float32
    z = torch.ones(1, 2)
    torch.testing.assert_close(again.decode(z), vae.decode(z), rtol=1e-2, atol=1e-2)
