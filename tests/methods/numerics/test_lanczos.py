"""Eigenvalues from products alone, equal ones included, and the mean of the rest."""

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.methods.numerics.lanczos import NUM_PROBES, lanczos, mean_of_rest


def curvature_of(values: list[float], dim: int = 50) -> Tensor:
    """A matrix with these eigenvalues above 1, and 1 elsewhere."""
    wide = torch.randn(dim, len(values), generator=seeded(0), dtype=torch.double)
    directions = torch.linalg.qr(wide).Q
    added = torch.tensor(values, dtype=torch.double) - 1
    return torch.eye(dim).double() + directions * added @ directions.mT


@pytest.mark.parametrize("values", [[6.0] * 10, [6.0] * 4 + [9.0] * 6, list(range(2, 12)), []])
def test_directions_that_evidence_narrows_equally_are_all_found(values):
    """One chain of products has one vector of each eigenvalue's."""
    curvature, like = curvature_of(values), torch.zeros(1, 50, dtype=torch.double)
    basis, bend = lanczos(
        lambda v: v @ curvature, like, 50, generator=seeded(1), stop=lambda: False
    )
    assert basis.shape[-1] <= 2 * len(values) + 3
    found = torch.linalg.eigvalsh(bend)[0]
    expected = torch.tensor(sorted(values), dtype=torch.double)
    torch.testing.assert_close(found[found > 1.5], expected)
    identity = torch.eye(basis.shape[-1], dtype=torch.double)
    torch.testing.assert_close(basis[0].mT @ basis[0], identity, rtol=0, atol=1e-12)


def test_the_largest_come_first_and_the_mean_of_the_rest_is_that_of_the_trace():
    values = [4.0**k for k in range(1, 9)] + [1.0 + 0.02 * k for k in range(42)]
    curvature, like = curvature_of(values), torch.zeros(1, 50, dtype=torch.double)

    def product(v: Tensor) -> Tensor:
        return v @ curvature

    basis, bend = lanczos(product, like, 20, generator=seeded(1), stop=lambda: False)
    found = torch.linalg.eigvalsh(bend)[0]
    torch.testing.assert_close(found[-8:], torch.tensor(values[:8], dtype=torch.double))
    left = (curvature.trace() - found.sum()) / 30
    mean = mean_of_rest(product, basis, NUM_PROBES, seeded(2))
    # Eigenvalues of 1 to 2 are left: eight probes of 30 dimensions tell their mean to 2 %.
    torch.testing.assert_close(mean, left[None], rtol=0.06, atol=0)


def test_each_query_stops_when_it_is_done_and_all_stop_when_told_to():
    both = torch.stack([curvature_of([9.0, 5.0]), curvature_of([9.0, 7.0, 5.0, 3.0])])
    like = torch.zeros(2, 50, dtype=torch.double)

    def product(v: Tensor) -> Tensor:
        return (both @ v[..., None])[..., 0]

    basis, _ = lanczos(product, like, 50, generator=seeded(1), stop=lambda: False)
    there = basis.square().sum(1) > 0.5
    # One more is of what is left, and one sees that it is all.
    assert there.sum(-1).tolist() == [4, 6]
    alone, _ = lanczos(lambda v: v @ both[0], like[:1], 50, generator=seeded(1), stop=lambda: False)
    torch.testing.assert_close(alone[0], basis[0, :, :4])
    asked = iter([False, False, True])
    basis, bend = lanczos(product, like, 50, generator=seeded(1), stop=lambda: next(asked))
    assert basis.shape == (2, 50, 3)
    assert bend.shape == (2, 3, 3)
