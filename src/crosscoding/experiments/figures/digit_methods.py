"""The model of digits, and the methods that Figures 2, 3 and 4 compare on it.

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
    """Settings of the methods that are compared on digits.

    Args:
        num_sets: Evidence sets of Figure 4.
        fractions: Shares of observed pixels; evidence sets take them in turn.
        num_draws: Draws of z per answer.
        steps: Maximum number of steps of Algorithm 1.
        num_warmup: Warm-up steps of HMC with many chains.
        num_warmup_alone: Warm-up steps of HMC with one chain.
        max_proposals: Maximum number of rejection's proposals, shared by all evidence sets.
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
    """The methods by label, with about the same number of draws each.

    HMC runs with many chains, as is the default here, and with one chain at an acceptance rate of
    0.75, as in the paper.
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
    """Digest of the model."""
    return {MODEL: digest(zoo.load(MODEL))}
