"""The bank gives the log p(x|z) of decoding, and is bounded, kept, saved and recognised."""

import json
import math

import pytest
import torch
from problems import seeded
from safetensors.torch import load_file, save_file
from tampering import reseal
from torch import nn

import crosscoding as cc
from crosscoding.clock import Clock
from crosscoding.errors import ModelFormatError
from crosscoding.model.bank import Bank, prior_points

LATENT, SIZE = 3, 6
SCALES = torch.linspace(0.3, 1.5, SIZE, dtype=torch.double)
LIKELIHOODS = {
    "logits": cc.likelihoods.Bernoulli(),
    "probabilities": cc.likelihoods.Bernoulli(logits=False),
    "number": cc.likelihoods.Gaussian(0.3),
    "tensor scale": cc.likelihoods.Gaussian(SCALES),
    "decoded scale": cc.likelihoods.Gaussian(None),
}
every_case = pytest.mark.parametrize("case", LIKELIHOODS)


def model(case: str = "number", latent: int = LATENT, seed: int = 0) -> cc.VAE:
    width = 2 * SIZE if case == "decoded scale" else SIZE
    layers: list[nn.Module] = [nn.Linear(latent, 8), nn.Tanh(), nn.Linear(8, width)]
    layers += [nn.Sigmoid()] if case == "probabilities" else []
    layers += [nn.Unflatten(1, (SIZE, 2)), nn.Softplus()] if case == "decoded scale" else []
    decoder = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return cc.VAE(decoder, latent, LIKELIHOODS[case])


