"""Cross-coders that are maps of the noise: the inverse, the log determinant, and its limits."""

import pytest
import torch
from crosscoder_families import B, every_bijective_family, every_map, fitted, points

from crosscoding.crosscoders import FCN, InverseAutoregressive


@every_map
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_ladj_is_that_of_autograd(family, dim):
    q, eps = fitted(family, dim), points(dim=dim)
    z, ladj = family.forward_and_ladj(q.params, eps)
    assert z.shape == eps.shape
    assert ladj.shape == (B,)
    jacobian = torch.autograd.functional.jacobian(
        lambda e: family.forward_and_ladj(q.params, e)[0], eps
    )
    for b in range(B):
        sign, expected = torch.linalg.slogdet(jacobian[b, :, b])
        assert sign == 1
        torch.testing.assert_close(ladj[b], expected)
        others = [a for a in range(B) if a != b]
        assert (jacobian[b][:, others] == 0).all()  # no query depends on another


@every_bijective_family
def test_the_inverse_undoes_the_map(family):
    q, eps = fitted(family), points(5, 7)
    z, ladj = family.forward_and_ladj(q.params, eps)
    again, ladj_again = family.inverse_and_ladj(q.params, z)
    assert ladj.shape == ladj_again.shape == (5, 7, B)
    # bisection stops at rounding, of which each planar layer can lose a digit or two
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-6, atol=1e-6)


@every_bijective_family
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_the_inverse_undoes_the_map_in_other_dimensions(family, dim):
    q, eps = fitted(family, dim), points(50, dim=dim)
    z, ladj = family.forward_and_ladj(q.params, eps)
    again, ladj_again = family.inverse_and_ladj(q.params, z)
    # as above
    torch.testing.assert_close(again, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-6, atol=1e-6)


def test_a_fold_of_the_fcn_costs_more_than_its_log_determinant():
    """z = ε + h with dh/dε = −2: the orientation is reversed, |det| = 1 and log |det| = 0.

    If they counted as 0, Algorithm 1 would find such folds and the "C-ELBO" exceed log p(x).
    """
    family, one = FCN((1,)), torch.ones(1, 1, 1, dtype=torch.double)
    params = {
        "shift": 0 * one[0],
        "log_scale": 0 * one[0],
        "weight_0": 1e-3 * one,
        "bias_0": 0 * one[0],
        "weight_1": -2e3 * one,
        "bias_1": 0 * one[0],
    }
    eps = torch.zeros(1, 1, 1, dtype=torch.double, requires_grad=True)
    z, ladj = family.forward_and_ladj(params, eps)
    (slope,) = torch.autograd.grad(z.sum(), eps)
    assert slope.item() == pytest.approx(-1)
    assert ladj.item() < -50
    assert ladj.isfinite().all()


@pytest.mark.parametrize("dim", [1, 2])
def test_the_fcns_log_determinant_is_smooth_where_it_becomes_a_line(dim):
    """Both sides of its kink: a determinant from 0.03 to −0.01, in a map that is linear there."""
    family = FCN((1,))
    zeros, ones = torch.zeros(1, dim).double(), torch.ones(1, 1, dim).double()

    def ladj_at(det: float) -> float:
        """z_1 = det · ε_1 near 0, and z_i = ε_i for the others."""
        first = torch.eye(dim)[0].double()
        params = {
            "shift": zeros,
            "log_scale": zeros,
            "weight_0": 1e-4 * ones * first,
            "bias_0": zeros[:, :1],
            "weight_1": (1e4 * (det - 1) * first).reshape(1, dim, 1),
            "bias_1": zeros,
        }
        return family.forward_and_ladj(params, zeros[None])[1].item()

    dets = torch.linspace(-0.01, 0.03, 401).tolist()
    ladj = torch.tensor([ladj_at(det) for det in dets], dtype=torch.double)
    steps = ladj.diff()
    assert (steps > 0).all()  # always better to unfold
    assert (steps.diff().abs() < 1e-2 * 1.01).all()  # no jump and no corner
    above = torch.tensor(dets) > 0.0101
    expected = torch.tensor(dets).double()[above].log()
    torch.testing.assert_close(ladj[above], expected, rtol=1e-5, atol=1e-5)  # dets are float32


def test_an_autoregressive_flow_depends_only_on_earlier_elements():
    family, dim = InverseAutoregressive(12, layers=1), 5
    q, eps = fitted(family, dim), points(dim=dim)
    jacobian = torch.autograd.functional.jacobian(
        lambda e: family.forward_and_ladj(q.params | {"lower": 0 * q.params["lower"]}, e)[0], eps
    )
    for b in range(B):
        own = jacobian[b, :, b]
        assert torch.equal(own, own.tril())
        assert (own.tril()[torch.ones(dim, dim).tril().bool()] != 0).all()
