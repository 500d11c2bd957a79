"""Decoders with a head per part of `Mixed`: the same model as with all outputs in one tensor."""

import pytest
import torch
from families import FAMILIES
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    Gaussian,
    Laplace,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)


class Shaped(nn.Module):
    """A random layer whose outputs are heads of given shapes, or one flat tensor of all.

    A shape in a list is that of each tensor of a pair, (location, number > 0).
    """

    def __init__(self, *heads, flat: bool = False) -> None:
        super().__init__()
        self.heads, self.flat = heads, flat
        sizes = [torch.Size(h[0]).numel() * 2 if isinstance(h, list) else torch.Size(h).numel()
                 for h in heads]  # fmt: skip
        self.layer, self.sizes = nn.Linear(2, sum(sizes)), sizes
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(1)))

    def forward(self, z: Tensor):
        pieces = []
        for head, size, own in zip(
            self.heads, self.sizes, self.layer(z).split(self.sizes, -1), strict=True
        ):
            if isinstance(head, list):
                pair = own[:, : size // 2], 0.1 + own[:, size // 2 :].exp()
                pair = tuple(piece.reshape(-1, *head[0]) for piece in pair)
                pieces.append(torch.stack(pair, -1).flatten(1) if self.flat else pair)
            else:
                pieces.append(own if self.flat else own.reshape(len(own), *head))
        return torch.cat(pieces, -1) if self.flat else tuple(pieces)


# Parts with their natural heads; a table's parameters are these heads, concatenated.
TABLES = {
    "two Gaussians, a class of four and a count": (
        [(Gaussian(0.1), 2), Categorical(4), Poisson()],
        [(2,), (4,), (1,)],
    ),
    "a column without a dimension": (
        [(Gaussian(0.1), 2), Categorical(4), Poisson()],
        [(2,), (1, 4), ()],
    ),
    "pairs within": (
        [(Gaussian(None), 2), (Categorical(3), 2), NegativeBinomial(None), BetaBinomial(5)],
        [[(2,)], (2, 3), [(1,)], [()]],
    ),
    "log variances and one-hot": (
        [(Gaussian(None, log_variance=True), 2), (Categorical(3, one_hot=True), 6), Bernoulli()],
        [(2, 2), (6,), (1,)],
    ),
    "one-hot variables": (
        [(Gaussian(0.1), 2), (Categorical(3, one_hot=True), 6), (Categorical(2, one_hot=True), 2)],
        [(2,), (2, 3), (1, 2)],
    ),
    "classes side by side": ([Laplace(0.2), (Categorical(3), 2), Poisson()], [(1,), (6,), (1,)]),
    "log variances of one column": (
        [Gaussian(None, log_variance=True), (StudentT(4.0, 0.3), 2), Ordinal([-1.0, 1.0])],
        [(2,), (2,), (1,)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLES)
def test_answers_of_natural_heads_are_those_of_one_tensor(name, dtype):
    parts, heads = TABLES[name]
    vaes = [cc.VAE(Shaped(*heads, flat=flat).to(dtype), 2, Mixed(parts)) for flat in (True, False)]
    together, apart = vaes
    assert together.data_shape == apart.data_shape
    truth = together.sample_prior(4, seed=0)
    assert torch.equal(truth, apart.sample_prior(4, seed=0))
    mask = torch.arange(truth.shape[-1]) < parts[0][1] if isinstance(parts[0], tuple) else (
        torch.arange(truth.shape[-1]) < 1
    )  # fmt: skip
    evidence = cc.Evidence(truth, mask)
    one, other = (cc.condition(vae, evidence, cc.methods.Grid(), seed=0) for vae in vaes)
    assert torch.equal(one.log_evidence, other.log_evidence)
    assert torch.equal(one.predict(9, seed=1), other.predict(9, seed=1))
    assert torch.equal(one.query_log_prob(truth), other.query_log_prob(truth))


class Faults(Shaped):
    """The heads (B, 2), (B, 4), (B, 1), from a class without arguments."""

    def __init__(self) -> None:
        super().__init__((2,), (4,), (1,))


def test_a_model_of_natural_heads_is_checked_saved_and_loaded(tmp_path):
    vae = cc.VAE(Faults(), 2, Mixed([(Gaussian(0.1), 2), Categorical(4), Poisson()]))
    truth = vae.sample_prior(200, seed=0)
    report = vae.check(truth)
    assert report.ok
    assert report["gradients"].status == "ok"
    vae.save(tmp_path / "model", decoder_arguments={})
    again = cc.load_vae(tmp_path / "model", decoder=Faults())
    assert torch.equal(again.sample_prior(200, seed=0), truth)
    for batch in [(), (3,), (2, 3)]:
        some = truth[:6].reshape(-1, 4)[: max(torch.Size(batch).numel(), 1)].reshape(*batch, 4)
        evidence = cc.Evidence(some, torch.tensor([True, True, False, False]))
        posterior = cc.condition(vae, evidence, cc.methods.Grid(), seed=0)
        assert posterior.predict(5, seed=0).shape == (5, *batch, 4)
        assert posterior.mean().shape == posterior.std().shape == (*batch, 4)
        assert posterior.query_log_prob(some).shape == batch


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_a_part_of_any_family_answers_as_the_family_alone(name, dtype):
    """Beside a column that does not depend on z and so is uninformative."""
    family = FAMILIES[name]
    tensors, description = family.likelihood.to_parts()
    likelihood = Likelihood.from_parts(({k: t.to(dtype) for k, t in tensors.items()}, description))
    num = max(sum(likelihood.param_shape), 1)

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 6 * num)
            for parameter in self.parameters():
                nn.init.normal_(parameter, generator=seeded(2))

        def forward(self, z: Tensor) -> Tensor:
            return family.params(self.layer(z).unflatten(-1, (6, num)))

    class Beside(Alone):
        def forward(self, z: Tensor):
            own = super().forward(z)
            return own, torch.zeros_like(z[:, :1])

    alone = cc.VAE(Alone().to(dtype), 2, likelihood)
    mixed = cc.VAE(Beside().to(dtype), 2, Mixed([(likelihood, 6), Bernoulli()]))
    truth = alone.sample_prior(3, seed=0)
    mask = torch.arange(6) < 4
    one = cc.condition(alone, cc.Evidence(truth, mask), cc.methods.Grid(), seed=0)
    wide = torch.cat([truth, truth.new_zeros(3, 1)], -1)
    both = torch.cat([mask, torch.tensor([False])])
    other = cc.condition(mixed, cc.Evidence(wide, both), cc.methods.Grid(), seed=0)
    torch.testing.assert_close(one.log_evidence, other.log_evidence, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.mean(), other.mean()[:, :6], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.std(), other.std()[:, :6], rtol=1e-3, atol=1e-3)


CHANNELS = Mixed([(Gaussian(0.2), 3), Categorical(4), Laplace(None)], dim=-3)


@pytest.mark.parametrize(
    "heads",
    [
        [(3, 2, 5), (4, 2, 5), [(2, 5)]],
        [(3, 2, 5), (4, 2, 5), [(1, 2, 5)]],
        [(3, 2, 5), (1, 2, 5, 4), [(2, 5)]],
    ],
    ids=str,
)
def test_channels_have_natural_heads_too(heads):
    vae = cc.VAE(Shaped(*heads), 2, CHANNELS)
    assert vae.data_shape == (5, 2, 5)
    z = torch.randn(3, 2, generator=seeded(0))
    colour, classes, (location, scale) = Shaped(*heads)(z)
    classes = classes if classes.ndim == 4 else classes[:, 0].movedim(-1, 1)
    t = vae.sample_prior(3, seed=0)
    expected = torch.distributions.Normal(colour, 0.2).log_prob(t[:, :3]).flatten(1).sum(1)
    reference = torch.distributions.Categorical(logits=classes.movedim(1, -1))
    expected = expected + reference.log_prob(t[:, 3]).flatten(1).sum(1)
    shape = (3, 2, 5)
    reference = torch.distributions.Laplace(location.reshape(shape), scale.reshape(shape))
    expected = expected + reference.log_prob(t[:, 4]).flatten(1).sum(1)
    target = cc.VAETarget(vae, cc.Evidence(t, torch.tensor(True)))
    torch.testing.assert_close(target.log_likelihood(z), expected, rtol=1e-4, atol=1e-3)


def test_a_single_channel_may_lack_its_dimension():
    heads = [(2, 5), (2, 5)]
    vae = cc.VAE(Shaped(*heads), 2, Mixed([Gaussian(0.1), Bernoulli()], dim=-3))
    assert vae.data_shape == (2, 2, 5)


def test_columns_of_a_series_have_natural_heads():
    """(time, columns): all heads share the dimensions before the columns."""
    parts = Mixed([(Gaussian(0.1), 2), Categorical(4), Poisson()])
    for classes in [(7, 4), (7, 1, 4)]:
        assert cc.VAE(Shaped((7, 2), classes, (7, 1)), 2, parts).data_shape == (7, 4)
    for first in [(1, 2), (2,)]:  # one step, or none
        head = (*first[:-1], 1, 4)
        vae = cc.VAE(Shaped(first, head, (*first[:-1], 1)), 2, parts)
        assert vae.data_shape == (*first[:-1], 4)


def test_a_list_and_a_tuple_of_one_are_accepted():
    class Lists(Shaped):
        def forward(self, z: Tensor):
            return list(super().forward(z))

    heads = [(2,), (4,), (1,)]
    parts = Mixed([(Gaussian(0.1), 2), Categorical(4), Poisson()])
    assert cc.VAE(Lists(*heads), 2, parts).data_shape == (4,)
    assert cc.VAE(Lists((7,)), 2, parts).data_shape == (4,)
    assert cc.VAE(Lists((7,)), 2, Gaussian(0.1)).data_shape == (7,)
    assert cc.VAE(Lists((7, 3)), 2, Categorical(3)).data_shape == (7,)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (
            [(2,), (3,), (1,)],
            r"^expected shape \(B, 1, 4\) or \(B, 4\) from the decoder for part 1, 1 column of "
            r"Categorical, got \(5, 3\); the decoder output \(5, 2\), \(5, 3\), \(5, 1\)$",
        ),
        (
            [(3,), (4,), (1,)],
            r"^expected shape \(B, 2\) from the decoder for part 0, 2 columns of Gaussian, got",
        ),
        (
            [(2,), (4,), (2,)],
            r"shape \(B, 1\) or \(B,\) from the decoder for part 2, 1 column of Poisson, got",
        ),
        ([(2,), (4,), (0,)], r"for part 2, 1 column of Poisson, got \(5, 0\)"),
        ([(2,), (4,)], r"^expected one tensor from the decoder for each of 3 parts, got 2; the"),
        (
            [(3, 2), (3, 4), (1,)],
            r"^expected tensors of the same shape except for columns and parameters, got \(5, 1\) "
            r"for part 2, 1 column of Poisson, and \(5, 3, 2\) for part 0; the decoder output",
        ),
        (
            [(2,), (4,), [(1,)]],
            r"^for part 2, 1 column of Poisson: expected one tensor .* Poisson, got 2; use Mixed",
        ),
    ],
)
def test_heads_of_other_shapes_are_refused(heads, message):
    parts = Mixed([(Gaussian(0.1), 2), Categorical(4), Poisson()])
    with pytest.raises(ValueError, match=message):
        cc.VAE(Shaped(*heads), 2, parts)


