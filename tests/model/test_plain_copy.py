"""Copies of networks: computed weights become plain, wrappers are removed, nothing is shared."""

import threading
import warnings

import pytest
import torch
from problems import seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.model.plain_copy import plain_copy


class Positive(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.square() + 0.1


def spectral_norm_in_training(layer: nn.Linear) -> nn.Linear:
    normed = nn.utils.spectral_norm(layer)
    normed(torch.ones(1, 2))  # which leaves a weight with a graph behind
    return normed


def old_weight_norm(layer: nn.Linear) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def pruned_twice(layer: nn.Linear) -> nn.Linear:
    return prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3)


def pruned_and_normed(layer: nn.Linear) -> nn.Linear:
    return prune.l1_unstructured(nn.utils.spectral_norm(layer), "bias", 0.4)


def positive(layer: nn.Linear) -> nn.Linear:
    parametrize.register_parametrization(layer, "weight", Positive())
    parametrize.register_parametrization(layer, "bias", Positive())
    return layer


COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "of one's own": positive,
    "old weight norm": old_weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "old spectral norm in training": spectral_norm_in_training,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": pruned_twice,
    "pruned and normed": pruned_and_normed,
}


def made(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(COMPUTED[name](nn.Linear(2, 8)), nn.Tanh(), nn.Linear(8, 5))


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_become_plain_ones(name):
    network = made(name)
    copied = plain_copy(network, "decoder")
    assert type(copied[0]) is nn.Linear
    assert dict(copied.named_parameters()).keys() == dict(made_plain().named_parameters()).keys()
    assert not copied[0]._forward_pre_hooks
    z = torch.randn(4, 2, generator=seeded(0))
    assert torch.equal(copied(z), network.eval()(z))


def made_plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))


@pytest.mark.parametrize("name", COMPUTED)
def test_the_module_that_was_passed_is_not_changed(name):
    network = made(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kind, hooks = type(network[0]), list(network[0]._forward_pre_hooks)
    plain_copy(network, "decoder")
    assert (type(network[0]), list(network[0]._forward_pre_hooks)) == (kind, hooks)
    assert network.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network(torch.ones(1, 2)).sum().backward()  # and it can be trained on


@pytest.mark.parametrize("name", COMPUTED)
def test_a_stack_with_computed_weights_is_saved_as_layers(name, tmp_path):
    network = made(name)
    cc.VAE(network, 2, Gaussian(0.5)).save(tmp_path / "model")
    z = torch.randn(4, 2, generator=seeded(0))
    assert torch.equal(cc.load_vae(tmp_path / "model").decode(z), network.eval()(z))


def test_a_recurrent_layer_with_weight_norm_is_copied():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrizations.weight_norm(nn.GRU(2, 5), "weight_hh_l0")

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(torch.stack([z, z]))[0][-1]

    decoder = Decoder()
    z = torch.randn(4, 2, generator=seeded(0))
    torch.testing.assert_close(cc.VAE(decoder, 2, Gaussian()).decode(z), decoder.eval()(z))


def test_a_shared_weight_is_pruned_in_one_layer_only():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    prune.l1_unstructured(first, "weight", 0.5)
    network = nn.Sequential(first, second)
    copied = plain_copy(network, "decoder")
    z = torch.randn(4, 2, generator=seeded(0))
    assert torch.equal(copied(z), network(z))


def test_a_weight_that_changes_at_every_call_stays_computed_and_is_refused():
    class DropsWeights(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return nn.functional.dropout(weight, 1e-3)

    layer = nn.Linear(2, 5)
    parametrize.register_parametrization(layer, "weight", DropsWeights())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="deterministic decoder"):
        cc.VAE(layer, 2, Gaussian())
    assert torch.equal(torch.get_rng_state(), before)


# ---- wrappers and scripts --------------------------------------------------------------------


def compiled_in_place() -> nn.Module:
    network = made_plain()
    network.compile(backend="eager")
    return network


WRAPPED = {
    "compiled": lambda: torch.compile(made_plain(), backend="eager"),
    "compiled in place": compiled_in_place,
    "parallel": lambda: nn.DataParallel(made_plain()),
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(made_plain()), backend="eager"),
    "a part compiled": lambda: nn.Sequential(
        nn.Linear(2, 2), torch.compile(made_plain(), backend="eager")
    ),
}


def test_a_parametrised_buffer_stays_a_buffer(tmp_path):
    class Shifted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.register_buffer("shift", torch.tensor([-1.0, 2.0, -3.0]))

        def forward(self, z):
            return super().forward(z) + self.shift

    decoder = Shifted()
    parametrize.register_parametrization(decoder, "shift", Positive())
    parametrize.register_parametrization(decoder, "weight", Positive())
    copied = plain_copy(decoder, "decoder")
    assert [name for name, _ in copied.named_buffers()] == ["shift"]
    assert {name for name, _ in copied.named_parameters()} == {"weight", "bias"}
    assert torch.equal(copied.shift, decoder.shift)
    vae = cc.VAE(decoder, 2, Gaussian(0.1))
    with pytest.warns(UserWarning, match="only the weights of the"):
        vae.save(tmp_path / "model")
    loaded = cc.load_vae(tmp_path / "model", decoder=Shifted())
    z = torch.randn(4, 2)
    assert torch.equal(loaded.decode(z), vae.decode(z))


