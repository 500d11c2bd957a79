"""Figures 1 and 13: the graphical model and the framework, drawn; nothing is measured."""

from dataclasses import dataclass

from crosscoding import plots
from crosscoding.experiments.experiment import Experiment, Result


@dataclass(frozen=True)
class Settings:
    """There are none."""


FIG1 = Experiment(
    name="fig1",
    title="The graphical model of a VAE under evidence, and of its approximation",
    wanted="a drawn picture",
    full=Settings(),
    quick=Settings(),
    measure=lambda settings, context: Result({}),
    draw=lambda result: {"fig1": plots.graphical_model()},
)
FIG13 = Experiment(
    name="fig13",
    title="The framework: what is fixed, what is fitted, what comes out",
    wanted="a drawn picture",
    full=Settings(),
    quick=Settings(),
    measure=lambda settings, context: Result({}),
    draw=lambda result: {"fig13": plots.framework()},
)
