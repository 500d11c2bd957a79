"""Measures NumPyro: SVI with two guides, and NUTS. See problem_file.py for input and output.

python numpyro_peers.py problem.npz out.json --seed 0 --budget-seconds 30
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import in_jax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import problem_file
from in_jax import NUM_CHAINS, NUM_WARMUP, SEGMENT, Queries, Query, timed
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import NUTS, SVI, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal
from numpyro.infer.util import log_density
from problem_file import NUM_DRAWS, Peer, Problem, Track

Model = Callable[[Query], None]


def model_of(problem: Problem) -> Model:
    decode = in_jax.decoder(problem)
    prior = dist.Normal(0.0, 1.0).expand([problem.latent_dim]).to_event(1)

    def model(query: Query) -> None:
        z = numpyro.sample("z", prior)
        pixels = dist.Bernoulli(logits=decode(query, z)).mask(query["mask"]).to_event(1)
        numpyro.sample("x", pixels, obs=query["values"])

    return model


def log_joint(model: Model, query: Query, z: jax.Array) -> jax.Array:
    """log p(z, x) in nats, as NumPyro computes it."""
    return log_density(model, (query,), {}, {"z": z})[0]


def schedule(step: jax.Array, *, start: float, half_life: float, least: float) -> jax.Array:
    return start * jnp.maximum(0.5 ** (step / half_life), least)


def svi(
    guide_of: Callable[[Model], Any],
    num_particles: int,
    learning_rate: dict[str, float],
    checkpoints: tuple[int, ...],
    problem: Problem,
    form: str,
    seed: int,
) -> Callable[[np.ndarray, Track, float], float]:
    """A compiled function that answers queries by SVI; checkpoints are numbers of steps."""
    queries, model = Queries(problem, form), model_of(problem)
    queries.check(problem, partial(log_joint, model))
    guide = guide_of(model)
    adam = numpyro.optim.Adam(partial(schedule, **learning_rate))
    loss = Trace_ELBO(num_particles=num_particles, vectorize_particles=True)
    engine = SVI(model, guide, adam, loss)
    first = engine.init(jax.random.key(seed), queries.one(0))

    def start(query: Query, key: jax.Array) -> Any:
        return first._replace(rng_key=key)  # every guide starts at the prior's median

    def advance(query: Query, state: Any, num_steps: jax.Array) -> Any:
        return jax.lax.fori_loop(0, num_steps, lambda _, s: engine.update(s, query)[0], state)

    def estimate(query: Query, state: Any, key: jax.Array) -> dict[str, jax.Array]:
        transform = guide.get_transform(engine.get_params(state))

        def draw(key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, (NUM_DRAWS, problem.latent_dim))
            z, passed = jax.vmap(transform.call_with_intermediates)(noise)
            ladj = jax.vmap(transform.log_abs_det_jacobian)(noise, z, passed)
            log_q = dist.Normal().log_prob(noise).sum(-1) - ladj
            return jax.vmap(partial(log_joint, model, query))(z) - log_q

        return in_jax.estimates(draw, key)

    query, key = queries.take(queries.warm), queries.keys(seed, queries.warm)
    counts = np.ones(len(queries.warm), np.int32) if queries.batched else np.int32(1)
    start_all, state = in_jax.compiled(queries.lift(start), query, key)
    advance_all, _ = in_jax.compiled(queries.lift(advance), query, state, counts)
    estimate_all, _ = in_jax.compiled(queries.lift(estimate), query, state, key)

    def answer(index: np.ndarray, track: Track, budget: float) -> float:
        query, key = queries.take(index), queries.keys(seed + 1, index)
        state, seconds = timed(start_all, query, key)
        done = 0
        for num in checkpoints:
            state, elapsed = timed(advance_all, query, state, counts * np.int32(num - done))
            done, seconds = num, seconds + elapsed
            found, elapsed = timed(estimate_all, query, state, key)
            track.add(seconds + elapsed, found, steps=np.full(len(index), num))
            if track.done() or seconds > budget:
                break
        return seconds + elapsed

    return answer


def nuts(problem: Problem, form: str, seed: int) -> Callable[[np.ndarray, Track, float], float]:
    queries, model = Queries(problem, form), model_of(problem)
    queries.check(problem, partial(log_joint, model))
    kernel = NUTS(model, dense_mass=True)
    kernel.init(jax.random.key(seed), NUM_WARMUP, model_args=(queries.one(0),))

    def steps(query: Query, state: Any, num: int) -> tuple[Any, jax.Array]:
        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = jax.vmap(lambda chain: kernel.sample(chain, (query,), {}))(state)
            return state, state.z["z"]

        state, draws = jax.lax.scan(step, state, None, length=num)
        return state, draws.swapaxes(0, 1)

    def start(query: Query, key: jax.Array) -> Any:
        keys = jax.random.split(key, NUM_CHAINS)
        init = partial(kernel.init, num_warmup=NUM_WARMUP, model_args=(query,))
        return steps(query, jax.vmap(init)(keys), NUM_WARMUP)[0]

    def min_ess(draws: np.ndarray) -> float:
        return float(effective_sample_size(draws).min())

    advance = partial(steps, num=SEGMENT)
    joint = partial(log_joint, model)
    return in_jax.chains(queries, problem, seed, start, advance, joint, min_ess)


_MVN = {
    "num_particles": 16,
    "learning_rate": {"start": 0.03, "half_life": 500.0, "least": 0.03},
    "checkpoints": (125, 250, 500, 1000, 2000, 4000),
}
_IAF = {
    "num_particles": 64,
    "learning_rate": {"start": 0.01, "half_life": 1000.0, "least": 0.03},
    "checkpoints": (250, 500, 1000, 2000, 4000, 8000),
}
_IAF_GUIDE = {"num_flows": 3, "hidden_dims": [32, 32]}
_MVN_GUIDE = {"init_scale": 1.0}  # the prior's scale; with 0.1, it misses modes in 2-d


def _mvn(model: Model) -> AutoMultivariateNormal:
    return AutoMultivariateNormal(model, init_loc_fn=init_to_median, **_MVN_GUIDE)


def _iaf(model: Model) -> AutoIAFNormal:
    return AutoIAFNormal(model, init_loc_fn=init_to_median, **_IAF_GUIDE)


PEERS = {
    "svi-mvn": Peer(
        "NumPyro SVI, AutoMultivariateNormal",
        {**_MVN, **_MVN_GUIDE, "init": "prior median", "optimiser": "Adam"},
        partial(svi, _mvn, *_MVN.values()),
    ),
    "svi-iaf": Peer(
        "NumPyro SVI, AutoIAFNormal",
        {**_IAF, **_IAF_GUIDE, "optimiser": "Adam"},
        partial(svi, _iaf, *_IAF.values()),
    ),
    "nuts": Peer(
        "NumPyro NUTS",
        {
            "num_chains": NUM_CHAINS,
            "num_warmup": NUM_WARMUP,
            "checkpoints": in_jax.CHECKPOINTS,
            "dense_mass": True,
            "chains": "vectorised",
            "log p(x)": "importance with a Gaussian of the draws' moments",
        },
        nuts,
    ),
}

if __name__ == "__main__":
    problem_file.main("numpyro", numpyro.__version__, PEERS)
