"""VAE.save and load_vae: the same model comes back, and with it the same answers."""

import json
import sys
from itertools import pairwise

import pytest
import torch
from problems import seeded
from tampering import reseal
from torch import Tensor, nn
from user_networks import Normed, Outer, Pair, Residual

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian, Mixed


def filled(network: nn.Module) -> nn.Module:
    """A network with weights that do not depend on the global generator."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))
    return network


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "layers": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5)),
    "one layer": lambda: cc.VAE(nn.Linear(2, 6), 2, Gaussian(0.5)),
    "nested": lambda: cc.VAE(nn.Sequential(mlp(2, 8), nn.Sequential(mlp(8, 6))), 2, Gaussian(0.5)),
    "double": lambda: cc.VAE(mlp(2, 8, 6).double(), 2, Gaussian(0.5)),
    "scales": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(torch.linspace(0.2, 0.9, 6))),
    "zeros and ones": lambda: cc.VAE(mlp(2, 8, 6), 2, Bernoulli()),
    "columns": lambda: cc.VAE(mlp(2, 8, 6), 2, Mixed([(Gaussian(0.3), 4), (Bernoulli(), 2)])),
    "encoder": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5), mlp(6, 8, 4)),
    "encoder of one's own": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5), Pair()),
    "pictures": lambda: cc.VAE(
        nn.Sequential(
            *(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 4, 4, 2, 1)),
            *(nn.GroupNorm(2, 4), nn.PReLU(4), nn.Upsample(scale_factor=2), nn.Dropout(0.2)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3, groups=2), nn.PixelShuffle(2)),
        ),
        2,
        Gaussian(0.5),
        nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 4)),
    ),
    "class of one's own": lambda: cc.VAE(Residual(7), 2, Gaussian(0.5)),
    "both of one's own": lambda: cc.VAE(Residual(7).double(), 2, Gaussian(0.5), Pair().double()),
    "class in a class": lambda: cc.VAE(Outer.Inner(2, 6), 2, Gaussian(0.5)),
}
ARGUMENTS = {
    "encoder of one's own": {"encoder_arguments": {}},
    "class of one's own": {"decoder_arguments": {"hidden": 7}},
    "both of one's own": {
        "decoder_arguments": {"hidden": 7, "sizes": (2, 6)},
        "encoder_arguments": {},
    },
    "class in a class": {"decoder_arguments": {"in_features": 2, "out_features": 6}},
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def saved(tmp_path):
    """A function from a model's name to the model and the folder it was saved in."""

    def save(name):
        vae = MODELS[name]()
        filled(vae.decoder)
        vae = cc.VAE(vae.decoder, vae.latent_dim, vae.likelihood, vae.encoder)
        vae.save(tmp_path / "model", **ARGUMENTS.get(name, {}))
        return vae, tmp_path / "model"

    return save


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
    z = torch.randn(3, vae.latent_dim, generator=seeded(0))
    assert torch.equal(again.decode(z), vae.decode(z))
    data = vae.sample_prior(2, seed=0)
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


# ---- classes of one's own ------------------------------------------------------------------------


def test_a_class_is_written_by_its_name_with_its_arguments(saved):
    _, folder = saved("both of one's own")
    description = json.loads((folder / "description.json").read_text())
    assert description["architecture"] == {
        "class": "user_networks:Residual",
        "arguments": {"hidden": 7, "sizes": [2, 6]},
    }
    assert description["encoder"] == {"class": "user_networks:Pair", "arguments": {}}


CODE = """
from pathlib import Path
from torch import nn
Path(__file__).with_suffix(".ran").write_text("")
class Decoder(nn.Linear):
    def __init__(self):
        super().__init__(2, 6)
"""


