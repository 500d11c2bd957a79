"""Users' networks are tried before use, and refused if p(t|z) would not be a distribution.

What decoders in particular are refused for is in test_vae.py.
"""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Gaussian, Mixed


class StaysInTraining(nn.BatchNorm1d):
    """Batch norm that never leaves training mode, as some papers' code has it."""

    def train(self, mode: bool = True):
        return super().train(True)


class Counts(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 5)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(z)


class PowerIteration(nn.Linear):
    """Spectral norm that goes on iterating in eval mode."""

    def __init__(self) -> None:
        super().__init__(2, 5)
        self.register_buffer("left", torch.ones(5))

    def forward(self, z: Tensor) -> Tensor:
        self.left = nn.functional.normalize(self.weight @ (self.weight.mT @ self.left), dim=0)
        return super().forward(z) / (self.left @ self.weight).norm()


class Learns(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        self.weight.data.mul_(1 - 1e-6)  # behind autograd's back
        return super().forward(z)


TRAINING = {
    "0.running_mean": lambda: nn.Sequential(StaysInTraining(2), nn.Linear(2, 5)),
    "calls": Counts,
    "left": PowerIteration,
    "weight": lambda: Learns(2, 5),
}


@pytest.mark.parametrize(("changed", "make"), TRAINING.items(), ids=TRAINING)
def test_a_decoder_that_trains_itself_is_refused(changed, make):
    with pytest.raises(ValueError, match=f"decoder to keep its weights unchanged.*'{changed}'"):
        cc.VAE(make(), 2, Gaussian())


@pytest.mark.parametrize("make", TRAINING.values(), ids=TRAINING)
def test_a_refused_module_is_left_unchanged(make):
    decoder = make()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(ValueError, match="keep its weights"):
        cc.VAE(decoder, 2, Gaussian())
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_spectral_norm_that_stops_in_eval_mode_is_accepted():
    for norm in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        decoder = nn.Sequential(norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 5))
        with torch.no_grad():
            decoder(torch.zeros(1, 2))
        cc.VAE(decoder, 2, Gaussian())


def test_values_that_are_computed_once_and_kept_are_accepted():
    class Cached(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            if not hasattr(self, "shift"):
                self.register_buffer("shift", torch.ones(5))
            return super().forward(z) + self.shift

    cc.VAE(Cached(2, 5), 2, Gaussian())


def test_nan_that_stays_nan_does_not_count_as_a_change():
    decoder = nn.Linear(2, 5)
    decoder.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
    cc.VAE(decoder, 2, Gaussian())


class Function(nn.Module):
    """A linear layer after, or before, a function."""

    def __init__(self, before=lambda z: z, after=lambda output: output) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.linear = nn.Linear(2, 5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 10).reshape(5, 2))
            self.linear.bias.copy_(torch.linspace(0.5, -0.5, 5))

    def forward(self, z: Tensor) -> Tensor:
        return self.after(self.linear(self.before(z)))


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


# ---- noise -----------------------------------------------------------------------------------


def dropout(p: float):
    return lambda output: nn.functional.dropout(output, p)


