"""The commands that answer queries: `condition` and `batch`."""

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
from crosscoding.methods import METHODS


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
            help="Which elements are observed in all rows, as for `condition`; or "
            "mask:FILE.npy, .npz (or .npz:NAME) or Zarr, with a mask of zeros and ones for each "
            "row. Default: all values that are present.",
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            help="A column of covariates, for a model whose decoder takes them. Repeatable. Or "
            "FILE.npy, .npz (or .npz:NAME) or Zarr, with a row for each row of the source.",
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
            help="A column that the model does not use, such as a key, to copy to the results. "
            "Repeatable.",
        ),
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=1, help="Rows per shard.")] = 1000,
    format: Annotated[
        str, typer.Option("--format", help="Format of the shards: parquet or zarr.")
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
        float, typer.Option("--gpus", min=0, help="GPUs, or a share of one, per Ray actor.")
    ] = 0.0,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0, help="Seconds after SIGTERM to finish current shards."),
    ] = 60.0,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    header: Header = None,
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Answer a sample, print the time and disk space of a run, write nothing.",
        ),
    ] = False,
    seed: Seed = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print progress and the result as lines of JSON.")
    ] = False,
) -> None:
    """Answer all rows of a file, however many, into a folder. Run it again to resume.

    Writes shards of answers, rejected.jsonl with rows that cannot be answered, and manifest.json.

    Exits with 0 if all rows are done; with 75 if SIGTERM, a full disk or dying workers stopped the
    run, which can then be run again; with 130 after Ctrl-C; with 2 if something has to be changed
    first.

    Examples:

      crosscoding batch my-model rows.csv --out answers --keep id

      crosscoding batch my-model rows.parquet --out answers --dry-run

      crosscoding batch my-model cells.parquet --out answers --keep id --given batch --given age

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
            "given": given or None,
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
