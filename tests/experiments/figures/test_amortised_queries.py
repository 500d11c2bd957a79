"""A trained network beside fits: both errors on twins, and what is written for digits."""

from dataclasses import replace

import numpy as np

from crosscoding.experiments.experiment import Context
from crosscoding.experiments.figures import amortised_queries
from crosscoding.experiments.figures.amortised_queries import AMORTISED, Settings
from crosscoding.experiments.problem import column
from crosscoding.experiments.recorded_runs import run

TINY = Settings(("mnist-2d",), seconds=2.0, num_twins=40, num_sets=5, num_draws=100, num_timed=1)


def test_errors_bounds_and_times_are_written(tmp_path):
    context = Context(tmp_path)
    record, _ = run(replace(AMORTISED, full=TINY), context)
    model = record["numbers"]["models"]["mnist-2d"]
    latent, query = (column(model["twins"], each) for each in ("latent", "query"))
    assert len(latent) == len(query) > 30
    assert latent.mean() > query.mean() > 0  # of a network that is hardly trained
    gap = column(model, "log_evidence") - column(model["GVI"], "c_elbo")
    assert (gap > -0.1).all()
    assert amortised_queries.breaks_even(model) > 0
    assert "amortised.png" in record["files"]


def test_training_that_saves_nothing_never_pays():
    model = {"training_seconds": 1.0, "GVI": {"seconds_alone": 1.0}}
    assert amortised_queries.breaks_even(model | {"network": {"seconds_alone": 2.0}}) == np.inf
    assert amortised_queries.breaks_even(model | {"network": {"seconds_alone": 0.5}}) == 2.0
