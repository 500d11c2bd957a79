"""`crosscoding amortise`: trains a network that proposes z, and saves it with the model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from crosscoding.amortisation import amortise
from crosscoding.cli.console import err, print_json
from crosscoding.cli.console import out as console
from crosscoding.cli.models import load_model
from crosscoding.masks import MaskDistribution, halves, mixed, rectangles, shares


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    model: str
    masks: str
    seconds: float
    out: Path
    allow_code: bool
    decoder: str | None
    seed: int


def run(request: Request, *, as_json: bool) -> None:
    """Train, and write the model with its network to a folder."""
    masks = _masks(request.masks)
    vae = load_model(request.model, allow_code=request.allow_code, decoder=request.decoder)
    folder = request.out
    _check_free(folder, request.model)
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    settings = {"max_seconds": request.seconds, "seed": request.seed, "checkpoint": checkpoint}
    made = amortise(vae, masks, **settings)
    made.save(folder)
    shutil.rmtree(checkpoint, ignore_errors=True)
    assert made.amortised is not None
    record = made.amortised.record
    assert record is not None
    if as_json:
        print_json(record.to_json())
        return
    console.print(str(record), markup=False, highlight=False)
    err.print(f"wrote the model with its network to {folder}", markup=False)


def _masks(words: str) -> MaskDistribution:
    """The distribution of masks that --masks names.

    Raises:
        ValueError: It names none.
    """
    kinds = {"mixed": mixed, "halves": halves, "rectangles": rectangles}
    if words in kinds:
        return kinds[words]()
    name, _, span = words.partition(":")
    least, _, most = span.partition("-")
    try:
        if name == "shares":
            return shares(float(least), float(most))
    except ValueError as error:
        raise ValueError(f"expected --masks shares:LEAST-MOST, got {words!r}: {error}") from None
    raise ValueError(
        "expected --masks mixed, halves, rectangles or shares:LEAST-MOST, such as shares:0.05-0.3, "
        f"got {words!r}"
    )


def _check_free(folder: Path, model: str) -> None:
    """Raise ValueError unless a model can be written to a folder without replacing another one."""
    if folder.exists() and not (folder / "description.json").is_file():
        raise ValueError(
            f"expected --out to be a new folder or that of a saved model, got {folder}, which is "
            "something else"
        )
    if folder.exists() and Path(model).resolve() != folder.resolve():
        raise ValueError(
            f"expected --out to be a new folder, but {folder} has a model already; choose another "
            "name, or delete it"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
