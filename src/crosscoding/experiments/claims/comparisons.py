"""What the paper claims of Figure 9, of conditional VAEs, and what fixed draws do."""

from collections.abc import Callable

import numpy as np

from crosscoding.experiments.claims.claim import (
    Claim,
    Judge,
    Numbers,
)
from crosscoding.experiments.claims.rules import AGREE, DIFFER, Judgement, alike, larger
from crosscoding.experiments.problem import column

_MMD_GOOD, _MMD_BAD = 0.01, 0.05
_GOOD_RULE = f"MMD² to exact draws, over seeds, 0 to within {_MMD_GOOD:g}"
_FAR_RULE = "its share less that of the draws, over seeds, against 0"
_NEAR, _FAR = 10.0, 50.0  # nats below log p(x)
_LOWEST = -1e6  # nats; a C-ELBO that is not finite any more counts as this


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
        measured = f"{training:.3g} s of training, {query:.2g} s a query without"
        reason = f"cheaper for up to {training / query:.2g} queries of a split"
        found[f"{row['model']}, {row['split']}"] = Judgement(label, measured, reason)
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
        "NF follows a mixture with a component apart",
        "fig9",
        _GOOD_RULE,
        _on_mixture(_good, "NF"),
    ),
    Claim("FCN follows it", "fig9", _GOOD_RULE, _on_mixture(_good, "FCN")),
    Claim("GVI cannot", "fig9", f"MMD² above {_MMD_BAD:g}", _on_mixture(_bad, "GVI")),
    Claim(
        "HMC undersamples the far component: one chain",
        "fig9",
        _FAR_RULE,
        _on_mixture(_undersamples, "HMC, 1 chain"),
    ),
    Claim(
        "HMC undersamples the far component: 20 chains",
        "fig9",
        _FAR_RULE,
        _on_mixture(_undersamples, "HMC"),
    ),
    Claim(
        "cross-coding answers as well as a CVAE trained for the split",
        "cvae",
        "log p(y|x) of test digits, cross-coding less CVAE, against 0",
        _as_good_as_cvae,
    ),
    Claim(
        "a new split costs a CVAE a training, and cross-coding none",
        "cvae",
        "seconds of training against seconds a query",
        _cheaper_split,
    ),
    Claim(
        "on N = D fixed draws the objective goes above log p(x)",
        "variance",
        "the objective on its own draws less log p(x), over seeds, against 0",
        _above_evidence,
    ),
    Claim(
        "and the C-ELBO collapses",
        "variance",
        f"log p(x) less C-ELBO on fresh draws, over seeds, above {_FAR:g} nats",
        _collapse("1", cured=False),
    ),
    Claim(
        "on N = 10 D fixed draws it does not",
        "variance",
        f"log p(x) less C-ELBO on fresh draws, over seeds, 0 to within {_NEAR:g} nats",
        _collapse("10", cured=True),
    ),
)
