"""Figures 1 and 13: diagrams of the graphical model and the framework. Nothing is measured."""

from dataclasses import dataclass

from crosscoding import plots
from crosscoding.experiments.experiment import Experiment, Result


@dataclass(frozen=True)
class Settings:
    """Diagrams have no settings."""


FIG1 = Experiment(
    name="fig1",
    title="The graphical model of a VAE given evidence, and of its approximation",
    wanted="a diagram",
    full=Settings(),
    quick=Settings(),
    measure=lambda settings, context: Result({}),
    draw=lambda result: {"fig1": plots.graphical_model()},
)
FIG13 = Experiment(
    name="fig13",
    title="The framework: what is fixed, what is fitted, what comes out",
    wanted="a diagram",
    full=Settings(),
    quick=Settings(),
    measure=lambda settings, context: Result({}),
    draw=lambda result: {"fig13": plots.framework()},
)
