"""Claims about Figures 3 and 4: five methods on digits, with two latent dimensions."""

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

_CLOSE = 0.1  # nats of C-ELBO that count as "about the same"
_QUERY_CLOSE = 2.0  # nats of log p(y|x), which is about −100 nats, that count as "close"
_TAIL = 10.0  # nats of log p(y|x) that count as "far below"
_TAIL_SHARE = 0.05  # share of evidence sets above which there is a "tail"
_TAIL_RULE = (
    f"share of evidence sets on which it is more than {_TAIL:g} nats below RS, minus the same "
    f"share for NF, compared with {_TAIL_SHARE:g}"
)


def _sets(judge: Callable[[Numbers], Judgement]) -> Judge:
    """A judge of the methods on the evidence sets of Figure 4."""
    return lambda numbers: {"mnist-2d": judge(numbers["methods"])}


def _crosscoders(methods: Numbers) -> NDArray[np.floating]:
    return np.mean([query(methods, name) for name in ("GVI", "NF", "FCN")], axis=0)


def _tail(name: str) -> Callable[[Numbers], Judgement]:
    """Judges whether a method is far below rejection more often than NF is."""

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
        f"mean difference over evidence sets, within {_CLOSE:g} nats of 0",
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
        "RS is slightly the best in log p(y|x)",
        "fig4",
        "RS minus the mean of GVI, NF and FCN, averaged over evidence sets, compared with 0",
        _sets(lambda m: larger(query(m, "RS") - _crosscoders(m), "nats")),
    ),
    Claim(
        "the cross-coders come close to RS in log p(y|x)",
        "fig4",
        "mean of NF and FCN minus RS, averaged over evidence sets, within "
        f"{_QUERY_CLOSE:g} nats of 0",
        _sets(
            lambda m: alike(
                (query(m, "NF") + query(m, "FCN")) / 2 - query(m, "RS"),
                "nats",
                within=_QUERY_CLOSE,
            )
        ),
    ),
    Claim(
        "HMC with one chain, as in the paper, has a long tail in log p(y|x)",
        "fig4",
        _TAIL_RULE,
        _sets(_tail("HMC, 1 chain")),
    ),
    Claim(
        "HMC with 20 chains has a long tail in log p(y|x)",
        "fig4",
        _TAIL_RULE,
        _sets(_tail("HMC")),
    ),
    Claim(
        "GVI covers false mass",
        "fig3",
        "share of draws where the density p(z|x) is so low that only a thousandth of the mass lies "
        "there, compared with 0.01",
        _false_mass("GVI"),
    ),
    Claim(
        "an evidence set takes under five minutes",
        "fig4",
        f"seconds per evidence set, of every method, below {LIMIT_SECONDS:g}",
        _seconds_of_digits,
    ),
)
