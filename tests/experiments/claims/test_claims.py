"""Every claim, judged on invented numbers that support it, contradict it, or are too few."""

import json

import numpy as np
import pytest

from crosscoding.experiments.catalogue import EXPERIMENTS
from crosscoding.experiments.claims import CLAIMS
from crosscoding.experiments.claims.rules import AGREE, DIFFER, LABELS, OPEN
from crosscoding.experiments.claims.table import CLAIMS_TABLE
from crosscoding.experiments.experiment import Context
from crosscoding.experiments.recorded_runs import run
from crosscoding.zoo.training.families.recipes import FAMILIES

NUM = 12


def around(centre, num=NUM, width=0.01):
    """Values whose mean is known to about a hundredth of the width."""
    return (centre + width * np.linspace(-1, 1, num)).tolist()


def digits(gvi, nf, fcn, queries, seconds=12.0):
    """Numbers of Figure 4, given the C-ELBO of three methods and log p(y|x) of six."""
    names = ("GVI", "NF", "FCN", "HMC", "HMC, 1 chain", "RS")
    methods = {
        name: {"seconds": seconds, "c_elbo": [None] * NUM, "query_log_prob": around(query)}
        for name, query in zip(names, queries, strict=True)
    }
    for name, bound in (("GVI", gvi), ("NF", nf), ("FCN", fcn)):
        methods[name]["c_elbo"] = around(bound)
    return {"methods": methods}


def mixture(nf, fcn, gvi, share):
    methods = {
        name: {"mmd": around(value, width=1e-3), "far_share": around(share)}
        for name, value in (("NF", nf), ("FCN", fcn), ("GVI", gvi), ("HMC", 0), ("HMC, 1 chain", 0))
    }
    return {"methods": methods, "far_share": 0.25}


def faces(gvi, nf, hmc, spreads):
    methods = {
        "GVI": {"c_elbo": around(gvi), "query_log_prob": around(gvi)},
        "NF": {"c_elbo": around(nf), "query_log_prob": around(nf)},
        "HMC": {"c_elbo": [None] * NUM, "query_log_prob": around(hmc)},
        "HMC, 1 chain": {},
        "Auto": {"ess": [1.0] * NUM},
        "NG": {},
    }
    for name, spread in zip(("GVI", "NF", "HMC, 1 chain", "NG"), spreads, strict=True):
        methods[name]["picture_diversity"] = methods[name]["latent_diversity"] = around(spread)
    for kind in ("latent", "picture"):
        methods["Auto"][f"{kind}_diversity"] = [0.0] * NUM  # with one effective draw
    return {"models": {"anime-64d": methods, "paper-celeba-100d": methods}}


def one_face(seconds):
    fits = [
        {"seconds": factor * seconds, "effort": 100 * factor, "device": "cpu"} for factor in (1, 2)
    ]
    methods = dict.fromkeys(("GVI", "NF", "NG", "Auto"), fits)
    return {"models": {"celeba-100d": methods}}


def chains(rates, burn_in=10_000):
    return {
        "step_sizes": [0.001, 0.01, 0.02, 0.1],
        "burn_in": burn_in,
        "models": {"m": {"10": {"acceptance": [around(r, width=w) for r, w in rates]}}},
    }


def split(auto, cvae, training):
    row = {"model": "mnist-2d", "split": "quarter"}
    row["cvae"] = {"log_prob": around(cvae), "training_seconds": training}
    row["auto"] = {"log_prob": around(auto), "seconds_a_query": 0.1}
    return {"rows": [row]}


def fixed(own, few, many):
    runs = {
        times: [{"own": [o + i], "fresh": [f + 0.1 * i]} for i in range(3)]
        for times, o, f in (("1", own, few), ("10", own, many))
    }
    return {"fixed": {"log_evidence": -10.0, "runs": runs}}


