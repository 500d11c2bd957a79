"""Observed rows: log p(x|z) and its gradient always equal those of the whole decoder."""

import pytest
import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Gaussian
from crosscoding.target import observed_likelihood
from crosscoding.target.observed_likelihood import ObservedRows

LATENT, SIZE, NUM = 3, 40, 5
SCALES = torch.linspace(0.3, 1.5, SIZE, dtype=torch.double)
LIKELIHOODS = {
    "logits": cc.likelihoods.Bernoulli(),
    "probabilities": cc.likelihoods.Bernoulli(logits=False),
    "number": cc.likelihoods.Gaussian(0.3),
    "scale of each element": cc.likelihoods.Gaussian(SCALES),
}
every_case = pytest.mark.parametrize("case", LIKELIHOODS)


def model(case: str) -> cc.VAE:
    layers: list[nn.Module] = [nn.Linear(LATENT, 9), nn.Tanh(), nn.Linear(9, SIZE)]
    layers += [nn.Sigmoid()] if case == "probabilities" else []
    decoder = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
    return cc.VAE(decoder, LATENT, LIKELIHOODS[case])


def masks(kind: str) -> Tensor:
    """(NUM, SIZE): of each query its own number of elements, one of them none; or one for all."""
    if kind == "shared":
        return (torch.arange(SIZE) % 5 == 1).expand(NUM, SIZE)
    shares = torch.tensor([0.05, 0.4, 0.1, 0.0, 0.2])[:, None]
    return torch.rand(NUM, SIZE, generator=seeded(2)) < shares


every_mask = pytest.mark.parametrize("kind", ["own", "shared"])


def queries(case: str, kind: str) -> tuple[Tensor, Tensor]:
    values = torch.randn(NUM, SIZE, generator=seeded(1), dtype=torch.double)
    binary = case in ("logits", "probabilities")
    return (values > 0).double() if binary else values, masks(kind)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, LATENT, generator=seeded(3), dtype=torch.double)


def whole(vae: cc.VAE, values: Tensor, mask: Tensor, z: Tensor) -> Tensor:
    """log p(x|z) from the whole decoder."""
    return vae.flat_likelihood.masked_log_prob(vae.decode_flat(z), values, mask)


@every_case
@every_mask
@pytest.mark.parametrize("sample", [(), (7,), (2, 3)], ids=["none", "7", "2x3"])
def test_log_likelihood_is_that_of_the_whole_decoder(case, kind, sample):
    vae, (values, mask) = model(case), queries(case, kind)
    rows = ObservedRows.where_faster(vae, values, mask)
    assert rows is not None
    z = points(*sample, NUM)
    result = rows.log_likelihood(z)
    assert result.shape == (*sample, NUM)
    torch.testing.assert_close(result, whole(vae, values, mask, z))


@every_case
@every_mask
def test_the_gradient_is_that_of_the_whole_decoder(case, kind):
    vae, (values, mask) = model(case), queries(case, kind)
    rows = ObservedRows.where_faster(vae, values, mask)
    z = points(4, NUM).requires_grad_()
    (some,) = torch.autograd.grad(rows.log_likelihood(z).sum(), z)
    (all_of_it,) = torch.autograd.grad(whole(vae, values, mask, z).sum(), z)
    torch.testing.assert_close(some, all_of_it)
    assert some.isfinite().all()


@every_case
@every_mask
@pytest.mark.parametrize("num_queries", [1, NUM])
@pytest.mark.parametrize("num", [1, 4])
def test_the_jacobian_is_that_of_the_whole_decoder(case, kind, num_queries, num):
    vae = model(case)
    values, mask = (part[:num_queries] for part in queries(case, kind))
    rows = ObservedRows.where_faster(vae, values, mask)
    z = points(num, num_queries)
    _, jacobian = rows.with_jacobian(z)
    decoded = torch.func.vmap(torch.func.vmap(torch.func.jacrev(vae.decode_flat)))(z)
    wanted = decoded.movedim(-1, 0)  # (latent, num, num_queries, SIZE)
    for query in range(num_queries):
        found = jacobian[:, :, query, : int(mask[query].sum())]
        torch.testing.assert_close(found, wanted[:, :, query][..., mask[query]])


@every_case
@every_mask
def test_parameters_are_the_decoders_output_at_those_elements(case, kind):
    vae, (values, mask) = model(case), queries(case, kind)
    rows, z = ObservedRows.where_faster(vae, values, mask), points(4, NUM)
    elements = rows.elements.expand(NUM, -1)
    expected = vae.decode_flat(z).gather(-1, elements.expand(4, -1, -1))
    counted = rows.mask.expand(4, NUM, -1)
    torch.testing.assert_close(rows.params(z)[counted], expected[counted])


@every_mask
def test_only_observed_elements_count_and_each_of_them_once(kind):
    values, mask = queries("number", kind)
    rows = ObservedRows.where_faster(model("number"), values, mask)
    assert rows.elements.shape == (1 if kind == "shared" else NUM, int(mask.sum(1).max()))
    for query in range(NUM):
        row = query if kind == "own" else 0
        counted = rows.elements[row][rows.mask[row]]
        assert counted.tolist() == mask[query].nonzero()[:, 0].tolist()


