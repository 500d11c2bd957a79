"""The commands and their options; what they do is in the modules beside this one."""

from pathlib import Path
from typing import Annotated

import typer

import crosscoding
from crosscoding.cli.console import clear_errors
from crosscoding.cli.paths import expanded

_EXAMPLES = """
Examples:

  crosscoding demo

  crosscoding models

  crosscoding check mnist-2d

  crosscoding condition mnist-2d --digit 29 --observe rows:0-13 --out answer

  crosscoding condition mnist-20d --image digit.png --observe random:0.1 --samples 64 --out answer

  crosscoding condition my-model --data rows-with-gaps.csv --out answer

  crosscoding condition my-model --data excel.csv --delimiter ";" --decimal ","

  crosscoding reproduce fig4 --quick
"""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Conditional inference on variational autoencoders that are already trained." + _EXAMPLES,
)

Out = Annotated[
    Path,
    typer.Option("--out", callback=expanded, help="Folder for the results; made if need be."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[
    str,
    typer.Argument(
        callback=expanded,
        help="Name of a model, as `crosscoding models` lists them, or the folder of one that "
        "vae.save wrote.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        help="What is between the columns of a table, such as ';', or tab or space; by default a "
        "comma, in .tsv a tab. Tables in the results have it too.",
    ),
]
Decimal = Annotated[
    str,
    typer.Option("--decimal", help="What is before the decimals of numbers in tables, '.' or ','."),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first line of a table names its columns; by default that is seen from "
        "it: words do, and 0,1,2,... as pandas writes it.",
        show_default=False,
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        metavar="FILE.py:Class",
        help="Run this file, make its class without arguments, and load the weights of the model's "
        "folder into that. Only for a file whose author you trust.",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Import the classes that a model's folder names, from where Python looks and from "
        "here. That runs their code: only for a folder and modules whose authors you trust.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides every random number.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crosscoding {crosscoding.__version__}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """What is said before the command."""


@app.command()
def demo(out: Out = Path("out/demo"), seed: Seed = 0, json: Json = False) -> None:
    """Five methods and the exact truth on a real digit of which 5 % of the pixels are known.

    Writes completions.png, posterior.png, mixture.png and table.json.

    Example: crosscoding demo --out out/demo
    """
    from crosscoding.cli.demo import run

    with clear_errors():
        run(out, seed=seed, as_json=json)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model, to show its whole card.")] = None,
    json: Json = False,
) -> None:
    """The pretrained models: what they are, how good, and how they were trained.

    Examples: crosscoding models; crosscoding models mnist-2d --json
    """
    from crosscoding.cli.models import run

    with clear_errors():
        run(name, as_json=json)


@app.command()
def check(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            callback=expanded,
            help="Complete data: .npy, .npz (or .npz:NAME of an array in it), .csv, .tsv or .txt, - "
            "for such a table on standard input, .zip of colour pictures; pixels from 0 to 255 are "
            "scaled.",
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
    """Look a model over before it is used: decoder, likelihood, data, prior, cost.

    Exit code 0 if nothing is wrong but for warnings, else 1.

    Examples: crosscoding check mnist-2d; crosscoding check my-model --data mine.npz:test
    """
    from crosscoding.cli.check import Request, run
    from crosscoding.cli.table_style import TableStyle

    with clear_errors():
        style = TableStyle.parse(delimiter, decimal, header)
        ok = run(Request(model, data, style, allow_code, decoder, seed), as_json=json)
    if not ok:
        raise typer.Exit(1)


@app.command()
def condition(
    model: Model,
    observe: Annotated[
        str | None,
        typer.Option(
            "--observe",
            help="Which elements are observed: rows:0-13, columns:0-13, rectangle:ROWS,COLUMNS "
            "such as rectangle:0-13,14-27, random:0.05 for that share of them, or mask:FILE, a "
            "picture of the same size that is white where observed. With --data, by default all "
            "that are there.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            callback=expanded,
            help="Picture of the datum, of the model's size. Its pixels become 0 and 1 (white: "
            "above 127) for a Bernoulli likelihood, -1 to 1 for a Gaussian one.",
        ),
    ] = None,
    digit: Annotated[
        int | None,
        typer.Option(
            "--digit", min=0, max=39, help="Instead of --image: which of 40 test digits, by index."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            callback=expanded,
            help="Instead of --image: data as the model takes them, many at once: .csv, .tsv or "
            ".txt, a line a datum, empty where a value is missing, or - for such a table on "
            "standard input; .npy or .npz (or .npz:NAME), with NaN there. Bytes that can be pixels "
            "are scaled as those of --image.",
        ),
    ] = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    header: Header = None,
    allow_code: AllowCode = False,
    decoder: Decoder = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=100_000, help="Completions to draw.")
    ] = 64,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="auto (the default), gvi, nf, fcn, mixture, spline, iaf, laplace, ng, importance, "
            "smc, hmc, rejection or grid.",
        ),
    ] = None,
    out: Out = Path("out/condition"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Complete pictures or rows of a table of which only a part is observed.

    Writes samples.npz (draws, mean, standard deviation) and summary.json (figures and verdict); of
    a picture samples.png, mean.png, uncertainty.png and evidence.png; of rows mean.csv, and
    low.csv and high.csv, between which at least 90 % of the draws are (empty for classes).

    Examples:

      crosscoding condition mnist-2d --digit 7 --observe rows:0-13

      crosscoding condition mnist-20d --image digit.png --observe mask:seen.png --method gvi

      crosscoding condition celeba-100d --image face.png --observe rectangle:25-39,16-49

      crosscoding condition my-model --data rows-with-gaps.csv --samples 1000

      crosscoding condition my-model --data whole.npy --observe columns:0-3

      crosscoding condition my-model --data - --delimiter tab < rows.txt

      crosscoding condition my-model --decoder networks.py:Decoder --data rows-with-gaps.csv
    """
    from crosscoding.cli.condition import Request, run
    from crosscoding.cli.table_style import TableStyle

    with clear_errors():
        request = Request(
            *(model, observe, image, digit, data),
            style=TableStyle.parse(delimiter, decimal, header),
            allow_code=allow_code,
            decoder=decoder,
            samples=samples,
            method=method,
            out=out,
            seed=seed,
        )
        run(request, as_json=json)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Which recipe; `crosscoding models` lists them.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", callback=expanded, help="Folder of mnist.npz, anime_64.zip or celeba_64.zip."
        ),
    ],
    out: Out = Path("out/train"),
    json: Json = False,
) -> None:
    """Train a model of the zoo again, by its recipe; interrupted runs go on where they stopped.

    Writes the model's folder, and beside it pictures of what it draws and reconstructs.

    Example: crosscoding train mnist-2d --data ~/data --out out/mnist-2d
    """
    from crosscoding.cli.train import run

    with clear_errors():
        run(name, data, out, as_json=json)


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(help="Figures and comparisons, such as fig4; or all.")
    ] = None,
    out: Out = Path("out/reproduce"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of hours: less of everything.")
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Say what there is, and end.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            callback=expanded,
            help="Folder of data sets; by default that of CROSSCODING_DATA.",
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            callback=expanded,
            help="Folder of others' models; by default that of CROSSCODING_MODELS.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting as NAME=VALUE, such as burn_in=1000; may be repeated."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Where models of faces run, such as cuda.")
    ] = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Figures and comparisons of the paper, measured anew.

    Writes each as PNG and SVG, and its numbers, settings and seconds as JSON. What is finished is
    not done again.

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


def main() -> None:
    """Entry point of the command."""
    app()