def queries(case: str, num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(num, SIZE, generator=seeded(1), dtype=torch.double)
    mask = torch.rand(num, SIZE, generator=seeded(2)) < 0.5
    binary = case in ("logits", "probabilities")
    return (values > 0).double() if binary else values, mask


@pytest.fixture(autouse=True)
def small_bank(monkeypatch):
    """Few points: what is tested here holds for any number."""
    monkeypatch.setattr("crosscoding.model.bank.MAX_POINTS", 200)


@every_case
def test_log_likelihood_is_that_of_decoding(case):
    vae, (values, mask) = model(case), queries(case)
    bank = Bank.of(vae)
    likelihood = vae.flat_likelihood
    params = vae.decode_flat(bank.points)
    expected = likelihood.masked_log_prob(params.unsqueeze(1), values, mask)
    assert expected.shape == (200, 4)
    torch.testing.assert_close(bank.log_likelihood(values, mask), expected)


@every_case
def test_the_target_asks_the_bank(case):
    vae, (values, mask) = model(case), queries(case)
    target = cc.VAETarget(vae, cc.Evidence(values, mask))
    points, log_likelihood = target.log_likelihood_of_bank()
    assert points is Bank.of(vae).points
    torch.testing.assert_close(log_likelihood, target.pairwise_log_likelihood(points))


def test_points_are_spread_like_the_prior():
    points = Bank.of(model()).points
    # 200 points: 5 standard errors of an independent draw's moments; these are spread better.
    assert (points.mean(0).abs() < 5 / math.sqrt(200)).all()
    assert ((points.var(0) - 1).abs() < 5 * math.sqrt(2 / 200)).all()


def test_a_model_keeps_its_bank_and_another_has_its_own():
    vae = model()
    assert Bank.of(vae) is Bank.of(vae)
    assert Bank.of(model()) is not Bank.of(vae)
    assert torch.equal(Bank.of(model()).points, Bank.of(vae).points)


def test_the_decoder_runs_once_for_all_queries():
    vae, calls = model(), []
    assert vae.operations > 0  # known: it is counted by decoding one z
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        Bank.of(vae).log_likelihood(*queries("number"))
    assert len(calls) == 1


@every_case
@pytest.mark.parametrize("max_bytes", [4000, 12_000])
def test_memory_is_bounded(case, max_bytes):
    bank = Bank.of(model(case), max_bytes=max_bytes)
    kept = sum(tensor.nbytes for tensor in (bank.points, *bank._kept))
    assert bank.num_bytes == kept <= max_bytes
    assert 16 < len(bank.points) < 200


def test_a_smaller_bank_does_not_answer_for_the_full_one():
    """An answer would depend on what was called before it."""
    vae = model()
    small = Bank.of(vae, max_bytes=4000)
    assert "bank" not in vae.kept
    large = Bank.of(vae)
    assert len(small.points) < len(large.points) == 200
    assert len(Bank.of(vae, max_bytes=4000).points) == len(small.points)
    assert Bank.of(vae) is large
    torch.testing.assert_close(small.points, large.points[: len(small.points)], rtol=0, atol=0)


def test_an_expensive_decoder_has_fewer_points(monkeypatch):
    monkeypatch.setattr("crosscoding.model.bank._PER_VALUE", 0)
    vae = model()
    monkeypatch.setattr("crosscoding.model.bank._MAX_OPERATIONS", 50 * vae.operations)
    assert len(Bank.of(vae).points) == 50
    monkeypatch.setattr("crosscoding.model.bank._MAX_OPERATIONS", vae.operations)
    assert len(Bank.of(model()).points) == 16  # enough to start from, whatever it costs


class Wide(nn.Module):
    """Few products for all the numbers that it outputs on its way, and the last of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(LATENT, width).double())
        self.rows: list[int] = []

    def forward(self, z):
        self.rows.append(len(z))
        return (z @ self.weight)[:, :SIZE].tanh()


def test_numbers_written_to_memory_count_as_work(monkeypatch):
    """Memory is what a decoder of wide layers waits for: here 3 products for each number."""
    monkeypatch.setattr("crosscoding.model.bank._MAX_OPERATIONS", 2e9)
    vae = cc.VAE(Wide(2**20), LATENT, LIKELIHOODS["number"])
    # 32 for each number output, and for each weight once a chunk of 64 MiB, 128 points.
    work = 32 * (2**20 + SIZE + LATENT * 2**20 / 128)
    assert work > vae.operations
    assert int(2e9 / work) == len(Bank.of(vae).points) > 16


@pytest.mark.slow
def test_a_decoder_of_wide_layers_is_run_on_few_points_at_once():
    vae = cc.VAE(Wide(2**20), LATENT, LIKELIHOODS["number"])
    vae.decoder.rows.clear()
    target = cc.VAETarget(vae, cc.Evidence(*queries("number")))
    target.pairwise_log_likelihood(torch.zeros(200, LATENT).double())
    Bank(vae, torch.zeros(200, LATENT).double())
    # A point takes 8 MiB in each of two steps that meet, of which a third is counted in 64 MiB.
    assert sorted(vae.decoder.rows) == [2] * 2 + [11] * 36


@pytest.mark.parametrize("max_bytes", [2**28, 2**29, 2**40])
def test_memory_for_work_with_a_bank_is_bounded_including_copies(max_bytes, monkeypatch):
    rows, num_elements = [], 2**16
    whole = cc.likelihoods.Gaussian.pairwise_log_prob

    def noted(self, kept, values, mask):
        rows.append(len(kept[0]))
        return whole(self, kept, values, mask)

    monkeypatch.setattr(cc.likelihoods.Gaussian, "pairwise_log_prob", noted)
    vae = cc.VAE(nn.Linear(LATENT, num_elements), LATENT, LIKELIHOODS["number"])
    bank = Bank(vae, torch.zeros(64, LATENT))
    values = torch.zeros(1, num_elements)
    bank.log_likelihood(values, values == 0, Clock(max_bytes=max_bytes))
    # Eight copies in double, of a sixteenth of the memory.
    assert 1 < max(rows) <= min(max_bytes, 2**30) / 16 / (8 * 8 * num_elements)
    assert sum(rows) == 64


def test_few_points_of_a_bank_are_decoded_if_time_is_short(monkeypatch):
    made = []
    whole = prior_points

    def noted(num, *rest):
        made.append(num)
        return whole(num, *rest)

    monkeypatch.setattr("crosscoding.model.bank.prior_points", noted)
    vae = model()
    Bank.start_of(vae, 64, Clock(1e-9))
    assert sum(made) < 100


def test_making_a_bank_leaves_torchs_global_random_state_alone():
    vae, before = model(), torch.random.get_rng_state()
    Bank.of(vae)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- saved and loaded --------------------------------------------------------------------------


@every_case
def test_a_saved_bank_can_be_loaded(case, tmp_path):
    bank = Bank.of(model(case))
    bank.save(tmp_path / "bank")
    vae = model(case)
    again = Bank.load(tmp_path / "bank", vae=vae)
    assert Bank.of(vae) is again
    assert torch.equal(again.points, bank.points)
    assert again.num_bytes == bank.num_bytes
    asked = queries(case)
    # Not bitwise: what was kept transposed is read back in order, and sums in another one.
    torch.testing.assert_close(again.log_likelihood(*asked), bank.log_likelihood(*asked))


@every_case
def test_a_bank_of_other_points_is_not_saved(case, tmp_path):
    """Loaded, it would answer for the prior."""
    vae = model(case)
    points = Bank.of(vae).points
    banks = [
        Bank(vae, torch.randn(200, LATENT, generator=seeded(0), dtype=torch.double) / 2),
        Bank(vae, points.flip(0)),
        Bank.of(vae, max_bytes=4000),
    ]
    for bank in banks:
        with pytest.raises(ValueError, match=r"expected the bank that Bank.of\(vae\) makes"):
            bank.save(tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_a_single_number_that_was_changed_is_noticed(tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    path = tmp_path / "bank" / "tensors.safetensors"
    tensors = load_file(path)
    tensors["kept.0"][77, 3] += 1e-9
    save_file(tensors, path)
    with pytest.raises(ModelFormatError, match=r"tensor 'kept\.0' is damaged"):
        Bank.load(tmp_path / "bank", vae=model())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, _: t["kept.0"][::3].zero_(), "that it does not output"),
        (lambda t, _: t.update({"kept.0": t["kept.0"].roll(1, 0)}), "that it does not output"),
        (lambda t, _: t["kept.0"].mul_(1.0009), "that it does not output"),
        (lambda t, _: t.update({"kept.0": t["kept.0"].float()}), "decoded at each of 200"),
        (lambda t, _: t.update({"kept.0": t["kept.0"][:0]}), "decoded at each of 200"),
        (lambda t, _: t.update({"kept.1": t["kept.0"].clone()}), "decoded at each of 200"),
        (lambda t, _: t.clear(), "decoded at each of 200"),
        (lambda _, d: d.update(num_points=100), "decoded at each of 200"),
        (lambda _, d: d.pop("num_points"), "decoded at each of 200"),
        (lambda _, d: d.pop("model"), "bank of this model"),
    ],
    ids=[
        "a third", "shifted", "nearly", "dtype", "none", "more", "nothing", "size", "no size",
        "no model",
    ],
)  # fmt: skip
def test_a_bank_with_checksums_of_something_else_is_refused(change, said, tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    reseal(tmp_path / "bank", change)
    vae = model()
    with pytest.raises(ModelFormatError, match=said):
        Bank.load(tmp_path / "bank", vae=vae)
    assert "bank" not in vae.kept


class Scaled(nn.Module):
    """A function that its weights, none, do not tell from another."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z):
        return self.factor * torch.cat([z + 3, z.square()], -1)


def test_the_bank_of_nearly_the_same_function_is_refused(tmp_path):
    one, other = (cc.VAE(Scaled(f), 2, cc.likelihoods.Gaussian(0.001)) for f in (1.0, 1.0009))
    Bank.of(one).save(tmp_path / "bank")
    with pytest.raises(ModelFormatError, match="that it does not output"):
        Bank.load(tmp_path / "bank", vae=other)


def test_loading_decodes_a_few_points_only(tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    vae, sizes = model(), []
    vae.decoder.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    Bank.load(tmp_path / "bank", vae=vae)
    assert sum(sizes) <= 64 + 1  # one to count what it takes


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: model(seed=1), "expected the bank of this model"),
        (lambda: model("logits"), "expected the bank of this model"),
        (lambda: cc.VAE(model().decoder, LATENT, LIKELIHOODS["tensor scale"]), "of this model"),
        (lambda: model(latent=2), "expected the bank of this model"),
        (
            lambda: cc.VAE(model().decoder.float(), LATENT, LIKELIHOODS["number"]),
            "expected the bank of this model",
        ),
    ],
    ids=["weights", "likelihood", "scale", "latent", "dtype"],
)
def test_another_models_bank_is_refused(other, said, tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    vae = other()
    with pytest.raises(ModelFormatError, match=said):
        Bank.load(tmp_path / "bank", vae=vae)
    assert "bank" not in vae.kept


def test_a_folder_that_is_no_bank_is_refused(tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    with pytest.raises((ModelFormatError, FileNotFoundError)):
        Bank.load(tmp_path / "nowhere", vae=model())
    for path in (tmp_path / "bank").iterdir():
        if path.suffix == ".json":
            description = json.loads(path.read_text())
            path.write_text(json.dumps(description)[:-5])
    with pytest.raises(ModelFormatError):
        Bank.load(tmp_path / "bank", vae=model())


def test_a_folder_whose_tensors_are_cut_is_refused(tmp_path):
    Bank.of(model()).save(tmp_path / "bank")
    for path in (tmp_path / "bank").iterdir():
        if path.suffix == ".safetensors":
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFormatError):
        Bank.load(tmp_path / "bank", vae=model())


# ---- other likelihoods ---------------------------------------------------------------------------


class Table(nn.Module):
    """Columns of five kinds, more of them than one digit numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, 24)).double()
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=seeded(index))

    def forward(self, z):
        return self.layers(z)


COLUMNS = cc.likelihoods.Mixed(
    [
        *[cc.likelihoods.Poisson() for _ in range(6)],
        (cc.likelihoods.Gaussian(0.5), 2),
        *[(cc.likelihoods.Categorical(3, one_hot=True), 3) for _ in range(2)],
        *[cc.likelihoods.Categorical(2) for _ in range(3)],
        *[cc.likelihoods.StudentT(4.0, 0.5) for _ in range(4)],
    ]
)


def table() -> tuple[cc.VAE, torch.Tensor, torch.Tensor]:
    vae = cc.VAE(Table(), LATENT, COLUMNS)
    values = vae.sample_prior(4, seed=0)
    mask = torch.rand(values.shape, generator=seeded(2)) < 0.5
    mask[:, 8:11], mask[:, 11:14] = mask[:, 8:9], mask[:, 11:12]
    return vae, torch.where(mask, values, 0.0), mask


def test_the_bank_of_a_table_is_that_of_its_columns_and_is_saved(tmp_path):
    vae, values, mask = table()
    bank = Bank.of(vae)
    params = vae.decode_flat(bank.points).unsqueeze(1).expand(-1, 4, -1)
    expected = vae.flat_likelihood.masked_log_prob(params, values, mask)
    torch.testing.assert_close(bank.log_likelihood(values, mask), expected)
    bank.save(tmp_path / "bank")
    loaded = Bank.load(tmp_path / "bank", vae=vae)  # 20 kept tensors, in their order
    assert torch.equal(loaded.log_likelihood(values, mask), bank.log_likelihood(values, mask))


@pytest.mark.parametrize("budget", [10_000, 40_000])
def test_the_bank_of_counts_and_classes_is_bounded_by_what_it_keeps(budget):
    """Counts keep two numbers of double precision, classes one for each class."""
    likelihoods = cc.likelihoods
    for likelihood, shape in (
        (likelihoods.Poisson(), (6,)),
        (likelihoods.Categorical(10), (6, 10)),
        (likelihoods.Gaussian(0.1), (6,)),
    ):
        size = torch.Size(shape).numel()
        vae = cc.VAE(nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape)), 2, likelihood)
        assert Bank.of(vae, max_bytes=budget).num_bytes <= budget
