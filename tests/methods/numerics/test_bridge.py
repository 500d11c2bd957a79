"""Bridges: a target relative to a proposal instead of the prior."""

import torch
from problems import linear_gaussian_problem, seeded

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods.numerics.bridge import Bridge


def test_errors_at_a_point_are_those_of_the_target():
    problem = linear_gaussian_problem(2, batch=(1,))
    target = cc.VAETarget(problem.vae, problem.evidence).flatten()
    proposal = Gaussian.from_precision(torch.zeros(1, 2), torch.eye(2).double()[None])
    bridge = Bridge(target, proposal, 4, generator=seeded(0))
    point = torch.full((2,), torch.nan)
    assert bridge.explain(0, point) == target.explain(0, point)
