"""`crosscoding condition`: a user's picture, part of it observed, completed by a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from crosscoding import zoo
from crosscoding.cli.console import (
    figure,
    out,
    output_folder,
    print_json,
    progress,
    use_one_thread,
    write_json,
)
from crosscoding.cli.observe import parse_mask
from crosscoding.cli.pixels import Pixels
from crosscoding.condition import condition
from crosscoding.evidence import Evidence
from crosscoding.plots import sheet, write_png
from crosscoding.posterior import Posterior
from crosscoding.registry import METHODS
from crosscoding.registry import method as method_named

_PIXELS = 6 * 28  # about as wide as a datum is shown
_FEW = 20  # draws that count
_COLUMNS = 8
_MOST_SHOWN = 64


@dataclass(frozen=True)
class Request:
    """What was asked on the command line."""

    model: str
    observe: str
    image: Path | None
    digit: int | None
    samples: int
    method: str | None
    out: Path
    seed: int


def run(request: Request, *, as_json: bool) -> None:
    """Answer the request and write the results."""
    use_one_thread()
    vae = zoo.load(request.model)
    method = None if request.method is None else method_named(request.method)
    pixels = Pixels.of(vae)
    datum = _datum(request, pixels)
    mask = parse_mask(request.observe, vae.data_shape, seed=request.seed)
    folder = output_folder(request.out)
    with progress("conditioning") as report:
        posterior = condition(vae, Evidence(datum, mask), method, seed=request.seed, report=report)
        completions = posterior.predict(request.samples, seed=request.seed)
        latent = posterior.sample(request.samples, seed=request.seed)  # those of the completions
    summary = _summary(request, posterior, mask, datum)
    np.savez_compressed(
        folder / "samples.npz",
        completions=completions.numpy(),
        latent=latent.numpy(),
        mask=mask.numpy(),
    )
    _write_pictures(folder, posterior, pixels, datum, mask, completions)
    write_json(summary, folder / "summary.json")
    if as_json:
        print_json(summary)
    else:
        _print(summary, folder)


def _datum(request: Request, pixels: Pixels) -> Tensor:
    if (request.image is None) == (request.digit is None):
        raise ValueError("expected one of --image FILE and --digit NUMBER (0 to 39)")
    if request.image is not None:
        return pixels.read(request.image)
    digits = zoo.digits()[0]
    if not pixels.binary or pixels.shape != digits.shape[1:]:
        raise ValueError(
            f"expected --image FILE for {request.model}, a picture of {pixels.shape[-1]} x "
            f"{pixels.shape[-2]} pixels, got --digit: {request.model} is no model of digits"
        )
    return digits[request.digit]


def _summary(request: Request, posterior: Posterior, mask: Tensor, datum: Tensor) -> dict[str, Any]:
    def number(value: Tensor) -> float | None:
        return value.item() if value.isfinite() else None

    return {
        "model": request.model,
        "method": posterior.method if request.method is None else METHODS[request.method].label,
        "observe": request.observe,
        "seed": request.seed,
        "samples": request.samples,
        "observed_pixels": int(mask.sum()),
        "log_evidence": number(posterior.log_evidence),
        "log_evidence_error": number(posterior.log_evidence_error),
        "c_elbo": number(posterior.c_elbo),
        "c_elbo_is_bound": posterior.bound if posterior.c_elbo.isfinite() else None,
        "query_log_prob": number(posterior.query_log_prob(datum)),
        "query_ess": number(posterior.query_ess(datum)),
        "ess": number(posterior.ess),
        "pareto_k": number(posterior.pareto_k),
        "verdict": posterior.verdicts[0].label,
        "reasons": list(posterior.verdicts[0].reasons),
        "trace": [
            {"name": s.name, "decodes": s.decodes.item(), "seconds": s.seconds.item()}
            for s in posterior.trace
        ],
        "stats": {name: number(value) for name, value in posterior.stats.items()},
        "seconds": posterior.seconds,
    }


def _write_pictures(
    folder: Path,
    posterior: Posterior,
    pixels: Pixels,
    datum: Tensor,
    mask: Tensor,
    completions: Tensor,
) -> None:
    pictures = [pixels.evidence(t, mask) for t in completions[:_MOST_SHOWN]]
    rows = [pictures[i : i + _COLUMNS] for i in range(0, len(pictures), _COLUMNS)]
    magnify = max(_PIXELS // pixels.shape[-1], 1)
    for name, picture in {
        "evidence": pixels.evidence(datum, mask, hide=True),
        "samples": sheet(rows),
        "mean": pixels.evidence(posterior.mean(), mask),
        "uncertainty": pixels.spread(posterior.std()),
    }.items():
        write_png(picture, folder / f"{name}.png", magnify=magnify)


def _print(summary: dict[str, Any], folder: Path) -> None:
    table = Table(show_header=False)
    rows = {
        "method": summary["method"],
        "observed pixels": str(summary["observed_pixels"]),
        "log p(x), nats": figure(summary["log_evidence"], 2),
        "C-ELBO, nats": figure(summary["c_elbo"], 2)
        + (" (no bound)" if summary["c_elbo_is_bound"] is False else ""),
        "log p(y|x) of the picture's rest, nats": figure(summary["query_log_prob"], 2)
        + ("" if (summary["query_ess"] or 0) >= _FEW else ", or more: few draws predict it"),
        "effective sample size": figure(summary["ess"], 2),
        "seconds": figure(summary["seconds"], 2),
        "verdict": summary["verdict"],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
    for reason in summary["reasons"]:
        out.print(f"  {reason}", markup=False)
    out.print(f"{summary['samples']} completions and their pictures are in {folder}", markup=False)
