"""Saved weights without a class to import: they are loaded into a network that is passed."""

import pytest
import torch
from problems import seeded
from saved_models import filled, mlp
from tampering import reseal
from torch import Tensor, nn
from user_networks import Pair, Residual, Shifted

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


def script_residual() -> nn.Module:
    return type("Residual", (Residual,), {"__module__": "__main__"})(7)


def local_residual() -> nn.Module:
    class Decoder(Residual):
        pass

    return Decoder(7)


def normed_residual() -> nn.Module:
    decoder = Residual(7)
    nn.utils.parametrizations.weight_norm(decoder.first)
    nn.utils.spectral_norm(decoder.skip)
    nn.utils.prune.l1_unstructured(decoder.last, "weight", 0.3)
    return decoder


class Tied(nn.Module):
    """Two layers with one weight, and a table that lies in memory as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.randn(6, 2).T)
        self.register_buffer("halves", torch.randn(6).half())
        self.register_buffer("count", torch.tensor(3))

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z).tanh()) @ self.table + self.halves.float()


def channels_last() -> nn.Module:
    network = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 3, 2), Last())
    return network.to(memory_format=torch.channels_last)


class Last(nn.Identity):
    """A class of one's own."""


OWN = {
    "of a script": script_residual,
    "of a function": local_residual,
    "of a module": lambda: Residual(7),
    "in double": lambda: Residual(7).double(),
    "within a stack": lambda: nn.Sequential(nn.Linear(2, 2), Residual(7)),
    "with norms": normed_residual,
    "with tied weights": Tied,
    "channels last": channels_last,
    "scripted": lambda: torch.jit.script(Residual(7)),
}
every_own = pytest.mark.parametrize("make", OWN.values(), ids=OWN)
said_so = pytest.warns(UserWarning, match=r"only the weights of the decoder.*load_vae\(")
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@scripts
@every_own
def test_a_decoder_of_a_users_class_is_saved_by_its_weights_and_loaded_into_another(make, tmp_path):
    decoder = make()
    vae = cc.VAE(filled_with(decoder, 1), 2, Gaussian(0.5))
    with said_so:
        vae.save(tmp_path / "model")
    for other in (decoder, filled_with(make(), 2)):
        again = cc.load_vae(tmp_path / "model", decoder=other)
        z = torch.randn(5, 2, generator=seeded(0)).to(vae.dtype)
        # the strides of a weight are not saved, and other kernels round otherwise
        torch.testing.assert_close(again.decode(z), vae.decode(z), rtol=1e-5, atol=1e-6)


def filled_with(network: nn.Module, seed: int) -> nn.Module:
    """A network that is trained, as it were."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    if isinstance(network, Tied):
        network.table = torch.randn(6, 2, generator=seeded(seed)).T
        network.halves = torch.randn(6, generator=seeded(seed)).half()
    return network


@scripts
@every_own
def test_without_the_decoder_loading_says_what_to_pass_and_runs_nothing(make, tmp_path):
    with said_so:
        cc.VAE(make(), 2, Gaussian(0.5)).save(tmp_path / "model")
    for allow_code in (False, True):
        with pytest.raises(
            ValueError, match=r"expected decoder=\.\.\., as .* load_vae\(folder, decoder=\.\.\.\)"
        ):
            cc.load_vae(tmp_path / "model", allow_code=allow_code)


def test_weights_of_another_decoder_are_refused(tmp_path):
    with said_so:
        cc.VAE(filled(Residual(7)), 2, Gaussian(0.5)).save(tmp_path / "model")
    for other, said in (
        (Residual(8), r"expected \(8, 2\) for weight 'first.weight', got \(7, 2\)"),
        (nn.Linear(2, 6), "expected .* for weight 'weight', got nothing"),
        (Shifted(7), "expected a decoder that outputs what it did"),
    ):
        with pytest.raises(cc.ModelFormatError, match=said):
            cc.load_vae(tmp_path / "model", decoder=other)


class OtherPair(Pair):
    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = super().forward(data)
        return mean.tanh(), log_variance


def test_an_encoder_of_a_users_class_is_saved_and_loaded_likewise(tmp_path):
    vae = cc.VAE(filled(mlp(2, 6)), 2, Gaussian(0.5), filled(Pair()))
    with pytest.warns(
        UserWarning, match=r"of the encoder, Pair, .*load_vae\(folder, encoder=Pair\("
    ):
        vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model", encoder=Pair())
    data = vae.sample_prior(5, seed=1)
    assert torch.equal(again.encode(data)[0], vae.encode(data)[0])
    with pytest.raises(ValueError, match=r"expected encoder=\.\.\."):
        cc.load_vae(tmp_path / "model")
    with pytest.raises(cc.ModelFormatError, match="an encoder that outputs what it did"):
        cc.load_vae(tmp_path / "model", encoder=OtherPair())


def test_one_warning_names_both_networks_of_users_classes(tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian(0.5), Pair())
    said = (
        r"the decoder, Residual and the encoder, Pair, .*decoder=Residual\(\.\.\.\), encoder=Pair"
    )
    with pytest.warns(UserWarning, match=said):
        vae.save(tmp_path / "model")
    cc.load_vae(tmp_path / "model", decoder=Residual(7), encoder=Pair())


def test_lazy_layers_get_the_saved_shapes(tmp_path):
    decoder = Lazy()
    decoder(torch.zeros(1, 2))
    vae = cc.VAE(decoder, 2, Gaussian(0.5))
    with said_so:
        vae.save(tmp_path / "model")
    z = torch.randn(5, 2, generator=seeded(0))
    assert torch.equal(cc.load_vae(tmp_path / "model", decoder=Lazy()).decode(z), vae.decode(z))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(6))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def test_a_sparse_weight_is_not_saved(tmp_path):
    class Sparse(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 6)
            self.register_buffer("table", torch.eye(6).to_sparse())

        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) + torch.sparse.mm(self.table, torch.ones(6, 1)).mT

    vae = cc.VAE(Sparse(), 2, Gaussian(0.5))
    with pytest.raises(ValueError, match=r"dense tensors .* of decoder, got 'table' sparse"):
        vae.save(tmp_path / "model")


def test_a_description_with_a_class_without_arguments_is_shown_briefly(saved):
    _, folder = saved("one layer")

    def blank(_, description):
        description["architecture"] = {"class": "x" * 10_000, "arguments": None}

    reseal(folder, blank)
    with pytest.raises(ValueError, match=r"expected decoder=\.\.\.") as caught:
        cc.load_vae(folder, allow_code=True)
    assert len(str(caught.value)) < 500