NOISE = {
    "dropout of next to nothing": dropout(1e-6),
    "torch": lambda output: output + 1e-9 * torch.randn_like(output),
    "torch in double": lambda output: output + 0 * torch.rand(()),
    "numpy": lambda output: output + 1e-9 * float(np.random.standard_normal()),  # noqa: NPY002
    "python": lambda output: output + 1e-9 * random.gauss(0, 1),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_a_decoder_that_draws_random_numbers_is_refused_however_small_they_are(noise):
    decoder = Function(after=noise)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(ValueError, match=r"deterministic decoder, got one that draws random num"):
        cc.VAE(decoder, 2, Gaussian())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


class NoiseOfItsOwn(nn.Linear):
    """Noise from a generator that is an attribute."""

    def __init__(self, generator) -> None:
        super().__init__(2, 5)
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            noise = torch.rand((), generator=self.generator)
        elif isinstance(self.generator, random.Random):
            noise = self.generator.random()
        else:
            noise = float(self.generator.uniform())
        return super().forward(z) + 1e-12 * noise


@pytest.mark.parametrize(
    "make",
    [torch.Generator, np.random.default_rng, np.random.RandomState, random.Random],
    ids=["torch", "numpy", "older numpy", "python"],
)
def test_noise_from_the_networks_own_generator_is_noticed(make):
    with pytest.raises(ValueError, match="deterministic decoder"):
        cc.VAE(NoiseOfItsOwn(make()), 2, Gaussian())


def test_noise_from_a_generator_elsewhere_is_noticed_if_it_shows():
    generator = np.random.default_rng(0)
    noisy = Function(after=lambda output: output + 1e-5 * float(generator.standard_normal()))
    with pytest.raises(ValueError, match="deterministic decoder, got different outputs"):
        cc.VAE(noisy, 2, Gaussian())


def test_noise_that_is_drawn_once_and_kept_is_accepted():
    class Kept(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            if not hasattr(self, "noise"):
                self.noise = torch.randn(5)
            return super().forward(z) + self.noise

    cc.VAE(Kept(2, 5), 2, Gaussian())


# ---- rows that depend on each other ----------------------------------------------------------

MIXING = {
    "a share of the mean": lambda output: output + 1e-4 * output.mean(0),
    "statistics of the batch, faintly": lambda output: output - 1e-4 * output.std(0),
    "the largest of the batch": lambda output: output / output.abs().max().clamp_min(8),
    "the first row": lambda output: output + 1e-4 * output[:1],
    "the last row": lambda output: output + 1e-4 * output[-1:],
    "the rows before": lambda output: output + 1e-4 * output.cumsum(0),
    "the lowest of the batch": lambda output: output + 1e-4 * output.amin(0),
    "the size of the batch": lambda output: output * (1 + 1e-4 / len(output)),
    "one row alone": lambda output: output * (1 + 1e-4 * (len(output) == 1)),
    "a batch norm, faintly": lambda output: (
        output
        + 1e-4
        * nn.functional.batch_norm(torch.cat([output, output]), None, None, training=True)[
            : len(output)
        ]
    ),
    "beside a column a million times as large": lambda output: torch.cat(
        [1e6 * output[:, :1], output[:, 1:] + 1e-3 * output[:1, 1:]], 1
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mixing", MIXING.values(), ids=MIXING)
def test_a_decoder_that_mixes_rows_a_little_is_refused(mixing, dtype):
    with pytest.raises(ValueError, match=r"does not depend on the other rows|one row alone"):
        cc.VAE(Function(after=mixing).to(dtype), 2, Gaussian())


def test_rounding_does_not_count_as_mixing():
    """Small differences of large numbers are rounded otherwise in a batch of another size."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 300), Sine(), nn.Linear(300, 300), Scaled(3e3))
    cc.VAE(nn.Sequential(decoder, nn.Linear(300, 5)), 2, Gaussian())


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return (self.factor * z + 1e4).sin()


def test_sines_of_large_numbers_do_not_count_as_mixing():
    """Vectorised kernels may round one number by how large its neighbours are."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 37), Sine(), nn.Linear(37, 37), Sine(), nn.Linear(37, 5))
    cc.VAE(decoder, 2, Gaussian())
    cc.VAE(decoder.double(), 2, Gaussian())


class Sine(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (30 * z).sin()


def test_the_message_on_a_decoder_that_squeezes_says_so():
    squeezing = Function(after=lambda output: output[:, None].squeeze())
    with pytest.raises(
        ValueError,
        match=r"shape \(1, 5\) for one row, as \(5, 5\) for 5, got \(5,\); a squeeze\(\)",
    ) as caught:
        cc.VAE(squeezing, 2, Gaussian())
    assert "batch norm" not in str(caught.value)


SQUEEZED: dict[str, tuple] = {
    "one number": (Gaussian(), lambda output: output[:, :1].squeeze(), r"\(5, 1\)"),
    "mean and scale": (
        Gaussian(None),
        lambda output: output[:, None, :2].exp().squeeze(),
        r"\(5, 1, 2\)",
    ),
    "classes": (Categorical(5), lambda output: output[:, None].squeeze(), r"\(5, 1, 5\)"),
    "a table": (Mixed([Gaussian()]), lambda output: output[:, :1].squeeze(), r"\(5, 1\)"),
}


@pytest.mark.parametrize("case", SQUEEZED)
def test_the_message_on_a_decoder_of_one_element_that_squeezes_says_so(case):
    likelihood, after, wanted = SQUEEZED[case]
    words = rf"dimension of the elements is missing, as after squeeze\(\).*output shape {wanted}"
    with pytest.raises(ValueError, match=words):
        cc.VAE(Function(after=after), 2, likelihood)


def test_a_decoder_for_one_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"any number of rows, got one that takes 5 but fails on"):
        cc.VAE(Function(after=lambda output: output.view(5, 5)), 2, Gaussian())


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_a_network_quantised_by_the_range_of_a_batch_is_refused():
    quantised = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)), {nn.Linear}
    )
    with pytest.raises(ValueError, match="quantised by the range of the batch"):
        cc.VAE(quantised, 2, Gaussian())


# ---- what fails ------------------------------------------------------------------------------


class NeedsGPU(nn.Linear):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__(2, 5)
        self.error = error

    def forward(self, z: Tensor) -> Tensor:
        if self.error is AssertionError:
            return super().forward(z.cuda())
        raise self.error("Found no NVIDIA driver on your system: CUDA is not available")


@pytest.mark.parametrize("error", [AssertionError, RuntimeError])
def test_a_decoder_that_needs_a_missing_gpu_is_refused(error, monkeypatch):
    if error is AssertionError and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=r"CUDA.*remove \.cuda\(\) from its code"):
        cc.VAE(NeedsGPU(error), 2, Gaussian())


def test_whatever_a_decoder_raises_is_reported_in_one_line():
    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise KeyError("skip")

    with pytest.raises(
        ValueError, match=r"it failed on \(5, 2\): 'skip'; check latent_dim, or wrap"
    ):
        cc.VAE(Broken(), 2, Gaussian())
