"""Torch settings around a call do not change its result, and the call does not change them."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cheap_methods import LISTED, every_method
from problems import linear_gaussian_problem, seeded
from torch import Tensor, nn
from user_networks import Residual

import crosscoding as cc
from crosscoding.isolation import isolated
from crosscoding.methods import HMC, Laplace, Variational

pytestmark = pytest.mark.usefixtures("short_start")

Surrounding = Callable[[], AbstractContextManager[Any]]


# ---- surroundings ----------------------------------------------------------------------------


def switched(switch: Callable[[Any], None], there: Any, back: Any) -> Surrounding:
    """What a setter of torch's sets for the whole process, as a context."""

    @contextmanager
    def context() -> Iterator[None]:
        switch(there)
        try:
            yield
        finally:
            switch(back)

    return context


def autocast(dtype: torch.dtype) -> Surrounding:
    return lambda: torch.autocast("cpu", dtype)


default_float64 = switched(torch.set_default_dtype, torch.float64, torch.float32)
default_bfloat16 = switched(torch.set_default_dtype, torch.bfloat16, torch.float32)
deterministic = switched(torch.use_deterministic_algorithms, True, False)


@contextmanager
def everything() -> Iterator[None]:
    """All of it at once."""
    contexts = [torch.inference_mode, autocast(torch.bfloat16), default_bfloat16, deterministic]
    with ExitStack() as stack:
        for context in [*contexts, lambda: torch.device("meta")]:
            stack.enter_context(context())
        yield


SURROUNDINGS: dict[str, Surrounding] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "autocast to bfloat16": autocast(torch.bfloat16),
    "autocast to float16": autocast(torch.float16),
    "float64 by default": default_float64,
    "bfloat16 by default": default_bfloat16,
    "DoubleTensor by default": switched(
        torch.set_default_tensor_type, torch.DoubleTensor, torch.FloatTensor
    ),
    "meta": lambda: torch.device("meta"),
    "meta by default": switched(torch.set_default_device, "meta", None),
    "deterministic algorithms": deterministic,
    "anomaly mode": torch.autograd.detect_anomaly,
    "another global seed": switched(torch.manual_seed, 7, 0),
    "everything": everything,
}

quiet = pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:torch.set_default_tensor")
every_surrounding = pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS)
within = pytest.mark.parametrize(
    "surrounding", [everything, torch.inference_mode], ids=lambda s: s.__name__
)


def assert_same(here: Any, bare: Any, name: str = "result") -> None:
    """The same bits, in tensors that can be used anywhere."""
    assert type(here) is type(bare), name
    if isinstance(bare, Tensor):
        assert not here.is_inference(), name
        assert not here.requires_grad, name
        torch.testing.assert_close(
            here, bare, rtol=0, atol=0, equal_nan=True, msg=lambda said: f"{name}: {said}"
        )
    elif isinstance(bare, dict):
        assert here.keys() == bare.keys(), name
        for key in bare:
            assert_same(here[key], bare[key], f"{name}, {key}")
    elif isinstance(bare, (list, tuple)):
        assert len(here) == len(bare), name
        for index, (one, other) in enumerate(zip(here, bare, strict=True)):
            assert_same(one, other, f"{name}, {index}")
    elif isinstance(bare, float):
        assert here == bare or (here != here and bare != bare), name
    else:
        assert here == bare, name


# ---- models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What `cc.VAE` takes, and complete data of it."""

    decoder: nn.Module
    latent_dim: int
    likelihood: cc.likelihoods.Likelihood
    encoder: nn.Module | None
    data: Tensor

    def vae(self) -> cc.VAE:
        return cc.VAE(self.decoder, self.latent_dim, self.likelihood, self.encoder)

    def evidence(self) -> cc.Evidence:
        return cc.Evidence(self.data[:2], cc.random_mask((6,), 0.5, seed=0))


