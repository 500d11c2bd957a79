"""Swarms: what particles in islands estimate."""

import torch
from problems import seeded

from crosscoding.methods.numerics.swarm import Swarm


def test_an_island_that_outweighs_all_others_has_no_more_draws_than_it_holds():
    nothing = torch.zeros(1)
    swarm = Swarm(
        z=torch.randn(80, 1, 3, generator=seeded(0)),
        log_likelihood=torch.zeros(80, 1),
        log_islands=torch.tensor([0.0, -50.0, -60.0, -70.0])[:, None],
        num_temperatures=nothing,
        acceptance=nothing,
        decodes=nothing,
        stuck=nothing > 0,
        reached=nothing == 0,
    )
    assert swarm.ess <= 20
    assert swarm.log_evidence_error > 0.5
    swarm.log_islands = torch.zeros(4, 1)
    assert 20 < swarm.ess <= 80
