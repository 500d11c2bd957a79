"""The answers to rows, as arrays: moments, quantiles, draws, log p(x) and verdicts.

A row's answer depends only on the row, the seed and the model, as all queries share their noise. In
blocks of another size it agrees only up to Monte Carlo error, because matrix products are rounded
differently there. Draws of different rows should not all repeat the same noise, so each row takes
its draws from another place among `NUM_DRAWS` of them, computed from its number in the source.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from crosscoding.batch.rows import Rows
from crosscoding.batch.settings import NUM_DRAWS, Settings
from crosscoding.columns import Table
from crosscoding.conditioning import condition
from crosscoding.covariates import mapped
from crosscoding.errors import BudgetError
from crosscoding.evidence import Evidence
from crosscoding.model.vae import VAE
from crosscoding.progress import Report
from crosscoding.result.frames import means_of
from crosscoding.result.posterior import Posterior
from crosscoding.result.purposes import PURPOSES

_COPIES = 3  # of all draws of a block, while they are sorted
_MOST_ROWS = 1000  # at once on a CPU: 0.13 ms per row of 3 numbers, against 0.18 for 20,000
_STEP = 0x9E3779B97F4A7C15  # Weyl's sequence on 64 bits: the golden ratio, as in SplitMix64


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to n rows.

    Attributes:
        rows: The rows that were answered.
        arrays: By name: "mean", "low", "high", other quantiles and "draw_0" onwards of shape
            (n, *data), in the units of tensors; "probability" of the likeliest category, NaN where
            there is none; "log_evidence", its "log_evidence_error" and "ess", (n,); "seconds",
            each row's share of the wall-clock time, (n,).
        verdicts: Labels by purpose, n each.
        rejected: Why other rows could not be answered, by number.
    """

    rows: Rows
    arrays: dict[str, np.ndarray]
    verdicts: dict[str, list[str]]
    rejected: dict[int, str] = field(default_factory=dict)


def answers_to(vae: VAE, rows: Rows, settings: Settings, max_bytes: int, report: Report) -> Answers:
    """Answer rows block by block, as many at once as fit into memory.

    A block that cannot be answered is halved until the rows at fault are found.

    Args:
        vae: The model.
        rows: The rows.
        settings: What to answer, and how.
        max_bytes: Approximate working memory.
        report: Called with the progress during the work.
    """
    of_row = NUM_DRAWS * (_COPIES * vae.data_size + 2 * vae.latent_dim)
    size = max(max_bytes // (of_row * rows.values.element_size()), 1)
    size = min(size, _MOST_ROWS) if vae.device.type == "cpu" else size
    todo = [(low, min(low + size, len(rows))) for low in range(0, len(rows), size)][::-1]
    parts, rejected = [], {}
    while todo:
        low, high = todo.pop()
        try:
            parts.append(_of_block(vae, rows[low:high], settings, max_bytes, report))
        except (ValueError, BudgetError) as error:
            if high - low == 1:
                rejected[int(rows.numbers[low])] = str(error)
            else:
                middle = (low + high) // 2
                todo += [(middle, high), (low, middle)]
    if not parts:
        parts.append(_of_block(vae, rows[:0], settings, max_bytes, report))
    places = np.flatnonzero(~np.isin(rows.numbers, list(rejected)))
    return Answers(
        rows[places],
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        {p: [label for part in parts for label in part.verdicts[p]] for p in PURPOSES},
        rejected,
    )


def _of_block(vae: VAE, rows: Rows, settings: Settings, max_bytes: int, report: Report) -> Answers:
    began = time.perf_counter()
    given = mapped(lambda tensor: tensor.to(vae.device), rows.given)
    evidence = Evidence(rows.values.to(vae.device), rows.mask.to(vae.device), given=given)
    posterior = condition(
        vae,
        evidence,
        settings.method,
        seed=settings.seed,
        report=report,
        max_bytes=max_bytes,
    )
    if posterior._findings.interrupted:  # cut short: other runs would answer otherwise
        raise KeyboardInterrupt
    arrays = _of_elements(vae.table, posterior, settings)
    if settings.draws:
        arrays |= _draws(posterior, rows.numbers, settings)
    if vae.table is None and rows.units is not None:  # not rounded to the model's dtype
        known = rows.mask.numpy()
        arrays = {name: np.where(known, rows.units, own) for name, own in arrays.items()}
    arrays |= _figures(posterior)
    verdicts = posterior.verdicts
    labels = {p: [verdicts.label(i, p) for i in range(len(rows))] for p in PURPOSES}
    arrays["seconds"] = _seconds(posterior, time.perf_counter() - began)
    return Answers(rows, arrays, labels)


def _seconds(posterior: Posterior, total: float) -> np.ndarray:
    """Each row's share of its block's time: its own in stages, and an equal part of the rest."""
    own = np.zeros(posterior.batch_shape[0])
    for stage in posterior.trace:
        own += stage.seconds.double().cpu().numpy()
    return own + max(total - own.sum(), 0.0) / max(len(own), 1)


def _figures(posterior: Posterior) -> dict[str, np.ndarray]:
    names = ("log_evidence", "log_evidence_error", "ess")
    return {name: getattr(posterior, name).double().cpu().numpy() for name in names}


def _of_elements(
    table: Table | None, posterior: Posterior, settings: Settings
) -> dict[str, np.ndarray]:
    """Means, quantiles and, for tables with categories, the probability of the likeliest one."""
    arrays = {}
    if table is None:
        arrays["mean"] = posterior.mean().cpu().numpy()
    else:
        arrays["mean"] = means_of(posterior, table).cpu().numpy()
        if any(column.is_listed for column in table.columns):
            arrays["probability"] = posterior.probabilities().amax(-1).cpu().numpy()
    quantiles = posterior.quantile(settings.levels, num=NUM_DRAWS, seed=settings.seed).cpu().numpy()
    return arrays | dict(zip(settings.quantile_names, quantiles, strict=True))


def _draws(posterior: Posterior, numbers: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """Draws of complete rows; each row takes consecutive ones, starting at its own place."""
    drawn = posterior.predict(NUM_DRAWS, seed=settings.seed)
    mixed = numbers.astype(np.uint64) * np.uint64(_STEP)
    first = (mixed >> np.uint64(33)).astype(np.int64) % NUM_DRAWS
    at = np.arange(len(numbers))
    return {
        f"draw_{draw}": drawn[torch.from_numpy((first + draw) % NUM_DRAWS), torch.from_numpy(at)]
        .cpu()
        .numpy()
        for draw in range(settings.draws)
    }
