"""Torch settings around a call do not change its result, and the call does not change them."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cheap_methods import LISTED, every_method
from problems import linear_gaussian_problem
from surroundings import (
    BINARY,
    COUNTS,
    FREEDOMS,
    GAUSSIAN,
    SCALES,
    Case,
    assert_same,
    compare,
    every_surrounding,
    everything,
    quiet,
    within,
)
from torch import Tensor
from user_networks import Residual

import crosscoding as cc
from crosscoding.methods import HMC, Laplace, Variational

pytestmark = pytest.mark.usefixtures("short_start")


# ---- everything on a posterior -----------------------------------------------------------------

ARGUMENTS: dict[str, Callable[[Case, cc.Posterior, Any], tuple[tuple, dict]]] = {
    "sample": lambda *_: ((3,), {"seed": 1}),
    "predict": lambda *_: ((3,), {"seed": 1}),
    "predict_mean": lambda *_: ((3,), {"seed": 1}),
    "log_prob": lambda case, posterior, _: ((posterior.sample(2, seed=2),), {}),
    "mean": lambda *_: ((), {}),
    "std": lambda *_: ((), {}),
    "query_log_prob": lambda case, *_: ((case.data[:2],), {}),
    "query_ess": lambda case, *_: ((case.data[:2],), {}),
    "quantile": lambda *_: ((0.3,), {"seed": 1}),
    "interval": lambda *_: ((), {"seed": 1}),
    "mode": lambda *_: ((), {"seed": 1}),
    "probabilities": lambda *_: ((), {}),
    "save": lambda case, posterior, folder: ((folder,), {}),
    "load": lambda case, posterior, folder: ((folder,), {}),
}
# times; compared by what they hold; extras
NOT_BITS = {"seconds", "trace", "target", "to_arviz", "frame", "summary", "plot"}


def public_results(case: Case, posterior: cc.Posterior, folder: Any) -> dict[str, Any]:
    """Every public method and property of a posterior, by name."""
    members = {name for name in dir(posterior) if not name.startswith("_")} - NOT_BITS
    results = {}
    for name in [*sorted(members - {"load", "save"}), "save", "load"]:
        member = getattr(posterior, name)
        if inspect.isroutine(member):
            args, kwargs = ARGUMENTS[name](case, posterior, folder)  # none? then say what it takes
            try:
                member = member(*args, **kwargs)
            except NotImplementedError:
                member = None
        if isinstance(member, cc.Posterior):
            member = (member.draws, member.predict(2, seed=5))
        results[name] = member
    lines = posterior.plot("elements", queries=0)[0, 0].lines
    return results | {
        "summary": posterior.summary().drop(columns="seconds").to_dict("list"),
        "plot": [np.asarray(line.get_ydata()).tolist() for line in lines],
        "decodes": [stage.decodes for stage in posterior.trace],
        "evidence": (posterior.target.evidence.values, posterior.target.evidence.mask),
    }


def answers(case: Case, method: Any, folder: Any) -> dict[str, Any]:
    posterior = cc.condition(case.vae(), case.evidence(), method, seed=0)
    return public_results(case, posterior, folder)


@quiet
@every_surrounding
@pytest.mark.parametrize(
    ("case", "method"),
    [
        (GAUSSIAN, LISTED["grid"]),
        (GAUSSIAN, LISTED["auto"]),
        (GAUSSIAN, LISTED["gvi"]),
        (COUNTS, LISTED["laplace"]),
        (BINARY, HMC(4, 5, 5, num_leapfrog=3)),
        (COUNTS, LISTED["smc"]),
    ],
    ids=["grid", "auto", "gvi", "laplace", "hmc", "smc"],
)
@pytest.mark.slow
def test_a_posterior_is_the_same_whatever_surrounds_it(surrounding, case, method, tmp_path):
    name = f"{method} of {case.likelihood}"
    compare(lambda: answers(case, method, tmp_path / "saved"), surrounding, name)


def test_a_grid_within_autocast_has_the_exact_log_evidence():
    problem = linear_gaussian_problem(2, data_dim=20, scale=0.1, batch=())
    with torch.autocast("cpu", torch.bfloat16):
        posterior = cc.condition(problem.vae, problem.evidence, LISTED["grid"], seed=0)
    off = posterior.log_evidence - problem.exact_log_evidence()
    assert abs(off) < 0.02  # the grid's tolerance; in bfloat16 it is 0.17 off
    assert posterior.trusted


@every_method
@pytest.mark.slow
def test_every_method_gives_the_same_answers_within_everything(method, tmp_path):
    name = f"{method} of {GAUSSIAN.likelihood}"
    compare(lambda: answers(GAUSSIAN, method, tmp_path / "saved"), everything, name)


# ---- everything else ---------------------------------------------------------------------------

TIMED = {"cost", "bank", "last layer", "methods"}  # findings that say how long something took


def of_models(case: Case, folder: Any) -> dict[str, Any]:
    vae, z = case.vae(), case.data[:, : case.latent_dim]
    bank = cc.Bank.of(vae)
    vae.save(folder / "vae")
    bank.save(folder / "bank")
    loaded, flat = cc.load_vae(folder / "vae"), case.data.flatten(1)
    observed = torch.ones_like(flat, dtype=torch.bool)
    target = cc.VAETarget(vae, case.evidence())
    density = cc.DensityTarget(lambda z: -z.square().sum(-1), 2, prior_scale=0.8)
    return {
        "repr": repr(vae),
        "decode": vae.decode(z),
        "encode": vae.encode(case.data),
        "sample_prior": vae.sample_prior(3, seed=0),
        "cost": (vae.cost, vae.operations),
        "check": [found for found in vae.check(case.data).findings if found.name not in TIMED],
        "to": vae.to("cpu").decode(z),
        "loaded": loaded.decode(z),
        "bank": (bank.points, bank.log_likelihood(flat, observed)),
        "loaded bank": cc.Bank.load(folder / "bank", vae=loaded).log_likelihood(flat, observed),
        "log_joint": target.log_joint(z[:2]),
        "curvature": target.curvature(z[None, :2]),
        "density": cc.infer(density, LISTED["grid"], seed=0).log_evidence,
        "density's joint": density.log_joint(case.data[:, :2]),
        "query_log_prob": tuple(
            cc.query_log_prob(
                cc.condition(vae, case.evidence(), Laplace(), seed=0),
                case.data[:2],
                Laplace(),
                seed=0,
            )
        ),
        "masks": (
            cc.random_mask((4, 4), 0.3, seed=0),
            cc.rectangle_mask((4, 4), rows=(1, 2)),
            cc.stroke_mask((9, 9), [(1, 1), (7, 5)]),
        ),
        "evidence": repr(case.evidence()),
        "observed": case.evidence()[:1].num_observed,
    }


@quiet
@every_surrounding
@pytest.mark.parametrize("case", [GAUSSIAN, COUNTS], ids=["gaussian", "counts"])
@pytest.mark.slow
def test_models_are_the_same_whatever_surrounds_them(surrounding, case, tmp_path):
    compare(lambda: of_models(case, tmp_path), surrounding, f"models of {case.likelihood}")


@quiet
@every_surrounding
def test_a_scale_is_the_same_whatever_surrounds_its_calibration(surrounding):
    def work() -> Any:
        return cc.calibrate_scale(GAUSSIAN.vae(), GAUSSIAN.data)

    compare(work, surrounding, "calibration")


@within
def test_the_zoo_is_the_same_whatever_surrounds_it(surrounding):
    def work() -> tuple[Tensor, ...]:
        digits, labels = cc.zoo.digits()
        vae = cc.zoo.load("mnist-2d")
        return digits, labels, *vae.encode(digits[:2]), vae.decode(digits[:2, 0, :2])

    compare(work, surrounding, "zoo")


@within
def test_a_decoder_of_a_users_class_is_the_same_whatever_surrounds_its_loading(
    surrounding, tmp_path
):
    vae = cc.VAE(Residual(4), 2, GAUSSIAN.likelihood)
    vae.save(tmp_path / "own", decoder_arguments={"hidden": 4})

    def work() -> Tensor:
        return cc.load_vae(tmp_path / "own", allow_code=True).decode(GAUSSIAN.data[:, :2])

    bare = vae.decode(GAUSSIAN.data[:, :2])
    compare(work, surrounding, f"own in {tmp_path}")
    assert_same(work(), bare)


LIKELIHOODS: dict[str, Callable[[], cc.likelihoods.Likelihood]] = {
    "Gaussian": lambda: cc.likelihoods.Gaussian(SCALES),
    "Laplace": lambda: cc.likelihoods.Laplace(0.3),
    "StudentT": lambda: cc.likelihoods.StudentT(FREEDOMS, 0.5),
    "Ordinal": lambda: cc.likelihoods.Ordinal((-0.5, 0.7)),
    "NegativeBinomial": lambda: cc.likelihoods.NegativeBinomial(2.5),
    "BetaBinomial": lambda: cc.likelihoods.BetaBinomial(10, 2.5),
    "DiscretizedLogistic": lambda: cc.likelihoods.DiscretizedLogistic(0.1),
    "Mixed": lambda: cc.likelihoods.Mixed(
        [(cc.likelihoods.Gaussian(0.3), 3), (cc.likelihoods.Bernoulli(), 3)]
    ),
}


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
@within
def test_likelihoods_are_the_same_wherever_they_are_made(surrounding, make, tmp_path):
    def work() -> dict[str, Any]:
        vae = cc.VAE(GAUSSIAN.decoder, 2, make())
        data = vae.sample_prior(2, seed=0)
        case = Case(GAUSSIAN.decoder, 2, make(), None, data)
        return answers(case, Variational(steps=3, num_draws=8, num_fresh=20), tmp_path / "saved")

    compare(work, surrounding, f"made {make()}")
