"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from crosscoding.cli.paths import expanded

Out = Annotated[
    Path,
    typer.Option("--out", callback=expanded, help="Folder for the results, created if needed."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[
    str,
    typer.Argument(
        callback=expanded,
        help="A model's name, as listed by `crosscoding models`, or a folder written by vae.save.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        help="Separates the columns of a table: a character such as ';', or tab or space. Default: "
        "a comma, in .tsv files a tab. Tables in the results use it too.",
    ),
]
Decimal = Annotated[
    str,
    typer.Option("--decimal", help="Decimal separator of numbers in tables: '.' or ','."),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first line of a table names its columns. By default, a line of words "
        "does, and so does the 0,1,2,... that pandas writes.",
        show_default=False,
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        metavar="FILE.py:Class",
        help="Run this file, create its class without arguments, and load the weights in the "
        "model's folder into it. Use it only for files whose author you trust.",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Import the classes that a model's folder names, from Python's search path and the "
        "current folder. This runs their code: use it only if you trust the authors of both.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random numbers.")]
