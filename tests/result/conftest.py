"""Fixtures: problems whose posteriors are known."""

import pytest
from problems import linear_gaussian_problem

import crosscoding as cc
from crosscoding.methods import Grid


@pytest.fixture(scope="module")
def problem():
    """A 2-d linear-Gaussian problem of three queries."""
    return linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=(3,))


@pytest.fixture(scope="module")
def exact(problem):
    """Its posterior by Grid."""
    return cc.condition(problem.vae, problem.evidence, Grid(), seed=0)


@pytest.fixture(scope="module")
def digit_posterior():
    """Two half-seen digits."""
    vae = cc.zoo.load("mnist-2d")
    digits = cc.zoo.digits()[0][:2]
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    return cc.condition(vae, cc.Evidence(digits, mask), Grid(tolerance=0.01), seed=0)
