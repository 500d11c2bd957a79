"""The decoder and its evidence in JAX, and functions shared by the scripts of JAX libraries.

A query is a dict of arrays: weight (H, R) and bias (R,) of the last layer, values (R,), mask (R,).
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem_file import NUM_DRAWS, NUM_MANY, Problem, Track

Query = dict[str, jax.Array]

NUM_CHAINS = 4
NUM_WARMUP = 500
SEGMENT = 125  # NUTS draws per compiled call
CHECKPOINTS = (125, 250, 500, 1000)  # NUTS draws per chain


def decoder(problem: Problem) -> Callable[[Query, jax.Array], jax.Array]:
    """Logits (R,) at z (D,) for a query; weights of the first layer are constants."""
    weight, bias = jnp.asarray(problem.weight_0), jnp.asarray(problem.bias_0)

    def logits(query: Query, z: jax.Array) -> jax.Array:
        return jax.nn.relu(z @ weight + bias) @ query["weight"] + query["bias"]

    return logits


class Queries:
    """The evidence of all queries; also lifts functions of one query to a batch.

    Queries are answered alone or, through `jax.vmap`, as a batch.
    """

    def __init__(self, problem: Problem, form: str) -> None:
        self.batched = form == "batch"
        evidence = problem.evidence()
        self._evidence = {name: jnp.asarray(array) for name, array in evidence.items()}
        self.warm = np.arange(problem.num_queries if self.batched else 1)

    def one(self, index: int) -> Query:
        return {name: array[index] for name, array in self._evidence.items()}

    def take(self, index: np.ndarray) -> Query:
        """The queries of a batch, or the single query."""
        which = index if self.batched else int(index[0])
        return {name: array[which] for name, array in self._evidence.items()}

    def lift(self, function: Callable) -> Callable:
        """function(query, *others) for a single query, or vectorised over all arguments."""
        return jax.vmap(function) if self.batched else function

    def check(self, problem: Problem, log_joint: Callable[[Query, jax.Array], jax.Array]) -> None:
        """Check log_joint(query, z) against the problem's figures."""
        points = jnp.asarray(problem.check_z)
        of_points = jax.jit(jax.vmap(log_joint, in_axes=(None, 0)))
        rows = [of_points(self.one(i), points) for i in range(problem.num_queries)]
        problem.check(np.stack([np.asarray(row) for row in rows]))

    def keys(self, seed: int, index: np.ndarray) -> jax.Array:
        """A random key per query, which depends on the query alone."""
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), int(i)) for i in index])
        return keys if self.batched else keys[0]


def compiled(function: Callable, *args: Any) -> tuple[Callable, Any]:
    """The function compiled for arguments of these shapes, and the shape of its result."""
    return jax.jit(function).lower(*args).compile(), jax.eval_shape(function, *args)


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def estimates(draw: Callable[[jax.Array], jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """C-ELBO and importance estimates of log p(x), in nats.

    Args:
        draw: Maps a key to NUM_DRAWS log-weights log p(z, x) - log q(z) of fresh draws.
        key: A random key.
    """
    log_weights = jax.lax.map(draw, jax.random.split(key, NUM_MANY // NUM_DRAWS))
    many = log_weights.reshape(-1)
    return {
        "c_elbo": log_weights[0].mean(),
        f"importance_{NUM_DRAWS}": jax.nn.logsumexp(log_weights[0]) - jnp.log(NUM_DRAWS),
        f"importance_{NUM_MANY}": jax.nn.logsumexp(many) - jnp.log(many.size),
    }


def gaussian_estimates(
    log_joint: Callable[[jax.Array], jax.Array], draws: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """`estimates` from the Gaussian with the moments of the draws (N, D)."""
    mean = draws.mean(0)
    covariance = jnp.cov(draws.T) + 1e-8 * jnp.eye(len(mean))
    factor = jnp.linalg.cholesky(covariance)
    log_normaliser = 0.5 * len(mean) * jnp.log(2 * jnp.pi) + jnp.log(jnp.diag(factor)).sum()

    def draw(key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (NUM_DRAWS, len(mean)))
        log_q = -0.5 * (noise**2).sum(-1) - log_normaliser
        return jax.vmap(log_joint)(mean + noise @ factor.T) - log_q

    return estimates(draw, key)


def chains(
    queries: Queries,
    problem: Problem,
    seed: int,
    start: Callable[[Query, jax.Array], Any],
    advance: Callable[[Query, Any], tuple[Any, jax.Array]],
    log_joint: Callable[[Query, jax.Array], jax.Array],
    min_ess: Callable[[np.ndarray], float],
) -> Callable[[np.ndarray, Track, float], float]:
    """A compiled function that answers queries by NUTS.

    Args:
        queries, problem, seed: The queries, their problem, and the seed.
        start: Maps a query and a key to the state of warmed-up chains.
        advance: Maps a query and a state to the next state and SEGMENT draws
            (NUM_CHAINS, SEGMENT, D).
        log_joint: log p(z, x) of a query at z.
        min_ess: Smallest ESS over latent dimensions of draws (NUM_CHAINS, N, D).
    """

    def estimate(query: Query, draws: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        flat = draws.reshape(-1, draws.shape[-1])
        return gaussian_estimates(lambda z: log_joint(query, z), flat, key)

    query, key = queries.take(queries.warm), queries.keys(seed, queries.warm)
    start_all, state = compiled(queries.lift(start), query, key)
    advance_all, (_, draws) = compiled(queries.lift(advance), query, state)
    estimate_all = {}
    for num in CHECKPOINTS:
        shape = (*draws.shape[:-2], num, draws.shape[-1])
        several = jax.ShapeDtypeStruct(shape, draws.dtype)
        estimate_all[num], _ = compiled(queries.lift(estimate), query, several, key)

    def answer(index: np.ndarray, track: Track, budget: float) -> float:
        query, key = queries.take(index), queries.keys(seed, index)
        state, seconds = timed(start_all, query, key)
        segments: list[jax.Array] = []
        for num in CHECKPOINTS:
            while len(segments) * SEGMENT < num:
                (state, new), elapsed = timed(advance_all, query, state)
                segments.append(new)
                seconds += elapsed
            draws = jnp.concatenate(segments, axis=-2)
            found, elapsed = timed(estimate_all[num], query, draws, key)
            by_query = np.asarray(draws).reshape(-1, *draws.shape[-3:])
            track.add(seconds + elapsed, found, min_ess=[min_ess(each) for each in by_query])
            if seconds > budget:
                break
        return seconds

    return answer