def families(gain, trusted):
    """Every family better by `gain` nats than the plain VAE; `trusted` of four queries trusted."""
    counts = {"top half": {"trusted": trusted, "approximate": 4 - trusted}}
    models = {
        name: {
            "card": {"latent_dim": 20, "recipe": {"epochs": 1, "seed": 0}},
            "complete": {
                "log_prob": around(-80 + (0 if name == "mnist-20d" else gain)),
                "verdict": ["trusted"] * NUM,
            },
            "verdicts": counts,
            "processor_seconds_a_query": 0.5,
            "decodes_a_query": 1000.0,
        }
        for name in ("mnist-20d", *FAMILIES)
    }
    method = {"c_elbo": around(-31), "log_evidence": around(-30), "query_log_prob": around(-60)}
    method["verdict"] = ["trusted"] * NUM
    methods = dict.fromkeys(("GVI", "NF", "Auto"), method)
    return {"models": models, "same_decoder": dict.fromkeys(models, methods)}


def amortised(latent, query, seconds):
    """A network and fits that take a second."""
    twins = {"latent": around(latent), "query": around(query), "num": NUM}
    timed = {"network": {"seconds_alone": seconds}, "GVI": {"seconds_alone": 1.0}}
    return {"models": {"mnist-2d": {"twins": twins, "training_seconds": 60.0, **timed}}}


SUPPORTED = {
    "fig3": {"methods": {"GVI": {"share_outside": 0.1}}, "num_draws": 500},
    "fig4": digits(-11, -10, -10, (-101, -101, -101, -101, -150, -100)),
    "fig5": chains([(0.99, 0.0), (0.9, 0.05), (0.6, 0.3), (0.0, 0.0)]),
    "seconds": one_face(20.0),
    "fig8": faces(100, 50, 10, (1.0, 1.0, 0.2, 1.0)),
    "fig9": mixture(0.001, 0.001, 0.2, 0.1),
    "cvae": split(-90, -100, 60.0),
    "amortised": amortised(5.0, 2.0, 0.01),
    "variance": fixed(5.0, -900.0, -12.0),
    "families": families(2.0, 3),
}
CONTRADICTED = {
    "fig3": {"methods": {"GVI": {"share_outside": 0.0}}, "num_draws": 500},
    "fig4": digits(-10, -11, -12, (-90, -90, -90, -100, -100, -100), 5000.0),
    "fig5": chains([(0.9, 0.0), (0.9, 0.05), (0.6, 0.05), (0.6, 0.0)]),
    "seconds": one_face(2000.0),
    "fig8": faces(50, 100, 200, (0.1, 0.1, 1.0, 1.0)),
    "fig9": mixture(0.1, 0.1, 0.01, 0.4),
    "cvae": split(-100, -90, 0.01),
    "amortised": amortised(2.0, 5.0, 10.0),
    "variance": fixed(-20.0, -12.0, -900.0),
    "families": families(-2.0, 1),
}


def labels(numbers):
    return {
        (claim.text, subject): judged.label
        for claim in CLAIMS
        for subject, judged in claim.judge(numbers[claim.experiment]).items()
    }


def test_claims_that_the_numbers_support_agree():
    found = labels(SUPPORTED)
    wanted = dict.fromkeys(found, AGREE)
    wanted["HMC with 20 chains has a long tail in log p(y|x)", "mnist-2d"] = (
        DIFFER  # 1 nat is not far below
    )
    wanted["NF collapses on Anime", "anime-64d"] = (
        DIFFER  # the invented NF is as diverse here as on CelebA
    )
    assert found == wanted


def test_claims_that_the_numbers_contradict_differ():
    found = labels(CONTRADICTED)
    wanted = dict.fromkeys(found, DIFFER)
    wanted["NF collapses on Anime", "anime-64d"] = AGREE
    assert found == wanted


def test_seconds_of_a_batch_are_divided_by_its_evidence_sets():
    (claim,) = (c for c in CLAIMS if c.text == "an evidence set takes under five minutes")
    (judged,) = claim.judge(SUPPORTED["fig4"]).values()
    assert judged.measured == "1 s"


def test_chains_that_have_not_converged_decide_nothing():
    numbers = {"fig5": chains([(0.6, 0.3)] * 4, burn_in=10)}
    for claim in CLAIMS:
        if claim.experiment == "fig5":
            (judged,) = claim.judge(numbers["fig5"]).values()
            assert judged.label == OPEN
            assert "10 steps of burn-in" in judged.reason


def test_an_empty_band_decides_nothing():
    numbers = chains([(0.0, 0.0)] * 4)
    for claim in CLAIMS:
        if claim.experiment == "fig5":
            assert [j.label for j in claim.judge(numbers).values()] == [OPEN]


