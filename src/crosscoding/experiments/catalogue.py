"""Lists all experiments by name, for the command line, the tests and the documentation."""

from crosscoding.errors import unknown_name
from crosscoding.experiments.claims import table
from crosscoding.experiments.experiment import Experiment
from crosscoding.experiments.figures import (
    amortised_queries,
    convergence,
    cvae_comparison,
    diagrams,
    digit_sets,
    face_completions,
    face_scores,
    face_seconds,
    families,
    hmc_acceptance,
    mixture_without_vae,
    one_digit,
    prior_draws,
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        diagrams.FIG1,
        one_digit.FIG2,
        one_digit.FIG3,
        digit_sets.FIG4,
        hmc_acceptance.FIG5,
        face_completions.FIG6,
        face_completions.FIG7,
        face_scores.FIG8,
        mixture_without_vae.FIG9,
        prior_draws.FIG10,
        face_completions.FIG11,
        face_completions.FIG12,
        diagrams.FIG13,
        cvae_comparison.CVAE,
        amortised_queries.AMORTISED,
        convergence.VARIANCE,
        face_seconds.SECONDS,
        families.FAMILIES_ON_DIGITS,
        table.CLAIMS_TABLE,
    )
}


def chosen(names: list[str]) -> list[Experiment]:
    """The named experiments, in the order of the catalogue; `all` selects all of them.

    Raises:
        ValueError: There is no such experiment; suggests the nearest name.
    """
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise unknown_name("figure or comparison", name, [*EXPERIMENTS, "all"])
    return [each for name, each in EXPERIMENTS.items() if name in names or "all" in names]
