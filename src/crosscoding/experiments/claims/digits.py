"""What the paper claims of Figures 3 and 4: five methods on digits, latent 2."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from crosscoding.experiments.claims.claim import (
    BOUNDS,
    LIMIT_SECONDS,
    Claim,
    Judge,
    Numbers,
    bound_difference,
    query,
)
from crosscoding.experiments.claims.rules import Judgement, alike, all_below, larger

_CLOSE = 0.1  # nats of C-ELBO that are "about the same"
_QUERY_CLOSE = 2.0  # the same of log p(y|x), of about −100 nats
_TAIL = 10.0  # nats of log p(y|x) that are a long way
_TAIL_SHARE = 0.05  # of the evidence sets, above which there is a tail
_TAIL_RULE = (
    f"sets on which it is {_TAIL:g} nats below RS, less those on which NF is, "
    f"above {_TAIL_SHARE:g} of all"
)


def _sets(judge: Callable[[Numbers], Judgement]) -> Judge:
    """A claim about the methods on the digits."""
    return lambda numbers: {"mnist-2d": judge(numbers["methods"])}


def _crosscoders(methods: Numbers) -> NDArray[np.floating]:
    return np.mean([query(methods, name) for name in ("GVI", "NF", "FCN")], axis=0)


def _tail(name: str) -> Callable[[Numbers], Judgement]:
    """How much more often a method is far below rejection than NF is."""

    def judge(methods: Numbers) -> Judgement:
        exact = query(methods, "RS")
        far = [exact - query(methods, each) > _TAIL for each in (name, "NF")]
        more = np.where(np.isnan(exact), np.nan, far[0] * 1.0 - far[1])
        return larger(more, "of the sets", least=_TAIL_SHARE)

    return judge


def _false_mass(name: str) -> Judge:
    def judge(numbers: Numbers) -> dict[str, Judgement]:
        share, num = numbers["methods"][name]["share_outside"], numbers["num_draws"]
        draws = np.arange(num) < round(share * num)
        return {name: larger(draws, "of the draws", least=0.01)}

    return judge


def _seconds_of_digits(numbers: Numbers) -> dict[str, Judgement]:
    seconds = [
        each["seconds"] / len(each["c_elbo"])
        for each in numbers["methods"].values()
        if "failed" not in each
    ]
    return {"mnist-2d, in a batch": all_below(seconds, "s", limit=LIMIT_SECONDS)}


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "FCN ≈ NF in C-ELBO",
        "fig4",
        f"mean difference over evidence sets, to within {_CLOSE:g} nats",
        _sets(lambda m: alike(bound_difference(m, "FCN", "NF"), "nats", within=_CLOSE)),
    ),
    Claim(
        "NF > GVI in C-ELBO",
        "fig4",
        BOUNDS,
        _sets(lambda m: larger(bound_difference(m, "NF", "GVI"), "nats")),
    ),
    Claim(
        "FCN > GVI in C-ELBO",
        "fig4",
        BOUNDS,
        _sets(lambda m: larger(bound_difference(m, "FCN", "GVI"), "nats")),
    ),
    Claim(
        "RS is slightly best in log p(y|x)",
        "fig4",
        "RS less the mean of GVI, NF and FCN, over evidence sets, against 0",
        _sets(lambda m: larger(query(m, "RS") - _crosscoders(m), "nats")),
    ),
    Claim(
        "the cross-coders come close to RS in log p(y|x)",
        "fig4",
        f"mean of NF and FCN less RS, to within {_QUERY_CLOSE:g} nats",
        _sets(
            lambda m: alike(
                (query(m, "NF") + query(m, "FCN")) / 2 - query(m, "RS"),
                "nats",
                within=_QUERY_CLOSE,
            )
        ),
    ),
    Claim(
        "HMC has a long tail in log p(y|x): one chain, as the paper ran it",
        "fig4",
        _TAIL_RULE,
        _sets(_tail("HMC, 1 chain")),
    ),
    Claim(
        "HMC has a long tail in log p(y|x): 20 chains",
        "fig4",
        _TAIL_RULE,
        _sets(_tail("HMC")),
    ),
    Claim(
        "GVI covers false mass",
        "fig3",
        "share of draws where p(z|x) has its lowest thousandth, against 0.01",
        _false_mass("GVI"),
    ),
    Claim("an evidence set takes under five minutes", "fig4", "every method", _seconds_of_digits),
)
