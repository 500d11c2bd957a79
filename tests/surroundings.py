"""Torch settings to surround a call with, small models to call, and what compares the results."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc

Surrounding = Callable[[], AbstractContextManager[Any]]


# ---- surroundings ----------------------------------------------------------------------------


def switched(switch: Callable[[Any], None], there: Any, back: Any) -> Surrounding:
    """What a setter of torch's sets for the whole process, as a context."""

    @contextmanager
    def context() -> Iterator[None]:
        switch(there)
        try:
            yield
        finally:
            switch(back)

    return context


def autocast(dtype: torch.dtype) -> Surrounding:
    return lambda: torch.autocast("cpu", dtype)


default_float64 = switched(torch.set_default_dtype, torch.float64, torch.float32)
default_bfloat16 = switched(torch.set_default_dtype, torch.bfloat16, torch.float32)
deterministic = switched(torch.use_deterministic_algorithms, True, False)


@contextmanager
def everything() -> Iterator[None]:
    """All of it at once."""
    contexts = [torch.inference_mode, autocast(torch.bfloat16), default_bfloat16, deterministic]
    with ExitStack() as stack:
        for context in [*contexts, lambda: torch.device("meta")]:
            stack.enter_context(context())
        yield


SURROUNDINGS: dict[str, Surrounding] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "autocast to bfloat16": autocast(torch.bfloat16),
    "autocast to float16": autocast(torch.float16),
    "float64 by default": default_float64,
    "bfloat16 by default": default_bfloat16,
    "DoubleTensor by default": switched(
        torch.set_default_tensor_type, torch.DoubleTensor, torch.FloatTensor
    ),
    "meta": lambda: torch.device("meta"),
    "meta by default": switched(torch.set_default_device, "meta", None),
    "deterministic algorithms": deterministic,
    "anomaly mode": torch.autograd.detect_anomaly,
    "another global seed": switched(torch.manual_seed, 7, 0),
    "everything": everything,
}

quiet = pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:torch.set_default_tensor")
every_surrounding = pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS)
within = pytest.mark.parametrize(
    "surrounding", [everything, torch.inference_mode], ids=lambda s: s.__name__
)


def assert_same(here: Any, bare: Any, name: str = "result") -> None:
    """The same bits, in tensors that can be used anywhere."""
    assert type(here) is type(bare), name
    if isinstance(bare, Tensor):
        assert not here.is_inference(), name
        assert not here.requires_grad, name
        torch.testing.assert_close(
            here, bare, rtol=0, atol=0, equal_nan=True, msg=lambda said: f"{name}: {said}"
        )
    elif isinstance(bare, dict):
        assert here.keys() == bare.keys(), name
        for key in bare:
            assert_same(here[key], bare[key], f"{name}, {key}")
    elif isinstance(bare, (list, tuple)):
        assert len(here) == len(bare), name
        for index, (one, other) in enumerate(zip(here, bare, strict=True)):
            assert_same(one, other, f"{name}, {index}")
    elif isinstance(bare, float):
        assert here == bare or (here != here and bare != bare), name
    else:
        assert here == bare, name


# ---- models ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What `cc.VAE` takes, and complete data of it."""

    decoder: nn.Module
    latent_dim: int
    likelihood: cc.likelihoods.Likelihood
    encoder: nn.Module | None
    data: Tensor

    def vae(self) -> cc.VAE:
        return cc.VAE(self.decoder, self.latent_dim, self.likelihood, self.encoder)

    def evidence(self) -> cc.Evidence:
        return cc.Evidence(self.data[:2], cc.random_mask((6,), 0.5, seed=0))


def networks(latent_dim: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A decoder to six numbers and an encoder of them, with weights of their own."""
    sizes = (latent_dim, 6), (6, 2 * latent_dim)
    pair = [nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, m)) for n, m in sizes]
    generator = seeded(3)
    for network in pair:
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=generator)
    return pair[0].to(dtype), pair[1].to(dtype)


def case(latent_dim: int, likelihood: cc.likelihoods.Likelihood, dtype: torch.dtype) -> Case:
    decoder, encoder = networks(latent_dim, dtype)
    data = cc.VAE(decoder, latent_dim, likelihood).sample_prior(6, seed=1)
    return Case(decoder, latent_dim, likelihood, encoder, data)


GAUSSIAN = case(2, cc.likelihoods.Gaussian(0.3), torch.float32)
BINARY = case(1, cc.likelihoods.Bernoulli(), torch.float64)
COUNTS = case(3, cc.likelihoods.NegativeBinomial(2.5), torch.float64)
SCALES, FREEDOMS = torch.linspace(0.2, 0.5, 6), torch.linspace(3, 5, 6)


# ---- comparisons -------------------------------------------------------------------------------

BARE: dict[str, Any] = {}  # results that several tests compare with, by name


def compare(work: Callable[[], Any], surrounding: Surrounding, name: str) -> None:
    """Do it bare, once a name, and within; what is around is afterwards as it was."""
    if name not in BARE:
        BARE[name] = work()
    with surrounding():
        before = around()
        here = work()
        assert around() == before
    assert_same(here, BARE[name])


def around() -> list[Any]:
    """What a caller could notice."""
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        *(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()),
        *(torch.get_float32_matmul_precision(), torch.get_rng_state().numpy().tobytes()),
    ]