@every_case
@every_mask
@pytest.mark.parametrize("index", [[2], [4, 0, 0], [1, 2, 3, 4, 0], []], ids=str)
def test_select_keeps_each_querys_rows(case, kind, index):
    vae, (values, mask) = model(case), queries(case, kind)
    chosen = torch.tensor(index, dtype=torch.long)
    rows = ObservedRows.where_faster(vae, values, mask).select(chosen)
    z = points(4, len(index))
    expected = whole(vae, values[chosen], mask[chosen], z)
    torch.testing.assert_close(rows.log_likelihood(z), expected)


def test_a_selection_can_be_selected_from():
    vae, (values, mask) = model("scale of each element"), queries("number", "own")
    rows = ObservedRows.where_faster(vae, values, mask)
    twice = rows.select(torch.tensor([4, 1, 2])).select(torch.tensor([1])).select(torch.tensor([0]))
    z = points(4, 1)
    torch.testing.assert_close(twice.log_likelihood(z), whole(vae, values[[1]], mask[[1]], z))


@every_case
@every_mask
@pytest.mark.parametrize("num", [0, 1, 3, 400])
def test_log_likelihood_at_pairs_each_point_with_its_query(case, kind, num):
    """400 points take several tiles a query, the last of each not full."""
    vae, (values, mask) = model(case), queries(case, kind)
    rows = ObservedRows.where_faster(vae, values, mask)
    z = points(num)
    query = torch.randint(NUM - 1, (num,), generator=seeded(4))  # the last query has no point
    expected = whole(vae, values[query], mask[query], z)
    result = rows.log_likelihood_at(z, query)
    assert result.shape == (num,)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("pieces", [1, 3])
def test_points_beyond_one_piece_of_tiles_keep_their_places(pieces, monkeypatch):
    monkeypatch.setattr("crosscoding.target.observed_likelihood._TILE", 4)
    monkeypatch.setattr("crosscoding.target.observed_likelihood._TILES_AT_ONCE", pieces)
    vae, (values, mask) = model("number"), queries("number", "own")
    rows = ObservedRows.where_faster(vae, values, mask)
    z, query = points(50), torch.randint(NUM, (50,), generator=seeded(4))
    expected = whole(vae, values[query], mask[query], z)
    torch.testing.assert_close(rows.log_likelihood_at(z, query), expected)


@every_case
def test_a_flat_target_uses_observed_rows_and_answers_as_before(case):
    vae, (values, mask) = model(case), queries(case, "own")
    target = cc.VAETarget(vae, cc.Evidence(values, mask))
    flat, z = target.flatten(), points(4, NUM)
    torch.testing.assert_close(flat.log_likelihood(z), target.log_likelihood(z))
    torch.testing.assert_close(flat.curvature(z[0]), target.curvature(z[0]))
    some = torch.tensor([3, 1])
    torch.testing.assert_close(
        flat.select(some).curvature(z[0, some]), target.select(some).curvature(z[0, some])
    )


def test_a_query_does_not_depend_on_the_others():
    """A neighbour with more elements widens the rows, and changes nothing else."""
    vae, (values, mask) = model("number"), queries("number", "own")
    together, z = ObservedRows.where_faster(vae, values, mask), points(4, NUM)
    for query in (0, 2, 4):
        alone = ObservedRows.where_faster(vae, values[[query]], mask[[query]])
        torch.testing.assert_close(
            together.log_likelihood(z)[:, [query]], alone.log_likelihood(z[:, [query]])
        )


# ---- where the whole decoder is as good --------------------------------------------------------