def networks(latent_dim: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A decoder to six numbers and an encoder of them, with weights of their own."""
    sizes = (latent_dim, 6), (6, 2 * latent_dim)
    pair = [nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, m)) for n, m in sizes]
    generator = seeded(3)
    for network in pair:
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=generator)
    return pair[0].to(dtype), pair[1].to(dtype)


def case(latent_dim: int, likelihood: cc.likelihoods.Likelihood, dtype: torch.dtype) -> Case:
    decoder, encoder = networks(latent_dim, dtype)
    data = cc.VAE(decoder, latent_dim, likelihood).sample_prior(6, seed=1)
    return Case(decoder, latent_dim, likelihood, encoder, data)


GAUSSIAN = case(2, cc.likelihoods.Gaussian(0.3), torch.float32)
BINARY = case(1, cc.likelihoods.Bernoulli(), torch.float64)
COUNTS = case(3, cc.likelihoods.NegativeBinomial(2.5), torch.float64)


# ---- everything on a posterior ---------------------------------------------------------------

ARGUMENTS: dict[str, Callable[[Case, cc.Posterior, Any], tuple[tuple, dict]]] = {
    "sample": lambda *_: ((3,), {"seed": 1}),
    "predict": lambda *_: ((3,), {"seed": 1}),
    "predict_mean": lambda *_: ((3,), {"seed": 1}),
    "log_prob": lambda case, posterior, _: ((posterior.sample(2, seed=2),), {}),
    "mean": lambda *_: ((), {}),
    "std": lambda *_: ((), {}),
    "query_log_prob": lambda case, *_: ((case.data[:2],), {}),
    "query_ess": lambda case, *_: ((case.data[:2],), {}),
    "save": lambda case, posterior, folder: ((folder,), {}),
    "load": lambda case, posterior, folder: ((folder,), {}),
}
NOT_BITS = {"seconds", "trace", "target", "to_arviz"}  # times; compared by what they hold; extras


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
    return results | {
        "decodes": [stage.decodes for stage in posterior.trace],
        "evidence": (posterior.target.evidence.values, posterior.target.evidence.mask),
    }


def answers(case: Case, method: Any, folder: Any) -> dict[str, Any]:
    posterior = cc.condition(case.vae(), case.evidence(), method, seed=0)
    return public_results(case, posterior, folder)


BARE: dict[str, Any] = {}  # results that several tests compare with, by name


def compare(work: Callable[[], Any], surrounding: Surrounding, name: str) -> None:
    """Do it bare, once a name, and within; what is around is afterwards as it was."""
    if name not in BARE:
        BARE[name] = work()
    with surrounding():
        before = around()
        here = work()
        assert around() == before
    assert_same(here, BARE[name])


def around() -> list[Any]:
    """What a caller could notice."""
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        *(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()),
        *(torch.get_float32_matmul_precision(), torch.get_rng_state().numpy().tobytes()),
    ]


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


# ---- everything else -------------------------------------------------------------------------


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


SCALES, FREEDOMS = torch.linspace(0.2, 0.5, 6), torch.linspace(3, 5, 6)
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


# ---- what was made in inference mode, and is used outside --------------------------------------

WITH_GRADIENTS = {name: LISTED[name] for name in ("hmc", "gvi", "laplace")}


@pytest.mark.parametrize("method", WITH_GRADIENTS.values(), ids=WITH_GRADIENTS)
def test_a_model_made_in_inference_mode_works_like_any_other(method):
    vae = cc.VAE(GAUSSIAN.decoder, 2, cc.likelihoods.Gaussian(SCALES))
    bare = cc.condition(vae, GAUSSIAN.evidence(), method, seed=0)
    with torch.inference_mode():
        decoder = networks(2, torch.float32)[0]
        assert decoder[0].weight.is_inference()
        likelihood = cc.likelihoods.Gaussian(SCALES * 1)
        vae = cc.VAE(decoder, 2, likelihood)
        evidence = cc.Evidence(GAUSSIAN.data[:2] * 1, GAUSSIAN.evidence().mask.clone())
    assert not any(weight.is_inference() for weight in vae.decoder.parameters())
    assert_same(cc.condition(vae, evidence, method, seed=0).draws, bare.draws)
    later = cc.VAE(decoder, 2, likelihood)
    assert_same(cc.condition(later, evidence, method, seed=0).draws, bare.draws)


def test_tensors_made_in_inference_mode_are_accepted_everywhere():
    density = cc.DensityTarget(lambda z: -z.square().sum(-1), 2)
    method = HMC(4, 5, 5, num_leapfrog=3)
    bare = cc.infer(density, method, seed=0)
    with torch.inference_mode():
        like, data = torch.zeros(3), GAUSSIAN.data * 1
    given = cc.DensityTarget(density.log_density, 2, like=like)
    assert_same(cc.infer(given, method, seed=0).draws, bare.draws)
    scale = cc.calibrate_scale(GAUSSIAN.vae(), GAUSSIAN.data)
    assert_same(cc.calibrate_scale(GAUSSIAN.vae(), data), scale)
    assert not cc.Evidence(data, data > 0).values.is_inference()
    assert not GAUSSIAN.vae().decode(data[:, :2]).is_inference()


def test_tensors_on_the_meta_device_are_refused():
    with torch.device("meta"):
        decoder, values = nn.Linear(2, 6), torch.zeros(6)
        with pytest.raises(ValueError, match="is on the meta device"):
            cc.VAE(decoder, 2, GAUSSIAN.likelihood)
        with pytest.raises(ValueError, match="values that are numbers, got a tensor on the meta"):
            cc.Evidence(values, values > 0)


def test_a_density_of_another_dtype_is_refused():
    def log_density(z: Tensor) -> Tensor:
        return -(z - torch.ones(2, dtype=torch.double)).square().sum(-1)

    with pytest.raises(ValueError, match=r"dtype of z, torch.float32, got torch.float64; .*like="):
        cc.infer(cc.DensityTarget(log_density, 2), HMC(4, 5, 5), seed=0)
    target = cc.DensityTarget(log_density, 2, like=torch.empty(0, dtype=torch.float64))
    assert cc.infer(target, HMC(4, 5, 5), seed=0).draws.dtype == torch.float64


# ---- the tool itself -------------------------------------------------------------------------


def test_gradients_are_recorded_where_the_caller_records_them():
    vae, z = GAUSSIAN.vae(), torch.zeros(1, 2, requires_grad=True)
    assert vae.decode(z).requires_grad
    with torch.no_grad():
        assert not vae.decode(z).requires_grad
    with torch.inference_mode():
        assert not vae.decode(z).requires_grad


@every_surrounding
@quiet
def test_the_callers_settings_are_restored_after_an_error(surrounding):
    with surrounding():
        before = around()
        with pytest.raises(ValueError, match="expected z"):
            GAUSSIAN.vae().decode(GAUSSIAN.data)
        assert around() == before


class Positions(nn.Module):
    """A decoder that makes a tensor without saying where, as many do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 6)

    def forward(self, z):
        return self.linear(z) + torch.arange(6) / torch.tensor(7)


