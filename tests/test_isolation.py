"""The isolation itself: settings that are restored, tensors from anywhere, and threads."""

import inspect
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from cheap_methods import LISTED
from surroundings import GAUSSIAN, SCALES, around, assert_same, every_surrounding, networks, quiet
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.isolation import isolated
from crosscoding.methods import HMC
from crosscoding.target.jacobian import with_jacobian

pytestmark = pytest.mark.usefixtures("short_start")


# ---- settings ----------------------------------------------------------------------------------


def test_gradients_are_recorded_where_the_caller_records_them():
    vae, z = GAUSSIAN.vae(), torch.zeros(1, 2, requires_grad=True)
    assert vae.decode(z).requires_grad
    with torch.no_grad():
        assert not vae.decode(z).requires_grad
    with torch.inference_mode():
        assert not vae.decode(z).requires_grad


@every_surrounding
@quiet
def test_the_callers_settings_are_restored_after_an_error(surrounding):
    with surrounding():
        before = around()
        with pytest.raises(ValueError, match="expected z"):
            GAUSSIAN.vae().decode(GAUSSIAN.data)
        assert around() == before


class Positions(nn.Module):
    """A decoder that makes a tensor without saying where, as many do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 6)

    def forward(self, z):
        return self.linear(z) + torch.arange(6) / torch.tensor(7)


def test_tensors_that_a_decoder_creates_are_on_its_models_device():
    decoder = Positions()
    bare = cc.condition(cc.VAE(decoder, 2, GAUSSIAN.likelihood), GAUSSIAN.evidence(), seed=0)
    with torch.device("meta"):
        vae = cc.VAE(decoder, 2, GAUSSIAN.likelihood)
        here = cc.condition(vae, GAUSSIAN.evidence(), seed=0)
        mean = here.mean()
    assert_same(mean, bare.mean())


def test_an_isolated_function_keeps_its_name_and_its_results():
    @isolated
    def add(first: Tensor, *, second: Tensor) -> Tensor:
        """Sum."""
        assert not torch.is_inference_mode_enabled()
        return first + second

    with torch.inference_mode():
        one = torch.ones(2)
        total = add(one, second=one)
    assert (add.__name__, add.__doc__) == ("add", "Sum.")
    assert not total.is_inference()
    assert list(inspect.signature(add).parameters) == ["first", "second"]


def test_warnings_name_the_line_of_the_caller():
    probabilities = nn.Sequential(nn.Linear(2, 100), nn.Sigmoid())
    with pytest.warns(UserWarning, match="expected logits") as caught:
        vae = cc.VAE(probabilities, 2, cc.likelihoods.Bernoulli())
    assert [warning.filename for warning in caught] == [__file__]
    assert vae.data_size == 100


# ---- what was made in inference mode, and is used outside --------------------------------------

WITH_GRADIENTS = {name: LISTED[name] for name in ("hmc", "gvi", "laplace")}


@pytest.mark.parametrize("method", WITH_GRADIENTS.values(), ids=WITH_GRADIENTS)
def test_a_model_made_in_inference_mode_works_like_any_other(method):
    vae = cc.VAE(GAUSSIAN.decoder, 2, cc.likelihoods.Gaussian(SCALES))
    bare = cc.condition(vae, GAUSSIAN.evidence(), method, seed=0)
    with torch.inference_mode():
        decoder = networks(2, torch.float32)[0]
        assert decoder[0].weight.is_inference()
        likelihood = cc.likelihoods.Gaussian(SCALES * 1)
        vae = cc.VAE(decoder, 2, likelihood)
        evidence = cc.Evidence(GAUSSIAN.data[:2] * 1, GAUSSIAN.evidence().mask.clone())
    assert not any(weight.is_inference() for weight in vae.decoder.parameters())
    assert_same(cc.condition(vae, evidence, method, seed=0).draws, bare.draws)
    later = cc.VAE(decoder, 2, likelihood)
    assert_same(cc.condition(later, evidence, method, seed=0).draws, bare.draws)


def test_tensors_made_in_inference_mode_are_accepted_everywhere():
    density = cc.DensityTarget(lambda z: -z.square().sum(-1), 2)
    method = HMC(4, 5, 5, num_leapfrog=3)
    bare = cc.infer(density, method, seed=0)
    with torch.inference_mode():
        like, data = torch.zeros(3), GAUSSIAN.data * 1
    given = cc.DensityTarget(density.log_density, 2, like=like)
    assert_same(cc.infer(given, method, seed=0).draws, bare.draws)
    scale = cc.calibrate_scale(GAUSSIAN.vae(), GAUSSIAN.data)
    assert_same(cc.calibrate_scale(GAUSSIAN.vae(), data), scale)
    assert not cc.Evidence(data, data > 0).values.is_inference()
    assert not GAUSSIAN.vae().decode(data[:, :2]).is_inference()


def test_tensors_on_the_meta_device_are_refused():
    with torch.device("meta"):
        decoder, values = nn.Linear(2, 6), torch.zeros(6)
        with pytest.raises(ValueError, match="is on the meta device"):
            cc.VAE(decoder, 2, GAUSSIAN.likelihood)
        with pytest.raises(ValueError, match="values with numbers in it, got a tensor on the meta"):
            cc.Evidence(values, values > 0)


def test_a_density_of_another_dtype_is_refused():
    def log_density(z: Tensor) -> Tensor:
        return -(z - torch.ones(2, dtype=torch.double)).square().sum(-1)

    with pytest.raises(ValueError, match=r"dtype of z, torch.float32, got torch.float64; .*like="):
        cc.infer(cc.DensityTarget(log_density, 2), HMC(4, 5, 5), seed=0)
    target = cc.DensityTarget(log_density, 2, like=torch.empty(0, dtype=torch.float64))
    assert cc.infer(target, HMC(4, 5, 5), seed=0).draws.dtype == torch.float64


# ---- threads -----------------------------------------------------------------------------------


def together(work: Callable[[int], None], num: int) -> None:
    """Do it in threads that take turns as often as they can."""
    failures, start = [], threading.Barrier(num)

    def guarded(index: int) -> None:
        start.wait()
        try:
            work(index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(num)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_threads_that_share_a_model_get_what_each_gets_alone():
    evidence = GAUSSIAN.evidence()
    bare = cc.condition(GAUSSIAN.vae(), evidence, seed=0).draws
    vae, found = GAUSSIAN.vae(), {}

    def work(index: int) -> None:
        with torch.inference_mode() if index % 2 else torch.enable_grad():
            found[index] = cc.condition(vae, evidence, seed=0).draws

    together(work, 4)
    for draws in found.values():
        assert_same(draws, bare)


def test_models_are_made_in_several_threads_while_others_run_modules():
    call, layer, z = nn.Module.__call__, nn.Linear(2, 3), torch.zeros(1, 2)
    heads = []

    def work(index: int) -> None:
        for _ in range(10 if index else 200):
            heads.append(GAUSSIAN.vae().head if index else layer(z))

    together(work, 3)
    assert None not in heads
    assert nn.Module.__call__ is call


def test_derivatives_are_right_while_other_threads_take_derivatives():
    """torch counts levels of dual numbers for all threads at once."""
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 5)).requires_grad_(False)
    z = torch.linspace(-1, 1, 24).reshape(4, 2, 3)
    _, alone = with_jacobian(decoder, z)
    found = []
    together(lambda index: found.extend(with_jacobian(decoder, z)[1] for _ in range(30)), 4)
    assert all(torch.equal(jacobian, alone) for jacobian in found)
