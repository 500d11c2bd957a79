"""Kernel MMD: unbiased, equal to its double loop, and sensitive to more than the mean (trap 3)."""

import itertools
import math

import pytest
import torch
from problems import mixture_target, seeded
from torch import Tensor

from crosscoding.diagnostics import kernel_mmd


def normal(num: int, dim: int = 2, *, seed: int = 0) -> Tensor:
    return torch.randn(num, dim, generator=seeded(seed), dtype=torch.double)


def plain_mmd(first: Tensor, second: Tensor) -> float:
    """Gretton et al. (2012), eq. 3, by loops over lists of numbers."""
    a, b = first.tolist(), second.tolist()
    distances = sorted(math.dist(p, q) for p, q in itertools.combinations(a + b, 2))
    h = distances[(len(distances) - 1) // 2]

    def k(p: list[float], q: list[float]) -> float:
        return math.exp(-(math.dist(p, q) ** 2) / (2 * h * h))

    n, m = len(a), len(b)
    within_a = sum(k(p, q) for p, q in itertools.permutations(a, 2)) / (n * (n - 1))
    within_b = sum(k(p, q) for p, q in itertools.permutations(b, 2)) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(p, q) for p in a for q in b) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (30, 30), (17, 40)])
def test_kernel_mmd_is_the_plain_double_loop(n, m):
    first, second = normal(n), normal(m, seed=1) + 0.5
    # cdist expands squares, which costs digits against the loop's hypotenuse
    assert kernel_mmd(first, second).item() == pytest.approx(plain_mmd(first, second), abs=1e-7)


def test_kernel_mmd_of_one_distribution_is_zero_on_average_and_often_negative():
    values = torch.stack(
        [kernel_mmd(normal(40, seed=2 * i), normal(40, seed=2 * i + 1)) for i in range(120)]
    )
    error = values.std() / math.sqrt(120)
    assert values.mean().abs() < 4 * error  # a biased estimate is 1 / 40 above, tens of errors
    assert error < 2e-3
    assert 0.3 < (values < 0).double().mean() < 0.9  # skewed to the right: more often below


def test_kernel_mmd_of_different_distributions_is_positive():
    assert kernel_mmd(normal(300), normal(300, seed=1) + 1).item() > 0.05


@pytest.mark.parametrize("shape", ["wide", "two modes", "correlated"])
def test_kernel_mmd_detects_shape_when_the_means_are_equal(shape):
    """Trap 3: the distance between the two means is 0 here, and the distributions differ."""
    first, second = normal(400), normal(400, seed=1)
    if shape == "wide":
        second = 3 * second
    elif shape == "two modes":
        second = 0.3 * second + torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).double().repeat(200, 1)
    else:
        second[:, 1] = 0.95 * second[:, 0] + math.sqrt(1 - 0.95**2) * second[:, 1]
    first, second = first - first.mean(0), second - second.mean(0)
    null = [kernel_mmd(normal(400, seed=i), normal(400, seed=i + 50)).item() for i in range(2, 12)]
    assert kernel_mmd(first, second).item() > 3 * max(map(abs, null))


def test_kernel_mmd_detects_a_missed_mode():
    target = mixture_target()
    first, second, third = (target.sample(500, generator=seeded(i)) for i in range(3))
    near = second[target.means[-1].sub(second).norm(dim=-1) > 2]
    assert kernel_mmd(first, near).item() > 5 * abs(kernel_mmd(first, third).item())


def test_kernel_mmd_is_symmetric_and_invariant_to_order_shift_and_scale():
    first, second = normal(40), normal(30, seed=1) + 1
    value = kernel_mmd(first, second)
    torch.testing.assert_close(kernel_mmd(second, first), value)
    torch.testing.assert_close(kernel_mmd(first.flip(0), second), value)
    # the median bandwidth moves and scales with the draws
    torch.testing.assert_close(kernel_mmd(5 * first + 3, 5 * second + 3), value)


def test_kernel_mmd_of_points_that_are_all_the_same_is_zero():
    assert kernel_mmd(torch.ones(5, 2), torch.ones(4, 2)).item() == 0


def test_kernel_mmd_has_the_dtype_of_the_draws():
    assert kernel_mmd(normal(5).float(), normal(5, seed=1).float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("first", "second"), [((5,), (5,)), ((1, 2), (5, 2)), ((5, 2), (5, 3)), ((5, 2, 1), (5, 2))]
)
def test_sets_of_draws_that_cannot_be_compared_are_refused(first, second):
    with pytest.raises(ValueError, match=r"two sets of draws of shape \(N, dim\), N >= 2, got"):
        kernel_mmd(torch.zeros(first), torch.zeros(second))
