"""Claims about Figure 9, conditional VAEs, amortised networks, and fits on fixed draws."""

from collections.abc import Callable

import numpy as np

from crosscoding.experiments.claims.claim import (
    Claim,
    Judge,
    Numbers,
)
from crosscoding.experiments.claims.rules import AGREE, DIFFER, Judgement, alike, larger
from crosscoding.experiments.figures.amortised_queries import breaks_even
from crosscoding.experiments.problem import column

_MMD_GOOD, _MMD_BAD = 0.01, 0.05
_GOOD_RULE = f"MMD² to exact draws, averaged over seeds, within {_MMD_GOOD:g} of 0"
_FAR_RULE = (
    "the component's weight minus its share of the draws, averaged over seeds, compared with 0"
)
_NEAR, _FAR = 10.0, 50.0  # nats below log p(x)
_LOWEST = -1e6  # nats; replaces a C-ELBO that is no longer finite


def _on_mixture(judge: Callable[[Numbers, Numbers], Judgement], name: str) -> Judge:
    return lambda numbers: {name: judge(numbers["methods"][name], numbers)}


def _good(method: Numbers, numbers: Numbers) -> Judgement:
    return alike(column(method, "mmd"), "", within=_MMD_GOOD)


def _bad(method: Numbers, numbers: Numbers) -> Judgement:
    return larger(column(method, "mmd"), "", least=_MMD_BAD)


def _undersamples(method: Numbers, numbers: Numbers) -> Judgement:
    return larger(numbers["far_share"] - column(method, "far_share"), "of the draws")


def _as_good_as_cvae(numbers: Numbers) -> dict[str, Judgement]:
    return {
        f"{row['model']}, {row['split']}": larger(
            column(row["auto"], "log_prob") - column(row["cvae"], "log_prob"), "nats"
        )
        for row in numbers["rows"]
    }


def _cheaper_split(numbers: Numbers) -> dict[str, Judgement]:
    found = {}
    for row in numbers["rows"]:
        training, query = row["cvae"]["training_seconds"], row["auto"]["seconds_a_query"]
        label = AGREE if training > query else DIFFER
        measured = f"{training:.3g} s of training, or {query:.2g} s per query without"
        reason = f"cross-coding is cheaper for up to {training / query:.2g} queries of a split"
        found[f"{row['model']}, {row['split']}"] = Judgement(label, measured, reason)
    return found


def _controlled(numbers: Numbers) -> dict[str, Judgement]:
    found = {}
    for name, model in numbers["models"].items():
        latent, query = (column(model["twins"], each) for each in ("latent", "query"))
        rule = larger(latent - query, "nats")
        of = f"n = {len(query)} of {model['twins']['num']}"
        measured = f"{query.mean():.3g} nats of a query, {latent.mean():.3g} of z, {of}"
        found[name] = Judgement(rule.label, measured, rule.reason)
    return found


def _faster_than_fits(numbers: Numbers) -> dict[str, Judgement]:
    found = {}
    for name, model in numbers["models"].items():
        network, fit = (model[each]["seconds_alone"] for each in ("network", "GVI"))
        label = AGREE if network < fit else DIFFER
        measured = f"{1e3 * network:.2g} ms a query, or {fit:.2g} s for a fit"
        reason = f"training takes {model['training_seconds']:.0f} s: {breaks_even(model):,.0f} fits"
        found[name] = Judgement(label, measured, reason)
    return found


def _collapse(times: str, *, cured: bool) -> Judge:
    def judge(numbers: Numbers) -> dict[str, Judgement]:
        fixed = numbers["fixed"]
        runs = fixed["runs"].get(times, [])
        last = [run["fresh"][-1] for run in runs]
        last = [_LOWEST if value is None else value for value in last]
        below = fixed["log_evidence"] - np.array(last)
        rule = alike(below, "nats", within=_NEAR) if cured else larger(below, "nats", least=_FAR)
        return {f"mnist-20d, N = {times} D": rule}

    return judge


def _above_evidence(numbers: Numbers) -> dict[str, Judgement]:
    fixed = numbers["fixed"]
    above = [run["own"][-1] - fixed["log_evidence"] for run in fixed["runs"].get("1", [])]
    return {"mnist-20d, N = D": larger(np.array(above, float), "nats")}


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "NF fits a mixture with a distant component",
        "fig9",
        _GOOD_RULE,
        _on_mixture(_good, "NF"),
    ),
    Claim("FCN fits it", "fig9", _GOOD_RULE, _on_mixture(_good, "FCN")),
    Claim(
        "GVI does not fit it",
        "fig9",
        f"MMD² to exact draws, averaged over seeds, compared with {_MMD_BAD:g}",
        _on_mixture(_bad, "GVI"),
    ),
    Claim(
        "HMC with one chain undersamples the distant component",
        "fig9",
        _FAR_RULE,
        _on_mixture(_undersamples, "HMC, 1 chain"),
    ),
    Claim(
        "HMC with 20 chains undersamples the distant component",
        "fig9",
        _FAR_RULE,
        _on_mixture(_undersamples, "HMC"),
    ),
    Claim(
        "cross-coding is as good as a CVAE trained for the split",
        "cvae",
        "log p(y|x) of test digits, cross-coding minus CVAE, compared with 0",
        _as_good_as_cvae,
    ),
    Claim(
        "a CVAE has to be trained for every new split, cross-coding does not",
        "cvae",
        "seconds of training compared with seconds per query",
        _cheaper_split,
    ),
    Claim(
        "the query error of a prior network is bounded by its latent error (Wu et al. 2022)",
        "amortised",
        "KL(p(z|x) || q(z|x)) minus KL(p(y|x) || q(y|x)), averaged over simulated queries, "
        "compared with 0",
        _controlled,
    ),
    Claim(
        "a prior network answers faster than a fit (Wu et al. 2022)",
        "amortised",
        "seconds of a query asked alone: 1,000 draws of the network with their weights, compared "
        "with Algorithm 1",
        _faster_than_fits,
    ),
    Claim(
        "with N = D fixed draws, the objective exceeds log p(x)",
        "variance",
        "the objective on its own draws minus log p(x), averaged over seeds, compared with 0",
        _above_evidence,
    ),
    Claim(
        "with N = D fixed draws, the C-ELBO collapses",
        "variance",
        f"log p(x) minus C-ELBO on fresh draws, averaged over seeds, compared with {_FAR:g} nats",
        _collapse("1", cured=False),
    ),
    Claim(
        "with N = 10 D fixed draws, it does not",
        "variance",
        f"log p(x) minus C-ELBO on fresh draws, averaged over seeds, within {_NEAR:g} nats of 0",
        _collapse("10", cured=True),
    ),
)
