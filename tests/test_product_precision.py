"""Matrix products are exact whatever precision is set, and the setting is restored."""

import threading

import pytest
import torch
from cheap_methods import LISTED
from surroundings import GAUSSIAN, switched
from torch import nn

import crosscoding as cc
from crosscoding.isolation import isolated

pytestmark = pytest.mark.usefixtures("short_start")


def set_in_backends(value: str) -> None:
    """The precision of products where torch has a setting for each backend, since 2.9."""
    torch.backends.mkldnn.matmul.fp32_precision = value


COARSE = {
    "medium": switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "high": switched(torch.set_float32_matmul_precision, "high", "highest"),
    "backend": switched(set_in_backends, "bf16", "ieee"),
}
every_coarseness = pytest.mark.parametrize(
    "coarse",
    [
        pytest.param(
            each,
            id=name,
            marks=pytest.mark.skipif(
                name == "backend" and not hasattr(torch.backends.mkldnn, "matmul"),
                reason="torch has no such setting before 2.9",
            ),
        )
        for name, each in COARSE.items()
    ],
)


def wide_vae() -> cc.VAE:
    """With products large enough for a processor to take digits from."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 128))
    return cc.VAE(decoder, 2, cc.likelihoods.Gaussian(0.1))


@every_coarseness
def test_products_are_exact_whatever_their_precision_is_set_to(coarse):
    def answers() -> list[torch.Tensor]:
        vae = wide_vae()
        data = vae.sample_prior(4, seed=0)
        evidence = cc.Evidence(data, torch.arange(128) < 64)
        posterior = cc.condition(vae, evidence, LISTED["laplace"], seed=0)
        explained = torch.tensor(vae.check(data)["explanation"].figures["log_prob"])
        return [data, posterior.draws, posterior.log_evidence, posterior.mean(), explained]

    exact = answers()
    with coarse():
        before = precision_of_products()
        found = answers()
        assert precision_of_products() == before
    for one, other in zip(found, exact, strict=True):
        assert torch.equal(one, other)


def precision_of_products() -> list[str]:
    """As a caller may have set it."""
    backends = (torch.backends.mkldnn, torch.backends.cuda)
    found = [
        each.matmul.fp32_precision for each in backends if hasattr(torch.backends.mkldnn, "matmul")
    ]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:  # backends differ
        return found


def test_the_precision_of_products_is_restored_when_the_last_thread_leaves():
    inside, leave = threading.Event(), threading.Event()

    @isolated
    def wait() -> None:
        inside.set()
        assert leave.wait(10)

    @isolated
    def precision() -> str:
        return torch.get_float32_matmul_precision()

    @isolated
    def end_other() -> str:
        leave.set()
        thread.join()
        return torch.get_float32_matmul_precision()

    with COARSE["medium"]():
        thread = threading.Thread(target=wait)
        thread.start()
        assert inside.wait(10)
        assert precision() == "highest"
        assert end_other() == "highest"  # as this one is still inside
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(ValueError, match="expected"):
            cc.condition(GAUSSIAN.vae(), GAUSSIAN.evidence(), max_bytes=0)
        assert torch.get_float32_matmul_precision() == "medium"
