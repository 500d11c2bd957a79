"""Mixed is its parts, column by column, in tables and in the channels of images."""

import json

import pytest
import torch
from families import FAMILIES, Family, single
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
)

SCALES = torch.tensor([0.3, 0.7], dtype=torch.double)
PARTS = [
    (Gaussian(SCALES), 2),
    (Gaussian(None), 2),
    (Poisson(), 1),
    (Categorical(3, one_hot=True), 3),
    (Categorical(3), 2),
    (Ordinal([-0.5, 0.5]), 1),
    (NegativeBinomial(None), 1),
    (BetaBinomial(5, 2.0), 1),
]
TABLE = Mixed(PARTS)
COLUMNS, OUTPUTS = 13, 2 + 4 + 1 + 3 + 6 + 1 + 2 + 1
B = 4


def outputs(*shape: int, seed: int = 0) -> Tensor:
    """A decoder's output for this table, (*shape, OUTPUTS)."""
    params = torch.randn(*shape, OUTPUTS, generator=seeded(seed), dtype=torch.double)
    for positive in (3, 5, 18):
        params[..., positive] = params[..., positive].abs() + 0.1
    return params


def by_hand(params: Tensor) -> list[Tensor]:
    """The parameters of each part."""
    pieces = params.split([2, 4, 1, 3, 6, 1, 2, 1], -1)
    shapes = [(2,), (2, 2), (1,), (3,), (2, 3), (1,), (1, 2), (1,)]
    return [piece.unflatten(-1, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def table(params: Tensor) -> tuple[Tensor, Tensor]:
    """Data drawn from the table, and a random mask per row; one-hot columns go together."""
    noise = TABLE.noise((*params.shape[:-1], COLUMNS), generator=seeded(3), like=params)
    mask = torch.rand(*params.shape[:-1], COLUMNS, generator=seeded(4)) < 0.5
    mask[..., 5:8] = mask[..., 5:6]
    mask[0], mask[1] = False, True
    return TABLE.draw(params, noise), mask


def test_log_prob_mean_and_variance_are_those_of_the_parts():
    params = outputs(B)
    values, _ = table(params)
    own, data = by_hand(params), values.split([num for _, num in PARTS], -1)
    for name in ("mean", "variance"):
        wanted = [getattr(part, name)(p) for (part, _), p in zip(PARTS, own, strict=True)]
        torch.testing.assert_close(getattr(TABLE, name)(params), torch.cat(wanted, -1))
    wanted = [part.log_prob(p, t) for (part, _), p, t in zip(PARTS, own, data, strict=True)]
    torch.testing.assert_close(TABLE.log_prob(params, values), torch.cat(wanted, -1))


def test_all_sums_are_those_of_the_elements():
    params = outputs(7)
    values, mask = table(outputs(B, seed=1))
    values = torch.where(mask, values, 0.0)
    elements = TABLE.log_prob(params[:, None], values)
    expected = torch.where(mask, elements, 0.0).sum(-1)
    each = params[:, None].expand(7, B, OUTPUTS)
    torch.testing.assert_close(TABLE.masked_log_prob(each, values, mask), expected)
    kept = TABLE.to_keep(params)
    assert len(kept) == TABLE.num_kept
    torch.testing.assert_close(TABLE.pairwise_log_prob(kept, values, mask), expected)


def test_some_elements_of_each_query_are_those_of_the_whole():
    params = outputs(B)
    values, mask = table(params)
    values = torch.where(mask, values, 0.0)
    elements = TABLE.elements_in(mask)
    some, own = TABLE.of_elements(elements), params.gather(1, TABLE.outputs_of(elements))
    counts = mask.gather(1, elements)
    for query in range(B):
        counted = elements[query][counts[query]]
        assert sorted(counted.tolist()) == mask[query].nonzero()[:, 0].tolist()
    wanted = TABLE.masked_log_prob(params, values, mask)
    data = values.gather(1, elements)
    torch.testing.assert_close(some.masked_log_prob(own, data, counts), wanted)
    index = torch.tensor([2, 0])
    found = some.select(index).masked_log_prob(own[index], data[index], counts[index])
    torch.testing.assert_close(found, wanted[index])


def test_fisher_is_that_of_the_parts_where_observed():
    params = outputs(3, B)
    _, mask = table(outputs(B, seed=1))
    tangents = torch.randn(5, 3, B, OUTPUTS, generator=seeded(6), dtype=torch.double)
    masks = mask.split([num for _, num in PARTS], -1)
    wanted = [
        part.fisher_product(p, v, m).flatten(3)
        for (part, _), p, v, m in zip(PARTS, by_hand(params), by_hand(tangents), masks, strict=True)
    ]
    torch.testing.assert_close(TABLE.fisher_product(params, tangents, mask), torch.cat(wanted, -1))
    diagonal = [
        part.fisher(p).flatten(2) for (part, _), p in zip(PARTS, by_hand(params), strict=True)
    ]
    torch.testing.assert_close(TABLE.fisher(params), torch.cat(diagonal, -1))


def test_draws_fit_their_columns_and_have_the_means_of_the_parts():
    params, num = outputs(), 20_000
    noise = TABLE.noise((num, COLUMNS), generator=seeded(0), like=params)
    draws = TABLE.draw(params, noise)
    assert draws.dtype == params.dtype
    assert TABLE.in_support(draws).all()
    error = (TABLE.variance(params) / num).sqrt()
    assert ((draws.mean(0) - TABLE.mean(params)).abs() < 5 * error).all()
    correlation = torch.corrcoef(draws[:, [0, 1, 2, 3, 4, 8, 10, 11, 12]].mT)
    assert (correlation - torch.eye(9)).abs().max() < 5 / num**0.5  # given z, independent


def test_a_saved_likelihood_is_the_same_when_loaded():
    tensors, description = TABLE.to_parts()
    assert set(tensors) == {"0.scale"}
    again = Likelihood.from_parts((tensors, json.loads(json.dumps(description))))
    params = outputs(B)
    values, _ = table(params)
    assert torch.equal(again.log_prob(params, values), TABLE.log_prob(params, values))
    assert again.dim == -1


# ---- decoders ------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Outputs the table's parameters in one tensor, or a tuple of one tensor per part."""

    def __init__(self, heads: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, OUTPUTS)).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(7)))
        self.heads = heads

    def forward(self, z: Tensor):
        raw = self.layers(z)
        positive = torch.zeros(OUTPUTS, dtype=torch.bool)
        positive[[3, 5, 18]] = True
        params = torch.where(positive, nn.functional.softplus(raw) + 0.1, raw)
        return tuple(by_hand(params)) if self.heads else params


