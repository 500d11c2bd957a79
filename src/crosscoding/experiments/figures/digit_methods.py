"""What Figures 2, 3 and 4 share: the model of digits, and the methods that are compared on it.

The digits are those that come with the package; no data folder is needed.
"""

from dataclasses import dataclass

from crosscoding import zoo
from crosscoding.crosscoders import FCN, Gaussian, Planar
from crosscoding.experiments.experiment import Context
from crosscoding.experiments.problem import digest
from crosscoding.methods import HMC, Auto, Method, Rejection, Variational

MODEL = "mnist-2d"


@dataclass(frozen=True)
class Settings:
    """How the digits are asked for.

    Args:
        num_sets: Evidence sets of Figure 4.
        fractions: Shares of pixels observed, in turns.
        num_draws: Draws of z that each method leaves.
        steps: Most steps of Algorithm 1.
        num_warmup: Steps before HMC's draws, of many chains.
        num_warmup_alone: The same of one chain.
        max_proposals: Of rejection, shared by all evidence sets.
    """

    num_sets: int = 50
    fractions: tuple[float, ...] = (0.05, 0.15, 0.25)
    num_draws: int = 500
    steps: int = 5000
    num_warmup: int = 300
    num_warmup_alone: int = 2000
    max_proposals: int = 40_000_000


QUICK = Settings(
    num_sets=9, steps=1000, num_warmup=150, num_warmup_alone=300, max_proposals=4_000_000
)


def compared_methods(settings: Settings) -> dict[str, Method]:
    """The methods by their labels, each leaving about as many draws.

    HMC runs as the registry has it, many chains, and as the paper did, one chain at an acceptance
    rate of 0.75.
    """
    num, steps = settings.num_draws, settings.steps
    chain = HMC(1, settings.num_warmup_alone, max(num, 4), target_acceptance=0.75)
    return {
        "GVI": Variational(Gaussian(), steps=steps, num_fresh=num),
        "NF": Variational(Planar(16), steps=steps, num_fresh=num),
        "FCN": Variational(FCN(), steps=steps, num_fresh=num),
        "HMC": HMC(20, settings.num_warmup, max(num // 20, 4)),
        "HMC, 1 chain": chain,
        "RS": Rejection(num, settings.max_proposals),
        "Auto": Auto(num_draws=num),
    }


def subjects(context: Context) -> dict[str, str]:
    """The model."""
    return {MODEL: digest(zoo.load(MODEL))}
