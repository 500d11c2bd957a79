"""Gradients in which 0 times an infinite derivative is 0."""

import math

import pytest
import torch
from torch import Tensor

from crosscoding.target.guarded_gradient import gradient

Z = torch.tensor([[0.3, -0.2], [40.0, -1.5]])  # exp(z₁²) overflows in the second row


def lines(z: Tensor) -> Tensor:
    return torch.stack([z.sin().sum(-1), (0.3 * z).prod(-1)], -1)


OVERFLOWS = {
    "exp": lambda z: z.square().exp(),
    "log of what is 0": lambda z: (z - 40).abs().log(),
    "root of what is below 0": lambda z: (39 - z).sqrt(),
    "a ratio": lambda z: 1 / (z - 40),
    "a power": lambda z: z.pow(70),
    "a constant in front": lambda z: 3 * z.square().expm1() + z,
    "sinh": lambda z: (3 * z).sinh(),
    "softplus of infinity": lambda z: torch.nn.functional.softplus(z.square().exp()),
}


@pytest.mark.parametrize("broken", OVERFLOWS.values(), ids=OVERFLOWS)
def test_an_output_of_weight_0_does_not_affect_the_gradient(broken):
    def function(z: Tensor) -> Tensor:
        return torch.cat([lines(z), broken(z[:, :1])], -1)

    _, wanted = gradient(lines, Z)
    value, found = gradient(function, Z, lambda v: torch.ones_like(v) * torch.tensor([1.0, 1, 0]))
    assert torch.equal(value[:, :2], lines(Z))
    assert torch.equal(found, wanted)


def test_a_derivative_that_counts_stays_nan_or_infinite():
    _, slope = gradient(lambda z: (39 - z[:, 0]).sqrt(), Z)
    assert slope[1, 0].isnan()
    _, slope = gradient(lambda z: (z[:, 0] - 40).abs().sqrt() + z[:, 1], Z)
    assert not slope[1, 0].isfinite() or slope[1, 0] == 0
    assert slope[1, 1] == 1


def test_it_is_autograds_gradient_where_that_is_finite():
    z = Z[:1].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(lines(z).sum(), z)
    value, found = gradient(lines, Z[:1])
    assert torch.equal(found, wanted)
    assert not value.requires_grad


def test_a_function_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"torch can differentiate, got.*remove detach"):
        gradient(lambda z: z.detach(), Z)
    assert math.isfinite(gradient(lambda z: z.square(), Z)[1].sum())