def test_there_are_no_observed_rows_if_more_than_half_is_observed():
    vae, (values, mask) = model("number"), queries("number", "own")
    half = mask.clone()
    half[1] = torch.arange(SIZE) < SIZE // 2
    assert ObservedRows.where_faster(vae, values, half) is not None
    half[1, SIZE // 2] = True
    assert ObservedRows.where_faster(vae, values, half) is None


def test_there_are_no_observed_rows_without_evidence_or_queries():
    vae, (values, mask) = model("number"), queries("number", "own")
    assert ObservedRows.where_faster(vae, values, torch.zeros_like(mask)) is None
    assert ObservedRows.where_faster(vae, values[:0], mask[:0]) is None


def test_there_are_no_observed_rows_if_they_take_too_much_memory(monkeypatch):
    vae, (values, mask) = model("number"), queries("number", "own")
    size = NUM * int(mask.sum(1).max()) * 9 * 8
    monkeypatch.setattr("crosscoding.target.observed_likelihood._MAX_BYTES", size)
    assert ObservedRows.where_faster(vae, values, mask) is not None
    monkeypatch.setattr("crosscoding.target.observed_likelihood._MAX_BYTES", size - 1)
    assert ObservedRows.where_faster(vae, values, mask) is None


def test_there_are_no_observed_rows_without_a_head():
    decoder = nn.Sequential(nn.Linear(LATENT, SIZE), nn.LayerNorm(SIZE)).double()
    vae = cc.VAE(decoder, LATENT, cc.likelihoods.Gaussian(0.3))
    values, mask = queries("number", "own")
    assert ObservedRows.where_faster(vae, values, mask) is None
    target = cc.VAETarget(vae, cc.Evidence(values, mask))
    z = points(4, NUM)
    torch.testing.assert_close(target.flatten().log_likelihood(z), target.log_likelihood(z))


# ---- several parameters an element ---------------------------------------------------------------

SEVERAL = {
    "classes": cc.likelihoods.Categorical(3),
    "one-hot classes": cc.likelihoods.Categorical(4, one_hot=True),
    "cut points": cc.likelihoods.Ordinal(None, num_classes=4),
}
each_several = pytest.mark.parametrize("case", SEVERAL)


def model_of_several(case: str) -> cc.VAE:
    shape = (SIZE, *SEVERAL[case].param_shape)
    layers: list[nn.Module] = [nn.Linear(LATENT, 9), nn.Tanh()]
    layers += [nn.Linear(9, torch.Size(shape).numel())]
    decoder = nn.Sequential(*layers, nn.Unflatten(1, shape)).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
        if case == "cut points":  # in their order at every z
            last = decoder[-2]
            last.weight.copy_(last.weight[::3].repeat_interleave(3, 0))
            last.bias.copy_(torch.tensor([-1.0, 0.5, 1.0]).repeat(SIZE))
    return cc.VAE(decoder, LATENT, SEVERAL[case])


def queries_of_several(case: str, kind: str) -> tuple[cc.VAE, Tensor, Tensor]:
    vae, mask = model_of_several(case), masks(kind)
    if case == "one-hot classes":  # whole variables
        mask = mask[:, ::4].repeat_interleave(4, 1)
    values = torch.where(mask, vae.sample_prior(NUM, seed=1), 0.0)
    return vae, values, mask


@each_several
@every_mask
def test_elements_with_several_parameters_have_a_row_for_each(case, kind):
    vae, values, mask = queries_of_several(case, kind)
    rows = ObservedRows.where_faster(vae, values, mask)
    assert rows is not None
    z = points(4, NUM).requires_grad_()
    expected = whole(vae, values, mask, z)
    result = rows.log_likelihood(z)
    torch.testing.assert_close(result, expected)
    some, all_of_it = (torch.autograd.grad(r.sum(), z)[0] for r in (result, expected))
    torch.testing.assert_close(some, all_of_it)
    query = torch.randint(NUM, (300,), generator=seeded(4))
    there = points(300)
    torch.testing.assert_close(
        rows.log_likelihood_at(there, query), whole(vae, values[query], mask[query], there)
    )
    chosen = torch.tensor([4, 0])
    torch.testing.assert_close(
        rows.select(chosen).log_likelihood(z[:, chosen]), expected[:, chosen]
    )


@each_several
@every_mask
def test_elements_with_several_parameters_keep_their_curvature(case, kind):
    vae, values, mask = queries_of_several(case, kind)
    target, z = cc.VAETarget(vae, cc.Evidence(values, mask)), points(NUM)
    torch.testing.assert_close(target.flatten().prepare().curvature(z), target.curvature(z))


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical(3)], ids=["number", "class"])
def test_gradients_are_computed_in_bounded_pieces(monkeypatch, likelihood):
    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 24)
            self.rows = []

        def forward(self, z):
            self.rows.append(len(z))
            output = torch.tanh(self.layer(z)).exp()
            return output if isinstance(likelihood, Gaussian) else output.unflatten(1, (8, 3))

    vae = cc.VAE(Recording(), 3, likelihood)
    truth = vae.sample_prior(5, seed=0)
    evidence = cc.Evidence(truth, cc.random_mask(vae.data_shape, 0.7, seed=0))
    target = cc.VAETarget(vae, evidence).prepare()
    z = torch.randn(40, 5, 3, generator=seeded(), requires_grad=True)
    whole = target.log_likelihood(z)
    (expected,) = torch.autograd.grad(whole.sum(), z)
    one = vae.cost.values + 8 * vae.params_size
    monkeypatch.setattr(observed_likelihood, "_PIECE_BYTES", 7 * one * 4)
    vae.decoder.rows.clear()
    pieces = target.log_likelihood(z)
    (gradient,) = torch.autograd.grad(pieces.sum(), z)
    assert max(vae.decoder.rows) <= 7
    assert sum(vae.decoder.rows) == 200
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(gradient, expected)


def test_second_derivatives_are_those_of_the_whole_decoder():
    vae = model("number")
    values, mask = queries("number", "own")
    target = cc.VAETarget(vae, cc.Evidence(values, mask)).prepare()
    z = points(NUM)

    def directly(z: Tensor) -> Tensor:
        return whole(vae, values, mask, z).sum()

    expected = torch.autograd.functional.hessian(directly, z)
    found = torch.autograd.functional.hessian(lambda z: target.log_likelihood(z).sum(), z)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0.1
