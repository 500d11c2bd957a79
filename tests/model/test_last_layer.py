"""Last layers: decoders that split into trunk and last linear layer, and those that must not."""

import pytest
import torch
from problems import seeded
from torch import Tensor, nn
from torch.nn import functional as F

import crosscoding as cc
from crosscoding.model.last_layer import Head, find_head

LATENT, HIDDEN, SIZE = 3, 7, 12


def probes(num: int = 5) -> Tensor:
    return torch.randn(num, LATENT, generator=seeded(0), dtype=torch.double)


def body() -> list[nn.Module]:
    return [nn.Linear(LATENT, HIDDEN), nn.Tanh()]


def head_of(decoder: nn.Module) -> Head | None:
    decoder = decoder.double().eval().requires_grad_(False)
    return find_head(decoder, probes(), decoder(probes()))


class Ending(nn.Module):
    """A trunk, a last linear layer, and what `finish` makes of its output."""

    def __init__(self, finish, bias=True) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, HIDDEN)
        self.last = nn.Linear(HIDDEN, SIZE, bias=bias)
        self.finish = finish

    def forward(self, z: Tensor) -> Tensor:
        return self.finish(self, self.last(torch.relu(self.first(z))))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, SIZE)
        self.last = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.first(z).unsqueeze(1)).flatten(1)


class Branching(nn.Module):
    """Its path depends on values, so that no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(LATENT, SIZE)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(z) if z.abs().max() < 100 else self.last(-z)


class Remembering(nn.Module):
    """A trunk whose output skips past the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, SIZE)
        self.last = nn.Linear(SIZE, SIZE)

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.first(z)
        return self.last(hidden) + hidden


SPLITTING = {
    "sequential": lambda: nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE)),
    "one layer": lambda: nn.Sequential(nn.Linear(LATENT, SIZE)),
    "nested": lambda: nn.Sequential(nn.Sequential(*body()), nn.Sequential(nn.Linear(HIDDEN, SIZE))),
    "sigmoid module": lambda: nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE), nn.Sigmoid()),
    "two activations": lambda: nn.Sequential(
        *body(), nn.Linear(HIDDEN, SIZE), nn.LeakyReLU(0.3), nn.Tanh()
    ),
    "unflatten": lambda: nn.Sequential(
        *body(), nn.Linear(HIDDEN, SIZE), nn.Unflatten(1, (3, 4)), nn.Sigmoid()
    ),
    "flatten": lambda: nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE), nn.Flatten()),
    "torch.sigmoid": lambda: Ending(lambda _, out: torch.sigmoid(out)),
    "F.sigmoid": lambda: Ending(lambda _, out: F.sigmoid(out)),
    "F.relu": lambda: Ending(lambda _, out: F.relu(out)),
    "method": lambda: Ending(lambda _, out: out.sigmoid()),
    "view": lambda: Ending(lambda _, out: out.view(-1, 3, 4).tanh()),
    "reshape by size": lambda: Ending(lambda _, out: torch.sigmoid(out.reshape(-1, 3, 4))),
    "no bias": lambda: Ending(lambda _, out: out, bias=False),
    "layer norm in the trunk": lambda: nn.Sequential(
        *body(), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, SIZE)
    ),
    "batch norm in the trunk": lambda: nn.Sequential(
        *body(), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, SIZE)
    ),
    "dropout in the trunk": lambda: nn.Sequential(*body(), nn.Dropout(), nn.Linear(HIDDEN, SIZE)),
}
WHOLE = {
    "convolution": Convolution,
    "a layer by itself": lambda: nn.Linear(LATENT, SIZE),  # its own code has no layers
    "control flow": Branching,
    "last output used twice": lambda: Ending(lambda _, out: out * out),
    "skip past the last layer": Remembering,
    "softmax": lambda: nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE), nn.Softmax(-1)),
    "norm at the end": lambda: nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE), nn.LayerNorm(SIZE)),
    "repeated output": lambda: Ending(lambda _, out: out.repeat(1, 2)),
    "elements in another order": lambda: Ending(lambda _, out: out.flip(1)),
    "transposed": lambda: Ending(lambda _, out: out.view(-1, 3, 4).transpose(1, 2)),
    "a linear layer over rows": lambda: nn.Sequential(
        nn.Linear(LATENT, SIZE), nn.Unflatten(1, (3, 4)), nn.Linear(4, 4)
    ),
    "a function of no name": lambda: Ending(lambda _, out: out.exp()),
}


@pytest.mark.parametrize("name", SPLITTING)
def test_trunk_and_head_are_the_decoder(name):
    decoder = SPLITTING[name]()
    head = head_of(decoder)
    assert head is not None
    assert head.weight.shape == (SIZE, head.weight.shape[1])
    assert head.bias.shape == (SIZE,)
    z = 3 * torch.randn(20, LATENT, generator=seeded(1), dtype=torch.double)
    again = head.activation(F.linear(head.trunk(z), head.weight, head.bias))
    torch.testing.assert_close(again, decoder(z).flatten(1))


@pytest.mark.parametrize("name", SPLITTING)
def test_rows_of_the_head_are_elements_of_the_datum(name):
    decoder = SPLITTING[name]()
    head, rows = head_of(decoder), torch.tensor([7, 2, 2])
    some = head.activation(F.linear(head.trunk(probes()), head.weight[rows], head.bias[rows]))
    torch.testing.assert_close(some, decoder(probes()).flatten(1)[:, rows])


@pytest.mark.parametrize("name", WHOLE)
def test_a_decoder_that_cannot_be_split_has_no_head(name):
    assert head_of(WHOLE[name]()) is None


def test_a_last_layer_of_another_size_than_the_data_is_not_a_head():
    decoder = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE)).double()
    output = decoder(probes())
    assert find_head(decoder, probes(), output) is not None
    assert find_head(decoder, probes(), output[:, :-1]) is None


def test_a_decoder_with_a_hook_that_changes_the_output_has_no_head():
    """A traced copy does not run hooks: its output is compared with the decoder's."""
    decoder = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE))
    decoder[2].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert head_of(decoder) is None
    whole = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE))
    whole.register_forward_hook(lambda module, inputs, output: output + 1)
    assert head_of(whole) is None


def test_the_decoder_is_not_changed():
    decoder = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE)).double()
    before, names = decoder(probes()), [name for name, _ in decoder.named_modules()]
    assert head_of(decoder) is not None
    assert torch.equal(decoder(probes()), before)
    assert [name for name, _ in decoder.named_modules()] == names


def test_a_vae_has_a_head_where_an_element_has_one_parameter():
    decoder = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE))
    assert cc.VAE(decoder, LATENT, cc.likelihoods.Bernoulli()).head is not None
    pairs = nn.Sequential(*body(), nn.Linear(HIDDEN, SIZE), nn.Unflatten(1, (6, 2)), nn.Softplus())
    assert cc.VAE(pairs, LATENT, cc.likelihoods.Gaussian(None)).head is None


def test_a_module_with_a_name_that_the_tracer_reserves_has_no_head():
    """A child named `graph` cannot be put beside the graph that a torch.fx module keeps."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Sequential(*body())
            self.last = nn.Linear(HIDDEN, SIZE)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(self.graph(z))

    assert head_of(Named()) is None