@pytest.fixture
def coded(saved, tmp_path, monkeypatch):
    """A folder whose decoder is a class in a module that leaves a trace where it is imported."""
    _, folder = saved("one layer")
    (tmp_path / "leaves_a_trace.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    reference = {"class": "leaves_a_trace:Decoder", "arguments": {}}

    def name_the_class(tensors, description):
        description["architecture"] = reference
        for name in ("weight", "bias"):
            tensors[f"decoder.{name}"] = tensors.pop(f"decoder.0.{name}")

    reseal(folder, name_the_class)
    yield folder
    sys.modules.pop("leaves_a_trace", None)


def test_no_code_is_imported_unless_that_is_allowed(coded, tmp_path):
    said = r"allow_code=True, as the network is of the class leaves_a_trace:Decoder.*decoder=\.\.\."
    with pytest.raises(ValueError, match=said):
        cc.load_vae(coded)
    assert "leaves_a_trace" not in sys.modules
    assert not (tmp_path / "leaves_a_trace.ran").exists()
    assert type(cc.load_vae(coded, allow_code=True).decoder).__name__ == "Decoder"
    assert (tmp_path / "leaves_a_trace.ran").exists()


def test_a_decoder_that_is_passed_gets_the_weights_and_no_code_is_imported(coded, tmp_path):
    given = nn.Linear(2, 6)
    before = given.weight.clone()
    vae = cc.load_vae(coded, decoder=given)
    assert not (tmp_path / "leaves_a_trace.ran").exists()
    assert not torch.equal(vae.decoder.weight, before)
    assert torch.equal(given.weight, before)  # a copy takes them
    assert torch.equal(vae.decoder.weight, cc.load_vae(coded, allow_code=True).decoder.weight)


def test_networks_that_are_passed_get_the_saved_dtype(saved):
    vae, folder = saved("both of one's own")
    again = cc.load_vae(folder, decoder=Residual(7), encoder=Pair())
    z = torch.ones(1, 2).double()
    assert torch.equal(again.decode(z), vae.decode(z))
    assert again.encoder.mean.weight.dtype == torch.double


def test_an_encoder_of_a_users_class_needs_its_own_permission(saved):
    _, folder = saved("encoder of one's own")
    with pytest.raises(
        ValueError, match="allow_code=True, as the network is of the class user_networks"
    ):
        cc.load_vae(folder)
    assert cc.load_vae(folder, encoder=Pair()).encoder is not None


def test_an_encoder_is_refused_if_none_was_saved(saved):
    _, folder = saved("layers")
    with pytest.raises(ValueError, match="expected no encoder, as none was saved, got Pair"):
        cc.load_vae(folder, encoder=Pair())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: Residual(8), r"\(8, 2\) for weight 'first\.weight', got \(7, 2\)"),
        (lambda: nn.Linear(2, 6), r"\(6, 2\) for weight 'weight', got nothing"),
        (lambda: Shifted(7), "a decoder that outputs what it did when it was saved"),
    ],
    ids=["sizes", "layers", "outputs"],
)
def test_a_decoder_other_than_the_saved_one_is_refused(saved, other, said):
    _, folder = saved("class of one's own")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.load_vae(folder, decoder=other())


class Shifted(Residual):
    """Another decoder with the same weights."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + 1


def script_class() -> nn.Module:
    module = type("Decoder", (nn.Linear,), {"__module__": "__main__"})
    return module(2, 6)


def local_class() -> nn.Module:
    class Decoder(nn.Linear):
        pass

    return Decoder(2, 6)


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


LINEAR = {"in_features": 2, "out_features": 6}
UNSAVED = {
    "of a script": (script_class, LINEAR, "class that can be imported, got __main__:Decoder; move"),
    "of a function": (local_class, LINEAR, "class that can be imported, got .*<locals>"),
    "too few arguments": (lambda: Residual(7), {}, "cannot make .*:Residual with {}: .*hidden"),
    "other arguments": (lambda: Residual(7), {"hidden": 8}, r"expected \(8, 2\) for weight 'first"),
    "no such argument": (
        lambda: Residual(7),
        {"depth": 8},
        "cannot make .*Residual with {'depth': 8}",
    ),
    "a stack": (lambda: mlp(2, 6), {}, "expected nothing for|weight '0.weight', got"),
    "extra state": (lambda: Stateful(2, 6), LINEAR, "got dict for '_extra_state'"),
}


@pytest.mark.parametrize(("make", "arguments", "said"), UNSAVED.values(), ids=UNSAVED)
def test_a_model_that_could_not_be_loaded_is_not_saved(make, arguments, said, tmp_path):
    vae = cc.VAE(make(), 2, Gaussian())
    with pytest.raises(ValueError, match=said):
        vae.save(tmp_path / "model", decoder_arguments=arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_changed_after_construction_is_not_saved(tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian())
    vae.decoder.forward = lambda z: torch.ones(len(z), 6)
    with pytest.raises(cc.ModelFormatError, match="a decoder that outputs what it did"):
        vae.save(tmp_path / "model", decoder_arguments={"hidden": 7})


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": torch.ones(2)}, {"a": float("nan")}, 3])
def test_arguments_that_json_cannot_hold_are_refused(wrong, tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian())
    with pytest.raises(TypeError, match=r"arguments of .*:Residual as a dict of numbers, strings"):
        vae.save(tmp_path / "model", decoder_arguments=wrong)


def test_arguments_for_a_missing_encoder_are_refused(tmp_path):
    vae = cc.VAE(nn.Linear(2, 6), 2, Gaussian())
    with pytest.raises(ValueError, match="no encoder_arguments for a model without encoder"):
        vae.save(tmp_path / "model", encoder_arguments={})


def test_a_class_in_place_of_a_network_is_refused(tmp_path):
    cc.VAE(nn.Linear(2, 5), 2, cc.likelihoods.Gaussian(0.1)).save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"expected decoder to be a torch\.nn\.Module, got <class"):
        cc.load_vae(tmp_path / "model", decoder=nn.Linear)


# ---- weights alone -------------------------------------------------------------------------------


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


def test_a_class_with_norms_is_imported_by_its_name_too(tmp_path):
    vae = cc.VAE(Normed(6), 2, Gaussian(0.5))
    vae.save(tmp_path / "model", decoder_arguments={"num_outputs": 6})
    z = torch.randn(5, 2, generator=seeded(0))
    for again in (
        cc.load_vae(tmp_path / "model", allow_code=True),
        cc.load_vae(tmp_path / "model", decoder=Normed(6)),
    ):
        assert torch.equal(again.decode(z), vae.decode(z))


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
