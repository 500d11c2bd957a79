"""The commands and their options. The modules beside this one do the work."""

from pathlib import Path
from typing import Annotated

import typer

import crosscoding
from crosscoding.cli.console import clear_errors
from crosscoding.cli.paths import expanded
from crosscoding.cli.serve import serve
from crosscoding.methods import METHODS

_EXAMPLES = """
Examples:

  crosscoding demo

  crosscoding models

  crosscoding check mnist-2d

  crosscoding condition mnist-2d --digit 29 --observe rows:0-13 --out answer

  crosscoding condition mnist-20d --image digit.png --observe random:0.1 --samples 64 --out answer

  crosscoding condition my-model --data rows-with-gaps.csv --out answer

  crosscoding condition my-model --data excel.csv --delimiter ";" --decimal ","

  crosscoding serve mnist-2d

  crosscoding batch my-model ten-million-rows.parquet --out answers --workers 8

  crosscoding reproduce fig4 --quick
"""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Conditional inference in pretrained variational autoencoders." + _EXAMPLES,
)

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crosscoding {crosscoding.__version__}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that precede the command."""


@app.command()
def demo(out: Out = Path("out/demo"), seed: Seed = 0, json: Json = False) -> None:
    """Compare five methods with the exact answer.

    The query is a real digit with 5 % of its pixels observed. Writes completions.png,
    posterior.png, mixture.png and table.json.

    Example: crosscoding demo --out out/demo
    """
    from crosscoding.cli.demo import run

    with clear_errors():
        run(out, seed=seed, as_json=json)


@app.command()
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


@app.command()
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


@app.command()
def condition(
    model: Model,
    observe: Annotated[
        str | None,
        typer.Option(
            "--observe",
            help="Which elements are observed: rows:0-13, columns:0-13, rectangle:ROWS,COLUMNS "
            "such as rectangle:0-13,14-27, random:0.05 for a random 5 %, or mask:FILE, a picture "
            "of the same size, white where observed. With --data, the default is all values that "
            "are present.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            callback=expanded,
            help="A picture of the model's size. For a Bernoulli likelihood, its pixels become 0 "
            "or 1 (above 127); for a Gaussian one, they are rescaled to -1 to 1.",
        ),
    ] = None,
    digit: Annotated[
        int | None,
        typer.Option(
            "--digit", min=0, max=39, help="Instead of --image: the index of a built-in test digit."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            callback=expanded,
            help="Instead of --image: one or more data in the model's units, or in those of its "
            "table. A table (.csv, .tsv, .txt, - for standard input, or .parquet if the model has "
            "a table) with one datum per line and empty cells for missing values, or .npy or .npz "
            "(or .npz:NAME) with NaN for them. Arrays of bytes that hold pixels are rescaled like "
            "--image.",
        ),
    ] = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    header: Header = None,
    allow_code: AllowCode = False,
    decoder: Decoder = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=100_000, help="Number of completions.")
    ] = 64,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help=f"One of {', '.join(METHODS)}. Default: auto. docs/methods.md describes them.",
        ),
    ] = None,
    out: Out = Path("out/condition"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Complete partly observed pictures or rows.

    Writes samples.npz (draws, mean, standard deviation) and summary.json (figures and verdict).
    For a picture, it also writes samples.png, mean.png, uncertainty.png and evidence.png; for
    rows, mean.csv, low.csv and high.csv, or .parquet where the data are. At least 90 % of the draws
    lie between low and high, which are empty for classes.

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
    from crosscoding.formats.table_style import TableStyle

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


app.command()(serve)


@app.command()
def batch(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(
            callback=expanded,
            help="FILE.csv, .tsv, .txt, .parquet, .npy, .npz (or .npz:NAME), a Zarr array or group "
            "(or PATH:NAME), or a folder of .parquet files or pictures.",
        ),
    ],
    out: Out = Path("out/batch"),
    observe: Annotated[
        str | None,
        typer.Option(
            "--observe",
            help="Which elements are observed in all rows, as for `condition`. Default: all values "
            "that are present.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help=f"One of {', '.join(METHODS)}. Default: auto.")
    ] = None,
    level: Annotated[
        float, typer.Option("--level", min=0, max=1, help="Probability of the intervals.")
    ] = 0.9,
    quantile: Annotated[
        list[float] | None,
        typer.Option("--quantile", min=0, max=1, help="A further quantile. Repeatable."),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=0, max=1000, help="Draws of each complete row.")
    ] = 0,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            help="A column that is not the model's, such as a key, to be copied to the results. "
            "Repeatable.",
        ),
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=1, help="Rows of a shard.")] = 1000,
    format: Annotated[
        str, typer.Option("--format", help="Of the shards: parquet or zarr.")
    ] = "parquet",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes on this machine, or with --address actors on the cluster. Default: "
            "this process; on a cluster as many as fit.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Address of a Ray cluster, such as auto or ray://host:10001."
        ),
    ] = None,
    gpus: Annotated[
        float, typer.Option("--gpus", min=0, help="GPUs, or share of one, of each actor on Ray.")
    ] = 0.0,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0, help="Seconds after SIGTERM to finish the shards at hand."),
    ] = 60.0,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    header: Header = None,
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Answer a sample, print what the run would take, and write nothing."
        ),
    ] = False,
    seed: Seed = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print progress and the result as lines of JSON.")
    ] = False,
) -> None:
    """Answer all rows of a file, however many, into a folder. Run it again to resume.

    Writes shards of answers, rejected.jsonl with rows that cannot be answered, and manifest.json.

    Exits with 0 if all rows are done; with 75 if the run was stopped before, by SIGTERM, a full
    disk or dying workers, and should be run again; with 130 after Ctrl-C; with 2 if something has
    to be changed first.

    Examples:

      crosscoding batch my-model rows.csv --out answers --keep id

      crosscoding batch my-model rows.parquet --out answers --dry-run

      crosscoding batch mnist-20d digits.npy --observe rows:0-13 --format zarr --workers 4

      crosscoding batch my-model rows.parquet --out /shared/answers --address auto
    """
    from crosscoding.cli.batch import Request, run
    from crosscoding.formats.table_style import TableStyle

    with clear_errors():
        style = TableStyle.parse(delimiter, decimal, header)
        settings = {
            "seed": seed,
            "level": level,
            "quantiles": quantile or (),
            "draws": draws,
            "keep": keep or (),
            "shard_rows": shard_rows,
            "format": format,
        }
        engine = {"workers": workers, "address": address, "num_gpus": gpus, "grace": grace}
        request = Request(
            *(model, source, out, observe, method), style, allow_code, settings, engine
        )
        code = run(request, dry_run=dry_run, as_json=json)
    if code:
        raise typer.Exit(code)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A model's name, as listed by `crosscoding models`.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            callback=expanded,
            help="Folder that holds mnist.npz, anime_64.zip or celeba_64.zip.",
        ),
    ],
    out: Out = Path("out/train"),
    json: Json = False,
) -> None:
    """Train a model of the zoo from scratch. An interrupted run resumes where it stopped.

    Writes the model's folder, and beside it pictures of prior draws and, where the model keeps its
    encoder, of reconstructions.

    Example: crosscoding train mnist-2d --data ~/data --out out/mnist-2d
    """
    from crosscoding.cli.train import run

    with clear_errors():
        run(name, data, out, as_json=json)


@app.command()
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
        float, typer.Option("--seconds", min=1.0, help="Time for training.")
    ] = 300.0,
    allow_code: AllowCode = False,
    decoder: Decoder = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a network that makes a model's answers faster, on the model's own draws.

    Writes the model with its network to a new folder, which all commands take. An interrupted run
    resumes where it stopped.

    Examples:

      crosscoding amortise mnist-20d --out faster

      crosscoding condition faster --digit 29 --observe rows:0-13
    """
    from crosscoding.cli.amortise import Request, run

    with clear_errors():
        run(Request(model, masks, seconds, out, allow_code, decoder, seed), as_json=json)


@app.command()
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


def main() -> None:
    """Run the command line."""
    app()