def test_tensors_that_a_decoder_creates_are_on_its_models_device():
    decoder = Positions()
    bare = cc.condition(cc.VAE(decoder, 2, GAUSSIAN.likelihood), GAUSSIAN.evidence(), seed=0)
    with torch.device("meta"):
        vae = cc.VAE(decoder, 2, GAUSSIAN.likelihood)
        here = cc.condition(vae, GAUSSIAN.evidence(), seed=0)
        mean = here.mean()
    assert_same(mean, bare.mean())


def test_an_isolated_function_keeps_its_name_and_its_results():
    @isolated
    def add(first: Tensor, *, second: Tensor) -> Tensor:
        """Sum."""
        assert not torch.is_inference_mode_enabled()
        return first + second

    with torch.inference_mode():
        one = torch.ones(2)
        total = add(one, second=one)
    assert (add.__name__, add.__doc__) == ("add", "Sum.")
    assert not total.is_inference()
    assert list(inspect.signature(add).parameters) == ["first", "second"]


def test_warnings_name_the_line_of_the_caller():
    probabilities = nn.Sequential(nn.Linear(2, 100), nn.Sigmoid())
    with pytest.warns(UserWarning, match="expected logits") as caught:
        vae = cc.VAE(probabilities, 2, cc.likelihoods.Bernoulli())
    assert [warning.filename for warning in caught] == [__file__]
    assert vae.data_size == 100