@pytest.mark.filterwarnings("ignore:.*grad attribute.*")  # of torch's own compiler
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_removed(make, tmp_path):
    network = make()
    vae = cc.VAE(network, 2, Gaussian())
    kinds = {type(module) for module in vae.decoder.modules()}
    assert kinds == {nn.Sequential, nn.Linear, nn.Tanh}
    z = torch.randn(4, 2, generator=seeded(0))
    torch.testing.assert_close(vae.decode(z), network.eval()(z))
    vae.save(tmp_path / "model")  # as layers
    assert torch.equal(cc.load_vae(tmp_path / "model").decode(z), vae.decode(z))


SCRIPTED = {
    "scripted": lambda network: torch.jit.script(network),
    "traced": lambda network: torch.jit.trace(network.eval(), torch.zeros(3, 2)),
    "frozen": lambda network: torch.jit.freeze(torch.jit.script(network.eval())),
    "for inference": lambda network: torch.jit.optimize_for_inference(
        torch.jit.script(network.eval())
    ),
    "a part": lambda network: nn.Sequential(torch.jit.script(network), nn.Identity()),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("make", SCRIPTED.values(), ids=SCRIPTED)
def test_scripted_and_traced_modules_answer_as_the_network_they_were_made_from(make):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5))
    vae, wanted = (cc.VAE(each, 2, Gaussian(0.5)) for each in (make(network), network))
    evidence = cc.Evidence(torch.tensor([1.0, 0.5, 0, 0, 0]), torch.arange(5) < 2)
    for method in (cc.methods.Grid(), cc.methods.Laplace(), cc.methods.Importance()):
        answers = [cc.condition(each, evidence, method, seed=0) for each in (vae, wanted)]
        torch.testing.assert_close(*[a.log_evidence for a in answers], rtol=0, atol=1e-3)
    z = torch.randn(2, 2, generator=seeded(0))
    curvatures = [cc.VAETarget(each, evidence).curvature(z) for each in (vae, wanted)]
    torch.testing.assert_close(*curvatures, rtol=1e-3, atol=1e-3)


class Attribute(nn.Module):
    """Weights that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"last": [torch.ones(2, 5, dtype=torch.double)]}

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weights["last"][0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_dtype_is_that_of_weights_that_are_not_parameters():
    frozen = torch.jit.freeze(torch.jit.script(made_plain().double().eval()))
    for decoder in (frozen, nn.Sequential(frozen), Attribute()):
        assert cc.VAE(decoder, 2, Gaussian()).dtype == torch.double


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_error_in_a_script_is_reported():
    with pytest.raises(ValueError, match=r"failed on \(5, 3\): .*(shape|size)"):
        cc.VAE(torch.jit.script(made_plain()), 3, Gaussian())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_can_still_be_trained_after_it_was_copied():
    network = torch.jit.script(nn.Linear(2, 5))
    cc.VAE(network, 2, Gaussian())
    network(torch.ones(1, 2)).sum().backward()
    assert network.weight.grad is not None


# ---- what a module carries along -------------------------------------------------------------


def test_cached_values_are_copied_without_their_graph():
    network = made_plain()
    hidden = network(torch.ones(1, 2))
    network.last, network.all = hidden, {"hidden": [hidden, hidden.sum()]}
    network.register_buffer("running", hidden.mean())
    copied = plain_copy(network, "decoder")
    assert not copied.last.requires_grad
    assert torch.equal(copied.last, hidden)
    assert copied.all["hidden"][0] is copied.last
    assert network.last.requires_grad


def test_locks_and_files_are_shared(tmp_path):
    network = made_plain()
    network.lock = threading.Lock()
    with (tmp_path / "log").open("w") as file:
        network.file = file
        copied = cc.VAE(network, 2, Gaussian()).decoder
        assert (copied.lock, copied.file) == (network.lock, file)


def test_the_message_says_what_in_a_network_cannot_be_copied():
    network = made_plain()
    network[2].batches = (batch for batch in range(3))
    with pytest.raises(
        ValueError, match=r"can copy, but that failed at '2\.batches', a generator: "
    ):
        cc.VAE(network, 2, Gaussian())


def test_weights_that_do_not_exist_yet_are_reported():
    with pytest.raises(ValueError, match=r"trained decoder.*'0\.weight' has no shape yet"):
        cc.VAE(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 5)), 2, Gaussian())
    with pytest.raises(ValueError, match=r"trained decoder.*'weight' is on the meta device"):
        cc.VAE(nn.Linear(2, 5, device="meta"), 2, Gaussian())
    with pytest.raises(ValueError, match="trained encoder"):
        cc.VAE(nn.Linear(2, 5), 2, Gaussian(), nn.LazyLinear(4))


def test_a_model_that_keeps_what_it_computed_can_be_copied_again():
    class Keeps(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            self.last = super().forward(z)
            return self.last

    vae = cc.VAE(Keeps(2, 5), 2, Gaussian())
    vae.decode(torch.ones(1, 2, requires_grad=True))
    assert cc.VAE(vae.decoder, 2, Gaussian()).check()["gradients"].status == "ok"
