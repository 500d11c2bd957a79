"""The commands that reproduce the paper's results: `demo` and `reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from crosscoding.cli.console import clear_errors
from crosscoding.cli.options import Json, Out, Seed
from crosscoding.cli.paths import expanded


def demo(out: Out = Path("out/demo"), seed: Seed = 0, json: Json = False) -> None:
    """Compare five methods with the exact answer.

    The query is a real digit with 5 % of its pixels observed. Writes completions.png,
    posterior.png, mixture.png and table.json.

    Example: crosscoding demo --out out/demo
    """
    from crosscoding.cli.demo import run

    with clear_errors():
        run(out, seed=seed, as_json=json)


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(help="Figures or comparisons, such as fig4, or all.")
    ] = None,
    out: Out = Path("out/reproduce"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller runs: minutes instead of hours.")
    ] = False,
    list_all: Annotated[
        bool, typer.Option("--list", help="List what can be reproduced and exit.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            callback=expanded,
            help="Folder of data sets. Default: the folder named by CROSSCODING_DATA.",
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            callback=expanded,
            help="Folder of other authors' models. Default: the folder named by "
            "CROSSCODING_MODELS.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting, NAME=VALUE, such as burn_in=1000. Repeatable."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Device for the models of faces, such as cuda.")
    ] = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure the paper's figures and comparisons again.

    Writes each as PNG and SVG, and its numbers, settings and running time as JSON. Finished
    results are kept and not measured again.

    Examples: crosscoding reproduce --list; crosscoding reproduce fig4 --out out/reproduce
    """
    from crosscoding.cli import reproduce as command

    with clear_errors():
        if list_all:
            command.list_all(as_json=json)
        else:
            request = command.Request(
                names or [], out, quick, seed, data, models, device, change or []
            )
            command.reproduce(request, as_json=json)
