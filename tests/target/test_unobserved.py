"""Unobserved elements do not affect p(z|x), whatever the decoder outputs for them."""

import math

import pytest
import torch
from cheap_methods import LISTED, every_method_one_fit
from overflowing import DTYPES, Columns, evidence
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Gaussian
from crosscoding.methods import Auto, Grid, TemperedSMC

SOME = ["auto", "grid", "hmc", "gvi", "laplace", "smc"]


def both_answers(method, values: list[float], dtype: torch.dtype) -> list[cc.Posterior]:
    return [
        cc.condition(
            cc.VAE(Columns(dtype, overflows=overflows), 1, Gaussian(0.5)),
            evidence(values, 3 + overflows, dtype),
            method,
            seed=0,
        )
        for overflows in (True, False)
    ]


@every_method_one_fit
def test_an_unobserved_column_that_overflows_changes_no_bit(method):
    broken, without = both_answers(method, [0.3], torch.float32)
    for name in ("draws", "log_evidence", "c_elbo", "ess"):
        expected = getattr(without, name)
        torch.testing.assert_close(
            getattr(broken, name), expected, rtol=0, atol=0, equal_nan=True, msg=name
        )
    assert torch.equal(broken.trusted, without.trusted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[0.3], [0.3, -1.0]], ids=["()", "(2,)"])
def test_log_p_of_the_evidence_is_exact_beside_a_column_that_overflows(values, dtype):
    broken, without = both_answers(Auto(), values, dtype)
    variance = 0.25 + 0.7**2
    x = torch.tensor(values, dtype=torch.double)
    exact = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance))
    torch.testing.assert_close(
        broken.log_evidence.double().reshape(-1), exact, rtol=0, atol=0.002
    )  # −0.8292 for 0.3
    assert broken.trusted.all()
    assert torch.equal(broken.draws, without.draws)


class Classes(nn.Module):
    """Two classes, and perhaps a third that cannot be: its logit is −inf, or log 0."""

    def __init__(self, dtype: torch.dtype, third: str) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([[0.8, -0.5]], dtype=dtype))
        self.third = third

    def forward(self, z: Tensor) -> Tensor:
        logits = z * self.slope + 0.1
        if self.third == "":
            return logits[:, None]
        low = {"-inf": torch.full_like(z, -math.inf), "log 0": (z - z.abs() - z.abs()).relu().log()}
        return torch.cat([logits, low[self.third]], -1)[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("third", ["-inf", "log 0"])
@pytest.mark.parametrize("method", [LISTED[name] for name in SOME], ids=SOME)
def test_an_impossible_class_does_not_affect_the_observed_one(method, third, dtype):
    answers = [
        cc.condition(
            cc.VAE(Classes(dtype, which), 1, Categorical(2 + (which != ""))),
            evidence([0.0], 1, dtype),
            method,
            seed=0,
        )
        for which in (third, "")
    ]
    torch.testing.assert_close(answers[0].draws, answers[1].draws)
    torch.testing.assert_close(answers[0].log_evidence, answers[1].log_evidence, equal_nan=True)
    if isinstance(method, (Auto, Grid)):
        z = torch.linspace(-9, 9, 4001, dtype=torch.double)
        log_joint = nn.functional.logsigmoid(1.3 * z) - 0.5 * z.square()
        exact = (log_joint.exp().sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi)).log()
        assert abs(answers[0].log_evidence - exact) < 0.002
        assert answers[0].trusted
    unknown = cc.condition(
        cc.VAE(Classes(dtype, third), 1, Categorical(3)),
        cc.Evidence.from_nan(torch.full((1,), math.nan, dtype=dtype)),
        Grid(),
        seed=0,
    )
    assert set(unknown.predict(200, seed=0).flatten().tolist()) == {0.0, 1.0}
    assert unknown.mean().isfinite().all()
    assert unknown.query_log_prob(torch.zeros(1, dtype=dtype)).isfinite()
    assert unknown.query_log_prob(torch.full((1,), 2.0, dtype=dtype)) == -math.inf


class HalfPossible(nn.Module):
    """Of two classes the second can only be where z > 0."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([0 * z, torch.where(z < 0, -math.inf, z)], -1)[:, None]


@pytest.mark.parametrize("method", [Auto(), Grid()], ids=["auto", "grid"])
def test_a_class_that_is_impossible_for_half_of_the_prior(method):
    vae = cc.VAE(HalfPossible(), 1, Categorical(2))
    posterior = cc.condition(vae, evidence([1.0], 1, torch.float32), method, seed=0)
    assert abs(posterior.log_evidence + 1.0864) < 0.003  # by quadrature, and the mean 0.8973
    assert abs(posterior.sample(4000, seed=0).mean() - 0.897) < 0.05
    assert posterior.sample(4000, seed=0).min() > -0.05  # a grid's cell around 0


def test_evidence_that_no_z_allows_is_unreliable_or_raises():
    vae = cc.VAE(Classes(torch.float32, "-inf"), 1, Categorical(3))
    impossible = evidence([2.0], 1, torch.float32)
    answer = cc.condition(vae, impossible, seed=0)
    assert answer.log_evidence == -math.inf
    assert answer.verdicts[0].label == "unreliable"
    assert answer.verdicts[0].reasons[0].startswith("log p(x|z) is -inf at every z that was tried")
    words = r"evidence that is possible at some z, got log p.x.z. = -inf for query 0 at all"
    with pytest.raises(cc.NonFiniteError, match=words + r".*, -inf \(Categorical.*for element 0"):
        cc.condition(vae, impossible, TemperedSMC(160), seed=0)


def test_a_model_with_an_impossible_class_is_saved_loaded_and_checked(tmp_path):
    linear = nn.Linear(1, 3).requires_grad_(requires_grad=False)
    linear.weight.copy_(torch.tensor([[2.0], [-2.0], [0.0]]))
    linear.bias.copy_(torch.tensor([0.1, 0.0, -math.inf]))
    vae = cc.VAE(linear, 1, Categorical(3, one_hot=True))
    vae.save(tmp_path / "model")
    assert cc.load_vae(tmp_path / "model").decode(torch.zeros(1))[2] == -math.inf
    report = vae.check(vae.sample_prior(200, seed=0))
    assert report.ok, report


@pytest.mark.parametrize("method", [Auto(), Grid(), TemperedSMC()])
def test_an_observed_column_that_is_enormous_away_from_the_answer_is_answered(method):
    """log p(x) by quadrature in double."""
    vae = cc.VAE(Columns(torch.float32, overflows=True), 1, Gaussian(0.5))
    whole = cc.Evidence(torch.full((4,), 0.3), torch.ones(4, dtype=torch.bool))
    posterior = cc.condition(vae, whole, method, seed=0)
    assert abs(float(posterior.log_evidence) + 4.8299) < 0.02
    assert posterior.verdicts[0].label == "trusted"
