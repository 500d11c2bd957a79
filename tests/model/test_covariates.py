"""Decoders that take covariates: every answer is that of the decoder with its covariates fixed."""

import pytest
import torch
from cheap_methods import cheap
from labelled_decoders import (
    DATA,
    EVIDENCE,
    LABELS,
    MASK,
    NUM_LABELS,
    ROUNDING,
    Labelled,
    fixed,
    labelled,
)
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.methods import METHODS


class Styled(nn.Module):
    """A decoder of z and a dict: a label and a style of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Labelled(4)

    def forward(self, z: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.inner(torch.cat([z, given["style"]], -1), given["label"])


@pytest.mark.parametrize(
    "name", [name for name, entry in METHODS.items() if entry.method.takes_continuous]
)
@pytest.mark.slow
def test_every_method_answers_as_with_the_label_fixed(name):
    method = cheap(METHODS[name].method)
    together = cc.condition(labelled(), EVIDENCE, method, seed=0)
    for label in range(NUM_LABELS):
        own = (label == LABELS).nonzero()[:, 0]
        alone = cc.condition(fixed(label), cc.Evidence(DATA[own], MASK[own]), method, seed=0)
        for figure in ("log_evidence", "c_elbo"):
            here, there = getattr(together, figure)[own], getattr(alone, figure)
            torch.testing.assert_close(here, there, equal_nan=True, **ROUNDING)
        if len(together.draws) == len(alone.draws):  # a grid has as many as its largest query
            torch.testing.assert_close(together.draws[:, own], alone.draws, **ROUNDING)
        torch.testing.assert_close(together.mean()[own], alone.mean(), **ROUNDING)


def test_mixed_labels_are_answered_as_one_by_one():
    vae = labelled()
    together = cc.condition(vae, EVIDENCE, seed=0)
    for query in range(6):
        alone = cc.condition(
            vae, cc.Evidence(DATA[query], MASK[query], given=LABELS[query]), seed=0
        )
        torch.testing.assert_close(together.log_evidence[query], alone.log_evidence, **ROUNDING)
        torch.testing.assert_close(together.draws[:, query], alone.draws, **ROUNDING)


@pytest.mark.parametrize("name", ["auto", "smc", "importance", "grid", "rejection", "gvi"])
def test_covariates_that_no_example_has(name):
    """Their points are decoded for each query, which gives the same answers within their errors."""
    method = cheap(METHODS[name].method)
    vae = labelled(given=torch.tensor([0]))
    posterior = cc.condition(vae, EVIDENCE, method, seed=0)
    usual = cc.condition(labelled(), EVIDENCE, method, seed=0)
    error = torch.hypot(posterior.log_evidence_error, usual.log_evidence_error)
    gap = (posterior.log_evidence - usual.log_evidence).abs()
    assert not (gap > 5 * error + 0.02).any()  # NaN where the method gives none
    alone = cc.Evidence(DATA[1], MASK[1], given=LABELS[1])
    torch.testing.assert_close(
        cc.condition(vae, alone, method, seed=0).log_evidence,
        posterior.log_evidence[1],
        equal_nan=True,
        **ROUNDING,
    )


def test_the_last_layer_is_split_off():
    vae = labelled()
    assert vae.head is not None
    few = torch.arange(8) < 2
    posterior = cc.condition(vae, cc.Evidence(DATA, few, given=LABELS), seed=0)
    for label in range(NUM_LABELS):
        own = label == LABELS
        alone = cc.condition(fixed(label), cc.Evidence(DATA[own], few), seed=0)
        torch.testing.assert_close(posterior.log_evidence[own], alone.log_evidence, **ROUNDING)


def test_covariates_in_a_dict():
    given = {"label": LABELS, "style": torch.randn(6, 2, generator=seeded()).double()}
    vae = cc.VAE(Styled(), 2, Gaussian(0.4), given=given)
    posterior = cc.condition(vae, cc.Evidence(DATA, MASK, given=given), seed=0)
    query = 3

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Styled()

        def forward(self, z):
            return self.inner(
                z, {k: v[query].expand(len(z), *v.shape[1:]) for k, v in given.items()}
            )

    alone = cc.condition(
        cc.VAE(One(), 2, Gaussian(0.4)), cc.Evidence(DATA[query], MASK[query]), seed=0
    )
    torch.testing.assert_close(posterior.log_evidence[query], alone.log_evidence, rtol=0, atol=0.01)


def test_batches_of_any_shape():
    shaped = cc.Evidence(DATA.reshape(2, 3, 8), MASK.reshape(2, 3, 8), given=LABELS.reshape(2, 3))
    posterior, flat = (cc.condition(labelled(), e, seed=0) for e in (shaped, EVIDENCE))
    assert torch.equal(posterior.log_evidence.flatten(), flat.log_evidence)
    assert posterior.predict(5, seed=0).shape == (5, 2, 3, 8)
    assert torch.equal(posterior.predict(5, seed=0).reshape(5, 6, 8), flat.predict(5, seed=0))


@pytest.mark.slow
def test_query_log_prob_and_calibration_know_the_covariates():
    posterior = cc.condition(labelled(), EVIDENCE, seed=0)
    found, error = cc.query_log_prob(posterior, DATA, seed=0)
    average = posterior.query_log_prob(DATA)
    assert ((found - average).abs() < 5 * error + 0.2).all()
    report = cc.calibrate(labelled(), MASK[0], num=60, seed=0)
    assert report.p_value() > 0.005


def test_decoding_takes_covariates_that_broadcast():
    vae, z = labelled(), torch.randn(4, 6, 2, generator=seeded()).double()
    decoded = vae.decode(z, LABELS)
    assert decoded.shape == (4, 6, 8)
    for query, label in enumerate(LABELS.tolist()):
        torch.testing.assert_close(decoded[:, query], fixed(label).decode(z[:, query]))
    torch.testing.assert_close(vae.decode(z[0, 0], LABELS[1]), fixed(2).decode(z[0, 0]))
    torch.testing.assert_close(vae.decode(z, LABELS[1]), fixed(2).decode(z))
    assert torch.equal(vae.decode(z, LABELS.numpy()), decoded)


def test_models_and_posteriors_are_saved_with_covariates(tmp_path):
    vae = labelled()
    posterior = cc.condition(vae, EVIDENCE, seed=0)
    with pytest.warns(UserWarning, match="the decoder is not a stack"):
        posterior.save(tmp_path / "answer")
    loaded = cc.Posterior.load(tmp_path / "answer", vae=vae)
    assert torch.equal(loaded.target.evidence.given, LABELS)
    assert torch.equal(loaded.predict(9, seed=1), posterior.predict(9, seed=1))
    with pytest.raises(cc.ModelFormatError, match="without covariates"):
        cc.Posterior.load(tmp_path / "answer", vae=fixed(1))
    with pytest.warns(UserWarning, match="only the weights of the decoder"):
        vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model", decoder=Labelled())
    assert torch.equal(again.examples, vae.examples)
    assert torch.equal(again.sample_prior(9, seed=1), vae.sample_prior(9, seed=1))


def test_nested_examples_are_saved(tmp_path):
    given = {"label": LABELS, "style": torch.randn(6, 2, generator=seeded()).double()}
    vae = cc.VAE(Styled(), 2, Gaussian(0.4), given=given)
    vae.save(tmp_path / "model", decoder_arguments={})
    again = cc.load_vae(tmp_path / "model", decoder=Styled())
    assert {k: v.tolist() for k, v in again.examples.items()} == {
        k: v.tolist() for k, v in vae.examples.items()
    }


def test_examples_are_kept_once_and_at_most_64():
    assert labelled(given=LABELS).examples.tolist() == [0, 2, 1]
    assert labelled(given=LABELS.numpy()).examples.tolist() == [0, 2, 1]

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 8)

        def forward(self, z, given):
            return self.inner(z) + given

    vae = cc.VAE(Shifted(), 2, Gaussian(0.4), given=torch.randn(100, 8, generator=seeded()))
    assert vae.examples.shape == (64, 8)


def evidence(given=None) -> cc.Evidence:
    return cc.Evidence(DATA, MASK, given=given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "expected evidence with covariates"),
        (LABELS[:3], r"batch shape \(6,\), got \(3,\)"),
        (LABELS[0], r"batch shape \(6,\), got \(\)"),
        (LABELS.float(), "covariates of torch.int64, like the model's examples, got torch.float32"),
        (LABELS[:, None].expand(6, 2), r"batch shape \(6,\), got \(6, 2\)"),
        (LABELS + 5, "decoder takes, but it failed for 5"),
        ({"label": LABELS}, "nested as in the model's examples, a tensor, got a dict of 'label'"),
        ((LABELS, LABELS), "got a tuple of 2"),
    ],
)
def test_refused_covariates(given, words):
    with pytest.raises(ValueError, match=words):
        cc.condition(labelled(), evidence(given))


def test_covariates_for_a_decoder_that_takes_none_are_refused():
    with pytest.raises(ValueError, match="without covariates, as the model's decoder takes only z"):
        cc.condition(fixed(0), evidence(LABELS))
    with pytest.raises(ValueError, match="no covariates, as the model's decoder takes only z"):
        fixed(0).decode(torch.zeros(6, 2).double(), LABELS)
    with pytest.raises(ValueError, match="takes some beside z"):
        labelled().decode(torch.zeros(6, 2).double())
    with pytest.raises(ValueError, match=r"broadcast to \(6,\), got \(3,\)"):
        labelled().decode(torch.zeros(6, 2).double(), LABELS[:3])


class Crowd(nn.Module):
    """A decoder that mixes the covariates of a batch."""

    def __init__(self):
        super().__init__()
        self.inner = Labelled()

    def forward(self, z, label):
        return self.inner(z, label) + label.double().mean()


@pytest.mark.parametrize(
    ("decoder", "given", "error", "words"),
    [
        (Labelled, torch.tensor(3), ValueError, r"one row each, .* got shape \(\)"),
        (Labelled, torch.zeros(0).long(), ValueError, "N >= 1"),
        (
            Labelled,
            3,
            TypeError,
            "expected covariates to be a torch.Tensor or a NumPy array, got int",
        ),
        (Labelled, {}, TypeError, "got nothing"),
        (Labelled, (LABELS, LABELS[:2]), ValueError, r"\(6,\), \(2,\)"),
        (Labelled, torch.tensor([0.0, torch.nan]), ValueError, "finite covariates"),
        (Labelled, torch.tensor([0, 7]), ValueError, "all 2 examples of covariates at once"),
        (Labelled, None, ValueError, r"VAE\(\.\.\., given=\.\.\.\)"),
        (lambda: nn.Linear(2, 8), LABELS, ValueError, "called as decoder"),
        (Crowd, LABELS, ValueError, "depends only on the z and the covariates of that row"),
    ],
)
def test_refused_models(decoder, given, error, words):
    with pytest.raises(error, match=words):
        cc.VAE(decoder(), 2, Gaussian(0.4), given=given)


def test_what_covariates_do_not_support_says_so():
    vae = labelled()
    with pytest.raises(ValueError, match="expected data for these covariates"):
        vae.check(given=LABELS)
    with pytest.raises(ValueError, match="keeps a bank for each of its examples by itself"):
        cc.Bank.of(vae)
    with pytest.raises(ValueError, match="no encoder for a decoder that takes covariates"):
        labelled(encoder=nn.Linear(8, 4))


def test_evidence_carries_covariates():
    assert EVIDENCE[2:4].given.tolist() == [1, 1]
    shaped = cc.Evidence(DATA.reshape(2, 3, 8), MASK.reshape(2, 3, 8), given=LABELS.reshape(2, 3))
    assert shaped.flatten(1).given.tolist() == LABELS.tolist()
    assert cc.Evidence(DATA, MASK, given=LABELS.numpy()).given.tolist() == LABELS.tolist()
    assert cc.Evidence(DATA, MASK).given is None
    assert cc.Evidence.from_nan(DATA, given=LABELS).given.tolist() == LABELS.tolist()
