"""Flow priors: which maps are taken, and every refusal."""

import subprocess
import sys

import pytest
import torch
from prior_cases import Sinh, bent, drawn, transformed
from problems import seeded
from torch import distributions, nn

from crosscoding.crosscoders import FCN, Mixture, Planar, fit_to_draws
from crosscoding.priors import Flow


def test_log_prob_is_that_of_the_distribution():
    flow, wanted = Flow(transformed()), transformed()
    z = flow.from_noise(drawn(9, 2))
    torch.testing.assert_close(flow.log_prob(z), wanted.log_prob(z))


@pytest.mark.slow
def test_a_fitted_crosscoder_keeps_its_density():
    fitted = fit_to_draws(Planar(3), bent(), generator=seeded())
    z = drawn(9, 2)
    torch.testing.assert_close(Flow(fitted).log_prob(z), fitted.log_prob(z[:, None])[:, 0])


def test_maps_are_applied_in_turn():
    noise, first = drawn(4, 2), Sinh()
    flow = Flow([first, distributions.ExpTransform()], latent_dim=2)
    torch.testing.assert_close(flow.from_noise(noise), first.forward_and_ladj(noise)[0].exp())


def test_flows_of_zuko():
    zuko = pytest.importorskip("zuko", reason="needs zuko")
    module = zuko.flows.NSF(3).double()
    flow, noise = Flow(module), drawn(9, 3)
    z = flow.from_noise(noise)
    torch.testing.assert_close(flow.to_noise(z), noise)
    torch.testing.assert_close(flow.log_prob(z), module().log_prob(z))


class LikeZuko(nn.Module):
    """A module that makes a distribution with a transform from z to noise, as flows of zuko."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.double))

    def forward(self):
        return Made(self.log_scale.exp())


class Made(distributions.Distribution):
    def __init__(self, scale):
        super().__init__(event_shape=torch.Size((2,)), validate_args=False)
        self.transform = distributions.AffineTransform(0.1, scale)
        self.base = distributions.Independent(
            distributions.Normal(torch.zeros(2).double(), torch.ones(2).double()), 1
        )

    def log_prob(self, value):
        ladj = self.transform.log_abs_det_jacobian(value, value).sum(-1)
        return self.base.log_prob(self.transform(value)) + ladj


def test_modules_that_make_distributions():
    flow, noise = Flow(LikeZuko()), drawn(9, 2)
    z = flow.from_noise(noise)
    torch.testing.assert_close(flow.to_noise(z), noise)
    wanted = distributions.Normal(0, 1).log_prob(noise).sum(-1) + 0.2
    torch.testing.assert_close(flow.log_prob(z), wanted)
    assert [name for name, _ in flow.named_parameters()] == ["bijection.module.log_scale"]


def uniform() -> distributions.Distribution:
    base = distributions.Uniform(torch.zeros(2), torch.ones(2))
    return distributions.Independent(base, 1)


@pytest.mark.parametrize(
    ("flow", "error", "words"),
    [
        (lambda: 3, TypeError, "got int"),
        (list, TypeError, "got list"),
        (lambda: nn.Linear(2, 2), TypeError, "makes a distribution when it is called"),
        (uniform, ValueError, "whose base distribution is normal, got Uniform"),
        (lambda: distributions.Normal(0.0, 1.0), ValueError, "event shape"),
        (lambda: distributions.Normal(torch.zeros(2), torch.ones(2)), ValueError, "Independent"),
        (
            lambda: fit_to_draws(Mixture(2), bent(), generator=seeded()),
            ValueError,
            "one-to-one map, .* got Mixture",
        ),
        (
            lambda: fit_to_draws(Planar(2), bent().expand(-1, 2, -1), generator=seeded()),
            ValueError,
            "fitted to one query, got one of 2",
        ),
        (Sinh, ValueError, "latent_dim"),
    ],
)
def test_refusals(flow, error, words):
    with pytest.raises(error, match=words):
        Flow(flow())


def test_a_map_that_may_fold_is_refused():
    from crosscoding.crosscoders.base import Fitted

    ones = torch.ones(1, 2)
    fitted = Fitted(FCN(), FCN().start(ones, ones, generator=seeded()), 2)
    with pytest.raises(ValueError, match="got FCN"):
        Flow(fitted)


def test_importing_priors_loads_no_library_of_flows():
    code = "import sys, crosscoding.priors; print('zuko' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