def set_in_backends(value: str) -> None:
    """The precision of products where torch has a setting for each backend, since 2.9."""
    torch.backends.mkldnn.matmul.fp32_precision = value


COARSE = {
    "medium": switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "high": switched(torch.set_float32_matmul_precision, "high", "highest"),
    "backend": switched(set_in_backends, "bf16", "ieee"),
}
every_coarseness = pytest.mark.parametrize(
    "coarse",
    [
        pytest.param(
            each,
            id=name,
            marks=pytest.mark.skipif(
                name == "backend" and not hasattr(torch.backends.mkldnn, "matmul"),
                reason="torch has no such setting before 2.9",
            ),
        )
        for name, each in COARSE.items()
    ],
)


def wide_vae() -> cc.VAE:
    """With products large enough for a processor to take digits from."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 128))
    return cc.VAE(decoder, 2, cc.likelihoods.Gaussian(0.1))


@every_coarseness
def test_products_are_exact_whatever_their_precision_is_set_to(coarse):
    def answers() -> list[torch.Tensor]:
        vae = wide_vae()
        data = vae.sample_prior(4, seed=0)
        evidence = cc.Evidence(data, torch.arange(128) < 64)
        posterior = cc.condition(vae, evidence, LISTED["laplace"], seed=0)
        explained = torch.tensor(vae.check(data)["explanation"].figures["log_prob"])
        return [data, posterior.draws, posterior.log_evidence, posterior.mean(), explained]

    exact = answers()
    with coarse():
        before = precision_of_products()
        found = answers()
        assert precision_of_products() == before
    for one, other in zip(found, exact, strict=True):
        assert torch.equal(one, other)


def precision_of_products() -> list[str]:
    """As a caller may have set it."""
    backends = (torch.backends.mkldnn, torch.backends.cuda)
    found = [
        each.matmul.fp32_precision for each in backends if hasattr(torch.backends.mkldnn, "matmul")
    ]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:  # backends differ
        return found


def test_the_precision_of_products_is_restored_when_the_last_thread_leaves():
    inside, leave = threading.Event(), threading.Event()

    @isolated
    def wait() -> None:
        inside.set()
        assert leave.wait(10)

    @isolated
    def precision() -> str:
        return torch.get_float32_matmul_precision()

    @isolated
    def end_other() -> str:
        leave.set()
        thread.join()
        return torch.get_float32_matmul_precision()

    with COARSE["medium"]():
        thread = threading.Thread(target=wait)
        thread.start()
        assert inside.wait(10)
        assert precision() == "highest"
        assert end_other() == "highest"  # as this one is still inside
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(ValueError, match="expected"):
            cc.condition(GAUSSIAN.vae(), GAUSSIAN.evidence(), max_bytes=0)
        assert torch.get_float32_matmul_precision() == "medium"


# ---- threads -------------------------------------------------------------------------------


def together(work: Callable[[int], None], num: int) -> None:
    """Do it in threads that take turns as often as they can."""
    failures, start = [], threading.Barrier(num)

    def guarded(index: int) -> None:
        start.wait()
        try:
            work(index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(num)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_threads_that_share_a_model_get_what_each_gets_alone():
    evidence = GAUSSIAN.evidence()
    bare = cc.condition(GAUSSIAN.vae(), evidence, seed=0).draws
    vae, found = GAUSSIAN.vae(), {}

    def work(index: int) -> None:
        with torch.inference_mode() if index % 2 else torch.enable_grad():
            found[index] = cc.condition(vae, evidence, seed=0).draws

    together(work, 4)
    for draws in found.values():
        assert_same(draws, bare)


def test_models_are_made_in_several_threads_while_others_run_modules():
    call, layer, z = nn.Module.__call__, nn.Linear(2, 3), torch.zeros(1, 2)
    heads = []

    def work(index: int) -> None:
        for _ in range(10 if index else 200):
            heads.append(GAUSSIAN.vae().head if index else layer(z))

    together(work, 3)
    assert None not in heads
    assert nn.Module.__call__ is call
