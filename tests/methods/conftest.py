"""Fixtures: an answer that took several stages."""

import pytest
from auto_answers import several_stages

import crosscoding as cc
from crosscoding.methods import Auto


@pytest.fixture(scope="session")
def staged() -> cc.Posterior:
    """The answer for `several_stages`, seed 2."""
    return cc.infer(several_stages(), Auto(), seed=2)
