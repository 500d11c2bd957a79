"""The commands about models: `models`, `check`, `train` and `amortise`."""

from pathlib import Path
from typing import Annotated

import typer

from crosscoding.cli.console import clear_errors
from crosscoding.cli.options import (
    AllowCode,
    Decimal,
    Decoder,
    Delimiter,
    Header,
    Json,
    Model,
    Out,
    Seed,
)
from crosscoding.cli.paths import expanded


def models(
    name: Annotated[str | None, typer.Argument(help="A model whose full card to show.")] = None,
    json: Json = False,
) -> None:
    """List the pretrained models, or show one's card.

    A card says what a model is, how it was trained, and how good it is.

    Examples: crosscoding models; crosscoding models mnist-2d --json
    """
    from crosscoding.cli.models import run

    with clear_errors():
        run(name, as_json=json)


def check(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            callback=expanded,
            help="Complete data: .npy, .npz (or .npz:NAME for one array in it), a table (.csv, "
            ".tsv, .txt, - for standard input, or .parquet if the model has a table), or a .zip of "
            "colour pictures. Pixels from 0 to 255 are rescaled.",
        ),
    ] = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    header: Header = None,
    allow_code: AllowCode = False,
    decoder: Decoder = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Check a model before you use it.

    Examines its decoder, likelihood, data, prior and cost. Exits with 0 if there are no errors
    (warnings are allowed), and with 1 otherwise.

    Examples: crosscoding check mnist-2d; crosscoding check my-model --data mine.npz:test
    """
    from crosscoding.cli.check import Request, run
    from crosscoding.formats.table_style import TableStyle

    with clear_errors():
        style = TableStyle.parse(delimiter, decimal, header)
        ok = run(Request(model, data, style, allow_code, decoder, seed), as_json=json)
    if not ok:
        raise typer.Exit(1)


def train(
    name: Annotated[str, typer.Argument(help="A model's name, as listed by `crosscoding models`.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            callback=expanded,
            help="Folder with mnist.npz, anime_64.zip or celeba_64.zip.",
        ),
    ],
    out: Out = Path("out/train"),
    json: Json = False,
) -> None:
    """Train a model of the zoo from scratch. An interrupted run resumes where it stopped.

    Writes the model's folder, and beside it pictures of prior draws and, if the model has an
    encoder, of reconstructions.

    Example: crosscoding train mnist-2d --data ~/data --out out/mnist-2d
    """
    from crosscoding.cli.train import run

    with clear_errors():
        run(name, data, out, as_json=json)


def amortise(
    model: Model,
    out: Annotated[
        Path,
        typer.Option("--out", callback=expanded, help="Folder for the model with its network."),
    ] = Path("out/amortise"),
    masks: Annotated[
        str,
        typer.Option(
            "--masks",
            help="What queries observe: mixed, halves, rectangles, or shares:0.05-0.3 for 5 to "
            "30 % at random.",
        ),
    ] = "mixed",
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, help="Time for training; tests on twins follow.")
    ] = 300.0,
    allow_code: AllowCode = False,
    decoder: Decoder = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a network that makes a model's answers faster, on the model's own draws.

    Writes the model with its network to a new folder, which all commands accept. An interrupted run
    resumes where it stopped if the same command is given again.

    Examples:

      crosscoding amortise mnist-20d --out faster

      crosscoding condition faster --digit 29 --observe rows:0-13
    """
    from crosscoding.cli.amortise import Request, run

    with clear_errors():
        run(Request(model, masks, seconds, out, allow_code, decoder, seed), as_json=json)
