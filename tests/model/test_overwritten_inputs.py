"""Networks that overwrite their input: their answers are those of networks that do not."""

import pytest
import torch
from torch import Tensor, nn
from user_networks import Function

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


def clamped_where_far(z: Tensor) -> Tensor:
    if (z.abs() > 3).any():  # as no probe is
        z.clamp_(-3, 3)
    return z


def clamped_in_a_view(z: Tensor) -> Tensor:
    z.view(-1).clamp_(-1, 1)
    return z


def first_set(z: Tensor) -> Tensor:
    z[:, 0] = 0.5 * z[:, 1].tanh()
    return z


def with_first(z: Tensor) -> Tensor:
    return torch.stack([0.5 * z[:, 1].tanh(), z[:, 1]], 1)


WRITES = {
    "clamp_": (lambda z: z.clamp_(-1, 1), lambda z: z.clamp(-1, 1)),
    "clamp_ where far": (clamped_where_far, lambda z: z.clamp(-3, 3)),
    "clamp_ in a view": (clamped_in_a_view, lambda z: z.clamp(-1, 1)),
    "mul_": (lambda z: z.mul_(0.5), lambda z: 0.5 * z),
    "assignment": (first_set, with_first),
    "relu": (nn.ReLU(inplace=True), torch.relu),
    "F.relu": (lambda z: nn.functional.relu(z, inplace=True), torch.relu),
    "hardtanh_": (nn.functional.hardtanh_, nn.functional.hardtanh),
    "dropout": (nn.Dropout(0.5, inplace=True), lambda z: z),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("writes", "leaves"), WRITES.values(), ids=WRITES)
def test_a_decoder_may_overwrite_z(writes, leaves, dtype):
    """Answers, the bank and the caller's own points are those of the decoder that does not."""
    vae, twin = (cc.VAE(Function(f).to(dtype), 2, Gaussian(0.5)) for f in (writes, leaves))
    evidence = cc.Evidence(torch.tensor([2.0, 1.0, 0, 0, 0], dtype=dtype), torch.arange(5) < 2)
    for method in (cc.methods.Grid(), cc.methods.Laplace(), cc.methods.TemperedSMC()):
        answer, wanted = (cc.condition(v, evidence, method, seed=0) for v in (vae, twin))
        # a decoder whose code cannot be traced is run as a whole: other kernels, other rounding
        torch.testing.assert_close(answer.log_evidence, wanted.log_evidence, rtol=0, atol=2e-3)
    assert torch.equal(cc.Bank.of(vae).points, cc.Bank.of(twin).points)
    z = 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    before = z.clone()
    torch.testing.assert_close(vae.decode(z), twin.decode(z))
    target = cc.VAETarget(vae, evidence)
    target.log_likelihood(z)
    assert torch.equal(z, before)
    z.requires_grad_()
    slopes = [torch.autograd.grad(v.decode(z).sum(), z)[0] for v in (vae, twin)]
    torch.testing.assert_close(*slopes)
    curvatures = [cc.VAETarget(v, evidence).curvature(before) for v in (vae, twin)]
    torch.testing.assert_close(*curvatures, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("writes", [pair[0] for pair in WRITES.values()], ids=WRITES)
def test_a_decoder_that_overwrites_z_can_be_checked(writes):
    report = cc.VAE(Function(writes), 2, Gaussian(0.5)).check()
    assert report["gradients"].status == report["repeatability"].status == "ok"


def test_a_decoder_that_overwrites_what_its_derivative_needs_is_refused():
    def absolute(z: Tensor) -> Tensor:
        z[:, 0] = z[:, 0].abs()
        return z

    def sine_first(z: Tensor) -> Tensor:
        sine = z.sin()
        if (z.abs() > 5).any():
            z.clamp_(-5, 5)
        return sine + z

    for function in (absolute, sine_first):
        with pytest.raises(ValueError, match=r"can differentiate, got one that overwrites.*clamp"):
            cc.VAE(Function(function), 2, Gaussian())


def test_an_encoder_may_overwrite_data():
    encoder = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4))
    vae = cc.VAE(nn.Linear(2, 5), 2, Gaussian(), encoder)
    data = vae.sample_prior(3, seed=0)
    before = data.clone()
    mean, _ = vae.encode(data)
    assert torch.equal(data, before)
    torch.testing.assert_close(mean, encoder(before.clone())[:, :2])
