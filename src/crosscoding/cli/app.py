"""The command `crosscoding`. Modules beside this one define its commands and do their work."""

from typing import Annotated

import typer

import crosscoding
from crosscoding.cli.model_commands import amortise, check, models, train
from crosscoding.cli.paper_commands import demo, reproduce
from crosscoding.cli.query_commands import batch, condition
from crosscoding.cli.serve import serve

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


for command in (demo, models, check, condition, serve, batch, train, amortise, reproduce):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
