"""The rational-quadratic spline: monotone, its inverse and derivative, the identity outside."""

import pytest
import torch
from problems import seeded

from crosscoding.bijections import spline, spline_inverse

every_scale = pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])


def parameters(*shape, scale=1.0, bins=6, dtype=torch.double):
    generator = seeded(0)
    return tuple(
        scale * torch.randn(*shape, size, generator=generator, dtype=dtype)
        for size in (bins, bins, bins - 1)
    )


def grid(num=4001, dtype=torch.double):
    return torch.linspace(-7, 7, num, dtype=dtype)


@every_scale
def test_it_is_increasing_and_the_inverse_undoes_it(scale):
    x = grid()
    params = [p.expand(len(x), -1) for p in parameters(scale=scale)]
    y, ladj = spline(x, *params)
    assert (y.diff() > 0).all()
    again, ladj_again = spline_inverse(y, *params)
    # where it is nearly flat, slope 1e-3, the error of x is a thousand times that of y
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ladj_again, ladj, rtol=1e-5, atol=1e-5)


@every_scale
def test_ladj_is_that_of_autograd(scale):
    x = grid().requires_grad_()
    y, ladj = spline(x, *(p.expand(len(x), -1) for p in parameters(scale=scale)))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log())


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_value_and_slope_are_continuous_at_knots_and_ends(scale):
    """Both sides of every kink of the second derivative, 5 and −5 among them."""
    widths, heights, slopes = parameters(scale=scale)
    shares = 1e-3 / 6 + (1 - 1e-3) * widths.softmax(-1)
    knots = torch.cat([torch.tensor([-5.0]).double(), 10 * shares.cumsum(-1) - 5])
    torch.testing.assert_close(knots[-1], torch.tensor(5.0).double())
    sides = torch.stack([knots - 1e-9, knots + 1e-9])
    params = [p.expand(2, len(knots), -1) for p in (widths, heights, slopes)]
    y, ladj = spline(sides, *params)
    # 1e-9 times slopes of up to 1e3, and second derivatives beyond
    torch.testing.assert_close(y[0], y[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ladj[0], ladj[1], rtol=0, atol=1e-3)


def test_outside_its_bounds_it_is_the_identity():
    x = torch.tensor([-1e6, -5.001, -5.0, 5.0, 5.001, 1e6]).double()
    params = [p.expand(len(x), -1) for p in parameters()]
    for function in (spline, spline_inverse):
        y, ladj = function(x, *params)
        assert torch.equal(y, x)
        assert torch.equal(ladj, torch.zeros_like(ladj))


def test_parameters_of_zero_give_the_identity():
    x = grid()
    y, ladj = spline(x, *(0 * p.expand(len(x), -1) for p in parameters()))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [spline, spline_inverse])
def test_gradients_are_those_of_finite_differences(function):
    x = 3 * torch.randn(5, 2, generator=seeded(3), dtype=torch.double)
    leaves = [t.requires_grad_() for t in (x, *parameters(5, 2))]
    torch.autograd.gradcheck(lambda *args: function(*args), leaves)


@every_scale
def test_gradients_are_finite_in_single_precision(scale):
    x = grid(dtype=torch.float32).requires_grad_()
    params = [p.expand(len(x), -1) for p in parameters(scale=scale, dtype=torch.float32)]
    for function in (spline, spline_inverse):
        y, ladj = function(x, *params)
        (gradient,) = torch.autograd.grad(y.sum() + ladj.sum(), x)
        assert gradient.isfinite().all()


def test_each_element_has_its_own_spline():
    x, params = torch.randn(7, 3, generator=seeded(1), dtype=torch.double), parameters(7, 3)
    y, ladj = spline(x, *params)
    for i in range(7):
        for j in range(3):
            alone = spline(x[i, j], *(p[i, j] for p in params))
            torch.testing.assert_close(alone, (y[i, j], ladj[i, j]))