def test_a_decoder_with_a_head_for_each_part_is_the_same_model():
    one, many = (cc.VAE(Decoder(heads), 2, TABLE) for heads in (False, True))
    z = torch.randn(6, 2, generator=seeded(0), dtype=torch.double)
    assert one.data_shape == many.data_shape == (COLUMNS,)
    assert one.params_size == OUTPUTS
    assert torch.equal(one.decode(z), many.decode(z))
    assert one.decode(z).shape == (6, OUTPUTS)


def channels(z: Tensor) -> Tensor:
    """(B, 1 + 2 + 3, 2, 2): a mask, an intensity with its scale, and three classes per pixel."""
    waves = torch.stack([(z @ torch.tensor([k, -1.0])).sin() for k in range(24)], -1)
    params = waves.unflatten(-1, (6, 2, 2))
    scale = params[:, 2:3].abs() + 0.2
    return torch.cat([params[:, :2], scale, params[:, 3:]], 1)


class Channels(nn.Module):
    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, z: Tensor):
        params = channels(z)
        if not self.heads:
            return params
        return params[:, :1], params[:, 1:3].movedim(1, -1).unsqueeze(1), params[:, 3:]


IMAGE = Mixed([Bernoulli(), Gaussian(None), (Categorical(3, one_hot=True), 3)], dim=-3)