def test_means_and_scales_in_one_flat_head_are_refused():
    """(B, 4) may be mean, scale, mean, scale, or both means first."""
    parts = Mixed([(Gaussian(None), 2), Poisson()])
    with pytest.raises(
        ValueError,
        match=r"^expected shape \(B, 2, 2\), or a tuple of 2 of shape \(B, 2\), from the decoder",
    ):
        cc.VAE(Shaped((4,), (1,)), 2, parts)
    parts = Mixed([(Gaussian(None), 3), Poisson()], dim=-3)
    wanted = r"\(B, 3, height, width, 2\), or a tuple of 2 of shape \(B, 3, height, width\), from"
    with pytest.raises(ValueError, match=wanted):
        cc.VAE(Shaped((6, 2, 2), (1, 2, 2)), 2, parts)


def test_a_nested_dict_is_refused():
    class Dicts(nn.Module):
        def forward(self, z: Tensor):
            return z, {"logits": z}

    with pytest.raises(ValueError, match=r"^expected a tensor from the decoder, got dict; wrap"):
        cc.VAE(Dicts(), 2, Mixed([(Gaussian(0.1), 2), (Bernoulli(), 2)]))


# ---- other likelihoods ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "num", "message"),
    [
        (Gaussian(0.1), 2, r"one tensor .* Gaussian, got 2; use scale=None if .*log_variance=True"),
        (Gaussian(0.1), 3, "one tensor from the decoder for Gaussian, got 3; use Mixed if each is"),
        (Gaussian(None), 3, "2 tensors, or one whose last dimension is 2, .* Gaussian, got 3; use"),
        (
            Laplace(0.1),
            2,
            "one tensor .* Laplace, got 2; use scale=None if the second is the scale",
        ),
        (
            NegativeBinomial(2.0),
            2,
            "one tensor .* got 2; use total_count=None if the second is the total_count",
        ),
        (BetaBinomial(5, 1.0), 2, "one tensor .*; use concentration=None if the second is the"),
        (Poisson(), 2, "one tensor from the decoder for Poisson, got 2; use Mixed if each is for"),
        (Categorical(4), 3, "4 tensors, or one whose last dimension is 4, .* Categorical, got 3;"),
        (Ordinal(None, 5), 3, "4 tensors, or one whose last dimension is 4, .* Ordinal, got 3;"),
    ],
    ids=str,
)
def test_the_message_says_how_many_tensors_are_expected(likelihood, num, message):
    with pytest.raises(ValueError, match=f"^expected {message}") as caught:
        cc.VAE(Shaped(*[(6,)] * num), 2, likelihood)
    assert "the decoder output (5, 6), (5, 6)" in str(caught.value)


def test_the_message_on_different_shapes_advises_to_expand():
    with pytest.raises(ValueError, match=r"2 tensors of the same shape .*expand it to the shape"):
        cc.VAE(Shaped((6,), (1,)), 2, Gaussian(None))


@pytest.mark.parametrize("likelihood", [Categorical(3), Ordinal(None, 4)], ids=str)
def test_as_many_heads_as_classes_are_refused_as_ambiguous(likelihood):
    with pytest.raises(ValueError, match=r"got 3 that end in a dimension of 3: return torch\.st"):
        cc.VAE(Shaped((3,), (3,), (3,)), 2, likelihood)
