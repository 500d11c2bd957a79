"""Random numbers that a network draws from global streams are noticed, and the streams restored."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from crosscoding.model.foreign_random import watched

STREAMS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: np.random.uniform(),  # noqa: NPY002
    "python": random.random,
}


@pytest.mark.parametrize("draw", STREAMS.values(), ids=STREAMS)
def test_a_draw_is_noticed_once_and_undone(draw):
    with watched(nn.Identity()) as drawn:
        first = draw()
        assert drawn()
        assert not drawn()
        draw()
        assert drawn()
    assert draw() == first


def test_random_streams_are_restored_if_the_network_fails():
    before = torch.get_rng_state()

    def fail() -> None:
        with watched(nn.Identity()):
            torch.rand(())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_modules_are_watched():
    for generator, draw in (
        (torch.Generator(), lambda g: torch.rand((), generator=g)),
        (np.random.default_rng(0), lambda g: g.random()),
        (np.random.RandomState(0), lambda g: g.uniform()),
        (random.Random(0), lambda g: g.random()),
    ):
        network = nn.Sequential(nn.Identity())
        network[0].noise = generator
        with watched(network) as drawn:
            assert not drawn()
            draw(generator)
            assert drawn()
