"""Measures BlackJAX: NUTS and adaptive tempered SMC. See problem_file.py for input and output.

python blackjax_peers.py problem.npz out.json --seed 0 --budget-seconds 30
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import in_jax
import jax
import jax.numpy as jnp
import numpy as np
import problem_file
from blackjax.diagnostics import effective_sample_size
from blackjax.smc import extend_params
from blackjax.smc.resampling import systematic
from blackjax.smc.tuning.from_particles import particles_covariance_matrix
from in_jax import NUM_CHAINS, NUM_WARMUP, SEGMENT, Queries, Query, timed
from problem_file import Peer, Problem, Track


def log_prior(z: jax.Array) -> jax.Array:
    return -0.5 * (z**2).sum(-1) - 0.5 * z.shape[-1] * jnp.log(2 * jnp.pi)


def log_likelihood_of(problem: Problem) -> Callable[[Query, jax.Array], jax.Array]:
    decode = in_jax.decoder(problem)

    def log_likelihood(query: Query, z: jax.Array) -> jax.Array:
        logits = decode(query, z)
        return ((query["values"] * logits - jax.nn.softplus(logits)) * query["mask"]).sum(-1)

    return log_likelihood


def nuts(problem: Problem, form: str, seed: int) -> Callable[[np.ndarray, Track, float], float]:
    queries, log_likelihood = Queries(problem, form), log_likelihood_of(problem)

    def log_joint(query: Query, z: jax.Array) -> jax.Array:
        return log_prior(z) + log_likelihood(query, z)

    queries.check(problem, log_joint)
    step = blackjax.nuts.build_kernel()

    def start(query: Query, key: jax.Array) -> Any:
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, partial(log_joint, query), is_mass_matrix_diagonal=False
        )

        def chain(key: jax.Array) -> Any:
            for_start, for_warmup, for_draws = jax.random.split(key, 3)
            z = jax.random.normal(for_start, (problem.latent_dim,))
            (state, parameters), _ = adaptation.run(for_warmup, z, num_steps=NUM_WARMUP)
            return state, parameters, for_draws

        return jax.vmap(chain)(jax.random.split(key, NUM_CHAINS))

    def advance(query: Query, chains: Any) -> tuple[Any, jax.Array]:
        def one_chain(state: Any, parameters: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
                state, _ = step(key, state, partial(log_joint, query), **parameters)
                return state, state.position

            key, for_segment = jax.random.split(key)
            state, draws = jax.lax.scan(one, state, jax.random.split(for_segment, SEGMENT))
            return (state, parameters, key), draws

        return jax.vmap(one_chain)(*chains)

    def min_ess(draws: np.ndarray) -> float:
        return float(effective_sample_size(jnp.asarray(draws)).min())

    return in_jax.chains(queries, problem, seed, start, advance, log_joint, min_ess)


def smc(
    num_particles: tuple[int, ...],
    num_moves: int,
    num_leapfrog: int,
    target_ess: float,
    target_accept: float,
    problem: Problem,
    form: str,
    seed: int,
) -> Callable[[np.ndarray, Track, float], float]:
    """A function that answers queries by tempered SMC with HMC moves, with more and more particles.

    At every temperature, the inverse mass matrix is the particles' covariance; the step size adapts
    to the acceptance rate. The time to the tolerance is that of the run that reaches it, without
    earlier runs with fewer particles.
    """
    queries, log_likelihood = Queries(problem, form), log_likelihood_of(problem)
    queries.check(problem, lambda query, z: log_prior(z) + log_likelihood(query, z))
    hmc = partial(blackjax.hmc.build_kernel(), num_integration_steps=num_leapfrog)

    def parameters(particles: jax.Array, step_size: jax.Array) -> dict[str, jax.Array]:
        covariance = particles_covariance_matrix(particles) + 1e-6 * jnp.eye(particles.shape[-1])
        return extend_params({"inverse_mass_matrix": covariance, "step_size": step_size})

    def run(query: Query, key: jax.Array, size: int) -> dict[str, jax.Array]:
        kernel = blackjax.smc.adaptive_tempered.build_kernel(
            log_prior,
            partial(log_likelihood, query),
            hmc,
            blackjax.hmc.init,
            systematic,
            target_ess,
        )

        def going_on(carry: tuple) -> jax.Array:
            return carry[0].tempering_param < 1.0

        def step(carry: tuple) -> tuple:
            state, step_size, log_evidence, key = carry
            key, for_step = jax.random.split(key)
            moves = parameters(state.particles, step_size)
            state, info = kernel(for_step, state, num_moves, moves)
            accepted = info.update_info.acceptance_rate.mean()
            step_size = step_size * jnp.exp(2.0 * (accepted - target_accept))
            return state, step_size, log_evidence + info.log_likelihood_increment, key

        for_start, key = jax.random.split(key)
        particles = jax.random.normal(for_start, (size, problem.latent_dim))
        state = blackjax.smc.adaptive_tempered.init(particles)
        carry = (state, jnp.asarray(1.0 / problem.latent_dim**0.25), jnp.asarray(0.0), key)
        return {"smc": jax.lax.while_loop(going_on, step, carry)[2]}

    query, key = queries.take(queries.warm), queries.keys(seed, queries.warm)
    compiled = {}
    for size in num_particles:
        of_size = queries.lift(partial(run, size=size))
        compiled[size], _ = in_jax.compiled(of_size, query, key)

    def answer(index: np.ndarray, track: Track, budget: float) -> float:
        query, key = queries.take(index), queries.keys(seed, index)
        total = 0.0
        for size, run_all in compiled.items():
            found, seconds = timed(run_all, query, key)
            track.add(seconds, found, num_particles=np.full(len(index), size))
            total += seconds
            if track.done() or total > budget:
                break
        return total

    return answer


_SMC = {
    "num_particles": (250, 500, 1000, 2000, 4000),
    "num_moves": 3,
    "num_leapfrog": 5,
    "target_ess": 0.5,
    "target_accept": 0.8,
}

PEERS = {
    "nuts": Peer(
        "BlackJAX NUTS",
        {
            "num_chains": NUM_CHAINS,
            "num_warmup": NUM_WARMUP,
            "checkpoints": in_jax.CHECKPOINTS,
            "dense_mass": True,
            "adaptation": "window, each chain its own",
            "chains": "vectorised",
            "log p(x)": "importance with a Gaussian of the draws' moments",
        },
        nuts,
    ),
    "smc": Peer(
        "BlackJAX adaptive tempered SMC",
        {**_SMC, "moves": "HMC, mass matrix of the particles, step size by acceptance"},
        partial(smc, *_SMC.values()),
    ),
}

if __name__ == "__main__":
    problem_file.main("blackjax", blackjax.__version__, PEERS)