@pytest.mark.parametrize("heads", [False, True])
def test_channels_of_images_have_their_likelihoods(heads):
    vae = cc.VAE(Channels(heads), 2, IMAGE)
    assert vae.data_shape == (5, 2, 2)
    t, z = vae.sample_prior(3, seed=0), torch.randn(3, 2, generator=seeded(1))
    assert IMAGE.in_support(t).all()
    params = channels(z)
    expected = Bernoulli().log_prob(params[:, 0], t[:, 0]).flatten(1).sum(-1)
    gaussian = Gaussian(None).log_prob(torch.stack([params[:, 1], params[:, 2]], -1), t[:, 1])
    expected = expected + gaussian.flatten(1).sum(-1)
    classes = params[:, 3:].log_softmax(1) * t[:, 2:]
    expected = expected + classes.flatten(1).sum(-1)
    target = cc.VAETarget(vae, cc.Evidence(t, torch.tensor(True)))
    torch.testing.assert_close(target.log_likelihood(z), expected)
    torch.testing.assert_close(target.pairwise_log_likelihood(z).diagonal(), expected)
    mean = vae.flat_likelihood.mean(vae.decode_flat(z)).reshape(3, 5, 2, 2)
    torch.testing.assert_close(mean[:, 0], params[:, 0].sigmoid())
    torch.testing.assert_close(mean[:, 1], params[:, 1])
    torch.testing.assert_close(mean[:, 2:], params[:, 3:].softmax(1))


def test_the_curvature_of_channels_is_that_of_their_parts():
    """Jᵀ F J of channels that are not the last dimension, against that of each part."""
    vae = cc.VAE(Channels(), 2, IMAGE)
    t, z = vae.sample_prior(3, seed=0), torch.randn(3, 2, generator=seeded(1))
    mask = torch.zeros(3, 5, 2, 2, dtype=torch.bool)
    mask[:, :, 0] = True
    bend = cc.VAETarget(vae, cc.Evidence(t, mask)).curvature(z)
    for query in range(3):
        jacobian = torch.func.jacfwd(lambda z: channels(z[None])[0])(z[query])[:, 0]  # (6, 2, 2)
        params = channels(z[query][None])[0, :, 0]
        expected = torch.eye(2)
        for pixel in range(2):
            j, p = jacobian[:, pixel], params[:, pixel]
            probability, classes = p[0].sigmoid(), p[3:].softmax(0)
            fisher = torch.block_diag(
                (probability * (1 - probability))[None, None],
                torch.diag(torch.stack([1 / p[2] ** 2, 2 / p[2] ** 2])),
                torch.diag(classes) - torch.outer(classes, classes),
            )
            expected = expected + j.mT @ fisher @ j
        torch.testing.assert_close(bend[query].float(), expected)


def test_a_table_is_completed_from_any_of_its_columns():
    vae = cc.VAE(Decoder(False), 2, TABLE)
    truth = vae.sample_prior(6, seed=1)
    values = truth.clone()
    values[0, 5:8], values[1, :5], values[2, 8:], values[3] = (torch.nan,) * 4
    values[4, [0, 9, 11]] = torch.nan
    evidence = cc.Evidence.from_nan(values)
    posterior = cc.condition(vae, evidence, seed=0)
    exact = cc.condition(vae, evidence, cc.methods.Grid(), seed=0)
    torch.testing.assert_close(posterior.log_evidence, exact.log_evidence, rtol=0, atol=0.02)
    draws = posterior.predict(20, seed=0)
    assert torch.equal(
        torch.where(evidence.mask, draws, 0.0), evidence.values.expand(20, 6, COLUMNS)
    )
    assert TABLE.in_support(draws).all()
    assert posterior.log_evidence[3].abs() < 0.02  # nothing observed: p(x) is 1
    query = posterior.query_log_prob(truth)
    whole = cc.condition(vae, cc.Evidence(truth, torch.tensor(True)), cc.methods.Grid(), seed=0)
    difference = whole.log_evidence - exact.log_evidence
    # an average of p(y|z) over 1,000 draws or more: off by a few tenths if y is informative
    assert ((query - difference).abs()[:5] < 0.5).all()
    assert query[5] == 0


BERNOULLI = Family(Bernoulli(), single, lambda p, v: p, lambda p: (p, p))


@pytest.mark.parametrize("name", ["Bernoulli", *FAMILIES])
def test_a_part_is_not_lost_beside_parts_that_may_be(name):
    """`Mixed` asks all parts if one may have lost a value."""
    family = BERNOULLI if name == "Bernoulli" else FAMILIES[name]
    likelihood, params = family.likelihood, family.decoded(200)
    values = family.values(params)
    safe = ~likelihood.may_be_lost(values)
    assert not (likelihood.lost(params, values) & safe).any()