def test_a_bound_that_is_no_longer_finite_has_collapsed():
    found = labels(SUPPORTED | {"variance": fixed(5.0, -900.0, -12.0)})
    numbers = fixed(5.0, -900.0, -12.0)
    for run_of in numbers["fixed"]["runs"]["1"]:
        run_of["fresh"] = [None]
    assert labels(SUPPORTED | {"variance": numbers}) == found


def test_the_cascades_spread_counts_where_it_has_draws():
    numbers = faces(100, 50, 10, (1.0, 1.0, 0.2, 1.0))
    for methods in numbers["models"].values():
        wide = {f"{kind}_diversity": around(10.0) for kind in ("latent", "picture")}
        methods["Auto"] |= wide | {"ess": [100.0] * NUM}
    assert labels(SUPPORTED | {"fig8": numbers})["GVI is diverse on Anime", "anime-64d"] == DIFFER


def test_every_claim_is_of_an_experiment_and_says_its_rule():
    assert {claim.experiment for claim in CLAIMS} <= set(EXPERIMENTS)
    for claim in CLAIMS:
        assert claim.rule
    texts = [claim.text for claim in CLAIMS]
    assert len(set(texts)) == len(texts)


def test_unreliable_log_probs_of_digits_are_left_out():
    numbers = families(2.0, 3)
    complete = numbers["models"]["mnist-ladder"]["complete"]
    complete["log_prob"][0], complete["verdict"][0] = -900.0, "unreliable"
    found = labels(SUPPORTED | {"families": numbers})
    assert (
        found["a ladder VAE gives a better model (Sønderby et al. 2016)", "mnist-ladder"] == AGREE
    )
    complete["verdict"] = ["unreliable"] * NUM
    found = labels(SUPPORTED | {"families": numbers})
    assert found["a ladder VAE gives a better model (Sønderby et al. 2016)", "mnist-ladder"] == OPEN


def write(folder, name, numbers, *, quick=False):
    record = {
        "name": name,
        "title": "a title",
        "quick": quick,
        "seed": 0,
        "seconds": 12.3,
        "processor_seconds": 4.5,
        "changed": {"burn_in": 1000} if name == "fig5" else {},
        "machine": {"threads": 1, "load_before": 0.5, "devices": ["cpu"]},
        "versions": {},
        "files": [],
        "numbers": numbers,
    }
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_the_page_has_every_claim_and_says_what_was_not_measured(tmp_path):
    write(tmp_path, "fig4", SUPPORTED["fig4"], quick=True)
    record, _ = run(CLAIMS_TABLE, Context(tmp_path))
    page = (tmp_path / "reproduction.md").read_text()
    for claim in CLAIMS:
        assert claim.text in page
        assert claim.rule in page
    assert "| FCN ≈ NF in C-ELBO | fig4 (quick) | mnist-2d |" in page
    assert "**not measured**" in page
    assert "| fig4 | quick | 0 | 12 | 4 | 0.5 | 1 |" in page
    assert {row["label"] for row in record["numbers"]["claims"]} <= {*LABELS, "not measured"}
    _, was_there = run(CLAIMS_TABLE, Context(tmp_path))
    assert was_there


def test_the_page_has_the_families_with_their_papers_figures(tmp_path):
    write(tmp_path, "families", SUPPORTED["families"])
    run(CLAIMS_TABLE, Context(tmp_path))
    page = (tmp_path / "reproduction.md").read_text()
    assert "| mnist-ladder | 20 | 1 | 0 |  | -81.74 | Sønderby" in page
    assert "| 2.00 ± 0.00 | 3, 1, 0 | 0.50 | 1,000 |" in page
    assert "| mnist-iwae | 1.00 ± 0.00 | 1.00 ± 0.00 | -60.00 ± 0.00 |" in page
    assert page.index("## The five families") < page.index("## Running times")


@pytest.mark.parametrize("numbers", [CONTRADICTED, SUPPORTED])
def test_the_page_is_made_again_when_a_figure_changes(tmp_path, numbers):
    write(tmp_path, "fig4", SUPPORTED["fig4"])
    run(CLAIMS_TABLE, Context(tmp_path))
    write(tmp_path, "fig9", numbers["fig9"])
    record, was_there = run(CLAIMS_TABLE, Context(tmp_path))
    assert not was_there
    assert "fig9" in record["numbers"]["figures"]
