"""Adapted mixtures: they are fitted to each query's draws, whatever these are."""

import pytest
import torch
from problems import linear_gaussian_problem, seeded

from crosscoding.methods.numerics.adapted_mixture import adapt


@pytest.mark.parametrize("axis", [0, slice(None)], ids=["one axis", "all"])
def test_identical_draws_can_be_adapted_to_without_affecting_other_queries(axis):
    """Particles that no step moved coincide: there is no covariance to fit."""
    problem = linear_gaussian_problem(3, data_dim=8, scale=0.3, batch=3, dtype=torch.double)
    target = problem.target
    draws = torch.randn(64, 3, 3, generator=seeded(0), dtype=torch.double)
    draws[:, 1, axis] = draws[0, 1, axis]

    def adapted(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        some = draws[:, rows]
        return adapt(
            target.select(rows),
            some,
            torch.zeros_like(some[..., 0]),
            components=2,
            rounds=2,
            num_draws=200,
            generator=seeded(1),
        ).params

    together = adapted(torch.arange(3))
    for query in range(3):
        alone = adapted(torch.tensor([query]))
        for name, value in together.items():
            assert value.isfinite().all()
            # In double, sums in another order are 1e-16 apart.
            torch.testing.assert_close(value[[query]], alone[name], rtol=1e-8, atol=1e-8)
