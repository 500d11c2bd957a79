"""The catalogue of experiments, and selecting from it."""

import pytest

from crosscoding.experiments.catalogue import EXPERIMENTS, chosen
from crosscoding.experiments.experiment import plain


def test_every_figure_of_the_paper_has_an_experiment():
    figures = {f"fig{n}" for n in range(1, 14)}
    assert set(EXPERIMENTS) == figures | {
        "cvae",
        "amortised",
        "variance",
        "seconds",
        "families",
        "claims",
    }
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert experiment.title
        assert experiment.wanted
        plain(experiment.full)


def test_names_are_chosen_in_order_and_unknown_ones_are_corrected():
    assert [e.name for e in chosen(["fig4", "fig2"])] == ["fig2", "fig4"]
    assert [e.name for e in chosen(["all"])] == list(EXPERIMENTS)
    with pytest.raises(ValueError, match="did you mean 'variance'"):
        chosen(["varience"])
