"""References for log p(x) and p(z|x): by `Grid` in two dimensions, by long runs of SMC in more.

An SMC reference takes about 7 s per query and seed in 20 dimensions. It is therefore cached in
benchmarks/results/cache, a few queries at a time.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from table import RESULTS
from torch import Tensor

import crosscoding as cc
from crosscoding.errors import BudgetError
from crosscoding.methods.numerics.annealing import Annealing
from crosscoding.methods.numerics.resampling import log_mean_of_islands, systematic, taken

CACHE = RESULTS / "cache"
WANTED_ERROR = 0.02  # nats: pooled standard error of log p(x)
ANNEALING = Annealing(
    num_particles=8192, num_islands=16, num_moves=3, num_leapfrog=4, ess_share=0.6
)
_MOST_SEEDS = 12
_NUM_KEPT = 2048  # draws per query
_AT_ONCE = 5
_GRID_AT_ONCE = 50


@dataclass(eq=False)
class Reference:
    """log p(x) in nats with its standard error, (B,), and draws of equal weight, (R, B, latent)."""

    log_evidence: Tensor
    error: Tensor
    draws: Tensor


def smc(name: str, target: cc.Target) -> Reference:
    """The SMC reference of every query of a target, from the cache if possible.

    Args:
        name: Prefix of the cached files, whose names also contain a fingerprint of the target.
        target: A flat target.
    """
    pieces = []
    for start in range(0, target.num_queries, _AT_ONCE):
        some = torch.arange(start, min(start + _AT_ONCE, target.num_queries))
        part = target.select(some).prepare()
        path = CACHE / f"{name}-{start}-{_fingerprint(part)}.npz"
        if not path.is_file():
            _save(path, _annealed(part))
            print(f"  reference {name}: {int(some[-1]) + 1} of {target.num_queries}", flush=True)
        with np.load(path) as stored:
            pieces.append([torch.from_numpy(stored[key]) for key in ("log_evidence", "error")])
            pieces[-1].append(torch.from_numpy(stored["draws"]))
    log_evidence, error, draws = zip(*pieces, strict=True)
    return Reference(torch.cat(log_evidence), torch.cat(error), torch.cat(draws, 1))


def _annealed(target: cc.Target) -> Reference:
    """Run seed after seed until the pooled islands agree; NaN where annealing fails."""
    nothing = torch.empty(0)
    islands, particles = [nothing] * target.num_queries, [nothing] * target.num_queries
    rows = torch.arange(target.num_queries)
    for seed in range(_MOST_SEEDS):
        for row, log_islands, found in _runs(target, rows, seed):
            islands[row] = torch.cat([islands[row], log_islands])
            particles[row] = torch.cat([particles[row], found]) if seed else found
        errors = [_error(islands[row]) for row in rows.tolist()]
        rows = rows[torch.tensor([error > WANTED_ERROR for error in errors])]
        if not len(rows):
            break
    figures = [_pooled(*parts, target) for parts in zip(islands, particles, strict=True)]
    log_evidence, error, draws = zip(*figures, strict=True)
    return Reference(torch.stack(log_evidence), torch.stack(error), torch.stack(draws, 1))


def _runs(target: cc.Target, rows: Tensor, seed: int) -> list[tuple[int, Tensor, Tensor]]:
    """For each query: its row, log Ẑ of islands, (I,), and their particles, (I, S / I, latent).

    A query on which annealing fails is left out, without affecting the others.
    """
    try:
        generator = torch.Generator().manual_seed(seed)
        swarm = ANNEALING.run(target.select(rows), generator=generator)
    except BudgetError:
        each = rows.split(1) if len(rows) > 1 else ()
        return [run for row in each for run in _runs(target, row, seed)]
    z = swarm.z.unflatten(0, (ANNEALING.num_islands, -1))
    return [(row, swarm.log_islands[:, b], z[:, :, b]) for b, row in enumerate(rows.tolist())]


def _error(log_islands: Tensor) -> float:
    """Standard error of log p(x); NaN, which ends the loop over seeds, if no run succeeded."""
    return float(log_mean_of_islands(log_islands[:, None])[1]) if len(log_islands) else math.nan


def _pooled(
    log_islands: Tensor, particles: Tensor, target: cc.Target
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(log_islands):
        nothing = torch.tensor(math.nan)
        return nothing, nothing, torch.full((_NUM_KEPT, target.latent_dim), math.nan)
    log_evidence, error = log_mean_of_islands(log_islands[:, None])
    log_weights = log_islands[:, None].expand(particles.shape[:2]).flatten()[:, None]
    index = systematic(log_weights, torch.tensor([0.5]), _NUM_KEPT)
    return log_evidence[0], error[0], taken(particles.flatten(0, 1), index[:, 0])


def _fingerprint(target: cc.Target) -> str:
    """A digest of the queries, the model and the settings."""
    digest = hashlib.sha256(repr((ANNEALING, WANTED_ERROR, _MOST_SEEDS, _NUM_KEPT)).encode())
    evidence, vae = target.evidence, target.vae
    for tensor in (evidence.values, evidence.mask, *vae.decoder.state_dict().values()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    digest.update(repr(vae.likelihood).encode())
    return digest.hexdigest()[:12]


def _save(path: Path, reference: Reference) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.numpy() for name, tensor in vars(reference).items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


def exact_parts(vae: cc.VAE, evidence: cc.Evidence) -> Iterator[cc.Posterior]:
    """Answers of `Grid(tolerance=1e-4)`, a few queries at a time, as they have many cells."""
    grid = cc.methods.Grid(tolerance=1e-4)
    num = len(evidence.values)
    for start in range(0, num, _GRID_AT_ONCE):
        yield cc.condition(vae, evidence[start : min(start + _GRID_AT_ONCE, num)], grid, seed=0)
