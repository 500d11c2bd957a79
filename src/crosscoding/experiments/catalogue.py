"""All experiments by name: what the command, the tests and the documentation are made from."""

from crosscoding.errors import unknown_name
from crosscoding.experiments import (
    amortised,
    bare,
    completions,
    convergence,
    diagrams,
    digit_sets,
    face_scores,
    face_seconds,
    one_digit,
    prior,
    reproduction,
    tuning,
)
from crosscoding.experiments.contract import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        diagrams.FIG1,
        one_digit.FIG2,
        one_digit.FIG3,
        digit_sets.FIG4,
        tuning.FIG5,
        completions.FIG6,
        completions.FIG7,
        face_scores.FIG8,
        bare.FIG9,
        prior.FIG10,
        completions.FIG11,
        completions.FIG12,
        diagrams.FIG13,
        amortised.CVAE,
        convergence.VARIANCE,
        face_seconds.SECONDS,
        reproduction.CLAIMS_TABLE,
    )
}


def chosen(names: list[str]) -> list[Experiment]:
    """The experiments of these names, in the order of the catalogue; `all` is all of them.

    Raises:
        ValueError: There is none of that name; says which is nearest.
    """
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise unknown_name("figure or comparison", name, [*EXPERIMENTS, "all"])
    return [each for name, each in EXPERIMENTS.items() if name in names or "all" in names]
