"""`crosscoding demo`: every method of the paper on one digit, next to the exact answer."""

from pathlib import Path

from rich.table import Table
from torch import Tensor

from crosscoding import zoo
from crosscoding.cli.console import (
    formatted,
    out,
    output_folder,
    print_json,
    use_one_thread,
    write_json,
)
from crosscoding.evidence import Evidence
from crosscoding.experiments import gaussian_mixture
from crosscoding.experiments.figures.demo_table import COMPARED, Comparison, compare
from crosscoding.masks import random_mask
from crosscoding.methods import METHODS
from crosscoding.plots import colour, density_panels, mark_evidence, write_labelled
from crosscoding.progress import followed, silent
from crosscoding.target.vae_target import VAETarget

# A seven with 39 observed pixels. They fit a nine better, and to some extent a four or a two.
_DIGIT, _MASK_SEED, _FRACTION = 29, 2, 0.05
_NUM_SHOWN = 9


def run(folder: Path, *, seed: int, as_json: bool) -> None:
    """Run all methods and write the pictures and the table."""
    folder = output_folder(folder)
    use_one_thread()
    vae = zoo.load("mnist-2d")
    digit = zoo.digits()[0][_DIGIT]
    mask = random_mask(vae.data_shape, _FRACTION, seed=_MASK_SEED)
    target = VAETarget(vae, Evidence(digit, mask))
    with followed("a digit", silent, shown=True) as report:
        comparison = compare(target, digit, seed=seed, report=report)
    with followed("a mixture", silent, shown=True) as report:
        bare = compare(gaussian_mixture.target(), seed=seed, report=report)
    _write_completions(comparison, digit, mask, folder / "completions.png", seed=seed)
    _write_densities(comparison, bare, target, folder)
    result = {
        "model": "mnist-2d",
        "digit": _DIGIT,
        "observed_pixels": int(mask.sum()),
        "seed": seed,
        "log_evidence": comparison.posteriors["exact"].log_evidence.item(),
        "table": [row.as_dict() for row in comparison.rows],
        "mixture": [row.as_dict() for row in bare.rows],
    }
    write_json(result, folder / "table.json")
    if as_json:
        print_json(result)
    else:
        _print(comparison, bare, folder)


def _write_densities(
    comparison: Comparison, bare: Comparison, target: VAETarget, folder: Path
) -> None:
    """The exact densities of both problems, with each method's draws."""
    density_panels(
        lambda z: target.log_prior(z) + target.pairwise_log_likelihood(z),
        _labelled(comparison),
        folder / "posterior.png",
        title="p(z|x): exact contours, and each method's draws",
        reference=comparison.draws["exact"],
    )
    density_panels(
        gaussian_mixture.log_prob,
        _labelled(bare),
        folder / "mixture.png",
        title="A mixture of Gaussians: exact contours, and each method's draws",
        reference=bare.draws["exact"],
    )


def _labelled(comparison: Comparison) -> dict[str, Tensor]:
    names = {"exact": "exact (grid)"} | {name: METHODS[name].label for name in COMPARED}
    return {label: comparison.draws[name] for name, label in names.items()}


def _write_completions(
    comparison: Comparison, digit: Tensor, mask: Tensor, path: Path, *, seed: int
) -> None:
    """One row per method: datum, evidence, and nine decoded draws overlaid with the evidence."""
    seen = mask.numpy()
    data = colour(digit.numpy())
    rows = {}
    for name in (*COMPARED, "exact"):
        means = comparison.posteriors[name].predict_mean(_NUM_SHOWN, seed=seed)
        drawn = [mark_evidence(colour(mean.numpy()), seen) for mean in means]
        label = METHODS[name].label if name in METHODS else "exact"
        rows[label] = [data, mark_evidence(data, seen, hide=True), *drawn]
    write_labelled(rows, ["datum", "evidence"], path)


def _print(comparison: Comparison, bare: Comparison, folder: Path) -> None:
    table = Table(
        "method", "C-ELBO", "gap to log p(x)", "log p(y|x)", "MMD²", "mixture MMD²", "seconds"
    )
    for row, bare_row in zip(comparison.rows, bare.rows, strict=True):
        mark = "" if row.bound else " *"
        table.add_row(
            row.method,
            formatted(row.c_elbo, 3) + mark,
            formatted(row.gap, 3) + mark,
            formatted(row.query_log_prob, 3),
            f"{row.mmd:.4f}",
            f"{bare_row.mmd:.4f}",
            f"{row.seconds:.2f}",
        )
    out.print(table)
    out.print("C-ELBO, gap and log p(y|x) are in nats; * not a lower bound")
    out.print(
        "MMD² is between 1,000 draws of z and 1,000 exact ones: unbiased, RBF kernel with the "
        "median bandwidth"
    )
    out.print(
        f"wrote completions.png, posterior.png, mixture.png and table.json to {folder}",
        markup=False,
    )
