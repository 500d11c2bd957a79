"""Writes the answers of `crosscoding condition`: arrays, tables, pictures and a summary.

A picture is one query. A file of data holds one query per row; the summary lists them all.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crosscoding.checks.likelihood_parts import parts_of
from crosscoding.cli.console import formatted, out, write_json
from crosscoding.cli.frames import write_frames
from crosscoding.cli.tables import DataTable, write_table
from crosscoding.columns import TableEvidence
from crosscoding.display import Cell, Description
from crosscoding.display.terminal import as_rich
from crosscoding.errors import counted
from crosscoding.formats.pixels import Pixels
from crosscoding.formats.table_style import TableStyle
from crosscoding.likelihoods import Categorical
from crosscoding.model.vae import VAE
from crosscoding.plots import sheet, write_png
from crosscoding.result.lazy_verdicts import marked
from crosscoding.result.posterior import Posterior
from crosscoding.target.vae_target import VAETarget

_PIXELS = 6 * 28  # approximate width of a datum in pictures
_FEW = 20  # effective draws below which log p(y|x) is an underestimate
_COLUMNS = 8
_MOST_SHOWN = 64
# Quantiles of the completions. NumPy's methods "lower" and "higher" return values that were drawn.
_INTERVAL: dict[str, tuple[float, Literal["lower", "higher"]]] = {
    "low": (0.05, "lower"),
    "high": (0.95, "higher"),
}
PURPOSE = "interval"  # what the files are used for; answers are computed and judged for it

# What `result.advice` suggests, in options of the command line.
_OPTIONS = {
    "auto": "--method auto",
    "hmc": "--method hmc",
    "smc": "--method smc",
    "large_smc": "--method smc",
    "mixture": "--method mixture",
    "seed": "another --seed",
}

Summary = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """A posterior and draws from it.

    Args:
        vae: The model.
        posterior: Batch shape () or (N,).
        values: The given data, (*batch, *data).
        mask: True = observed, the same shape.
        completions: Draws of the complete data, (num, *batch, *data).
        latent: The z of each completion, (num, *batch, latent).
    """

    vae: VAE
    posterior: Posterior
    values: Tensor
    mask: Tensor
    completions: Tensor
    latent: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """E[t|x], (*batch, *data)."""
        return self.posterior.mean()

    @cached_property
    def std(self) -> Tensor:
        """Its standard deviation, (*batch, *data)."""
        return self.posterior.std()

    # ---- the summary ---------------------------------------------------------------------------

    def summary(self) -> Summary:
        """The figures, ready for JSON."""
        posterior, queries = self.posterior, self._queries()
        if posterior.batch_shape:
            return {"queries": queries, "seconds": posterior.seconds}
        trace = [
            {"name": s.name, "decodes": s.decodes.item(), "seconds": s.seconds.item()}
            for s in posterior.trace
        ]
        stats = {name: _numbers(value)[0] for name, value in posterior.stats.items()}
        return queries[0] | {"trace": trace, "stats": stats, "seconds": posterior.seconds}

    def _queries(self) -> list[Summary]:
        """The figures of each query."""
        posterior = self.posterior
        verdicts = [verdict.on(PURPOSE) for verdict in posterior.verdicts]
        batch = posterior.batch_shape
        columns = {
            "num_observed": self.mask.flatten(len(batch)).sum(-1).reshape(-1).tolist(),
            "log_evidence": _numbers(posterior.log_evidence),
            "log_evidence_error": _numbers(posterior.log_evidence_error),
            "c_elbo": _numbers(posterior.c_elbo),
            "c_elbo_is_bound": [
                posterior.bound if known else None
                for known in posterior.c_elbo.isfinite().reshape(-1).tolist()
            ],
            "ess": _numbers(posterior.ess),
            "pareto_k": _numbers(posterior.pareto_k),
            "verdict": [verdict.label for verdict in verdicts],
            "purposes": [verdict.purposes for verdict in verdicts],
            "reasons": [list(verdict.reasons) for verdict in verdicts],
            "advice": [verdict.advice_in(_OPTIONS) for verdict in verdicts],
        }
        if self.values.isfinite().all():  # the truth is known
            columns["query_log_prob"] = _numbers(posterior.query_log_prob(self.values))
            columns["query_ess"] = _numbers(posterior.query_ess(self.values))
        return [
            dict(zip(columns, query, strict=True)) for query in zip(*columns.values(), strict=True)
        ]

    # ---- files ---------------------------------------------------------------------------------

    def write(
        self,
        folder: Path,
        summary: Summary,
        table: DataTable | None,
        style: TableStyle | None = None,
        *,
        parquet: bool = False,
    ) -> None:
        """Write samples.npz, tables or pictures if the data are such, and summary.json last.

        A folder that has a summary.json is therefore complete, and all its files are from one run.

        Args:
            folder: Where to write.
            summary: The summary, including the request.
            table: The table that the values come from, if any; written tables have its style.
            style: Style of the rows of a model with a table.
            parquet: Whether such rows are written as .parquet, not .csv.
        """
        (folder / "summary.json").unlink(missing_ok=True)
        arrays = ("completions", "latent", "mask", "mean", "std")
        np.savez_compressed(
            folder / "samples.npz", **{name: getattr(self, name).numpy() for name in arrays}
        )
        target = self.posterior.target
        if isinstance(target, VAETarget) and isinstance(target.evidence, TableEvidence):
            own = self.posterior, style or TableStyle(), summary["seed"]
            write_frames(folder, *own, parquet=parquet)
        elif len(self.vae.data_shape) == 1:
            self._write_tables(folder, table)
        if Pixels.suit(self.vae) and self.posterior.batch_shape.numel() == 1:
            self._write_pictures(folder)
        write_json(summary, folder / "summary.json")

    def _write_tables(self, folder: Path, table: DataTable | None) -> None:
        names, style = (None, TableStyle()) if table is None else (table.names, table.style)
        write_table(folder / "mean.csv", self.mean.numpy(), names, style)
        for name in _INTERVAL:
            write_table(folder / f"{name}.csv", self._quantile(name).numpy(), names, style)

    def _quantile(self, name: str) -> Tensor:
        """The low or high quantile of the completions, (*batch, *data), always a drawn value.

        NaN for unobserved classes, which have no order.
        """
        share, method = _INTERVAL[name]
        ends = torch.from_numpy(np.quantile(self.completions.numpy(), share, axis=0, method=method))
        for part in parts_of(self.vae.likelihood, ends, self.mask):
            if isinstance(part.likelihood, Categorical) and not part.likelihood.one_hot:
                own, mask = part.tensors
                own[~mask] = math.nan  # `own` is a view of `ends`
        return ends

    def _write_pictures(self, folder: Path) -> None:
        shape, pixels = self.vae.data_shape, Pixels.of(self.vae)
        mean, std, mask = (tensor.reshape(shape) for tensor in (self.mean, self.std, self.mask))
        draws = self.completions[:_MOST_SHOWN].reshape(-1, *shape)
        pictures = [pixels.evidence(draw, mask) for draw in draws]
        rows = [pictures[i : i + _COLUMNS] for i in range(0, len(pictures), _COLUMNS)]
        magnify = max(_PIXELS // shape[-1], 1)
        for name, picture in {
            "evidence": pixels.evidence(mean, mask, hide=True),
            "samples": sheet(rows),
            "mean": pixels.evidence(mean, mask),
            "uncertainty": pixels.spread(std),
        }.items():
            write_png(picture, folder / f"{name}.png", magnify=magnify)

    # ---- words ---------------------------------------------------------------------------------

    def print(self, summary: Summary, folder: Path) -> None:
        """Print the most important figures."""
        queries = summary.get("queries", [summary])
        rows = _of_one(summary, queries[0]) if len(queries) == 1 else _of_many(summary, queries)
        notes = []
        if len(queries) == 1:
            notes += queries[0]["reasons"]
            notes += [f"next step: {queries[0]['advice']}"] if queries[0]["advice"] else []
        notes += [f"{doubt['name']}: {doubt['message']}" for doubt in summary["doubts"]]
        out.print(as_rich(Description(facts=tuple(rows.items()), notes=tuple(notes))))
        num = summary["samples"]
        what = f"{counted(num, 'completion')}{' of each query' * (len(queries) > 1)}"
        out.print(f"wrote {what} and a summary to {folder}", markup=False)


def _of_one(summary: Summary, query: Summary) -> dict[str, Cell]:
    rows: dict[str, Cell] = {
        "method": summary["method"],
        "observed elements": str(query["num_observed"]),
        "log p(x), nats": formatted(query["log_evidence"], 2),
        "C-ELBO, nats": formatted(query["c_elbo"], 2)
        + (" (no bound)" if query["c_elbo_is_bound"] is False else ""),
    }
    if "query_log_prob" in query:
        rows["log p(y|x) of the true rest, nats"] = formatted(query["query_log_prob"], 2) + (
            "" if (query["query_ess"] or 0) >= _FEW else " or more (few draws predict it)"
        )
    return rows | {
        "effective sample size": formatted(query["ess"], 2),
        "seconds": formatted(summary["seconds"], 2),
        f"verdict on {PURPOSE}s": marked(query["verdict"]),
    }


def _of_many(summary: Summary, queries: list[Summary]) -> dict[str, Cell]:
    verdicts = Counter(query["verdict"] for query in queries).most_common()
    return {
        "method": summary["method"],
        "queries": str(len(queries)),
        "seconds": formatted(summary["seconds"], 2),
        f"verdicts on {PURPOSE}s": ", ".join(f"{num} {label}" for label, num in verdicts)
        + " (reasons in summary.json)",
    }


def _numbers(values: Tensor) -> list[float | None]:
    """One figure per query, None where it is not finite."""
    known = values.isfinite().reshape(-1).tolist()
    return [
        number if finite else None
        for number, finite in zip(values.reshape(-1).tolist(), known, strict=True)
    ]
