"""`crosscoding check`: what speaks for and against a model."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from crosscoding import zoo
from crosscoding.cli.arrays import read_data
from crosscoding.cli.console import err, out, print_json, use_one_thread
from crosscoding.report import CheckReport
from crosscoding.vae import VAE, load_vae

_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}


def run(name: str, data: str | None, *, seed: int, as_json: bool) -> bool:
    """Check a model, print the report, and tell whether there is no error."""
    use_one_thread()
    vae = _model(name)
    some = None if data is None else read_data(data, vae)
    with err.status("checking"):
        report = vae.check(some, seed=seed)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    return report.ok


def _model(name: str) -> VAE:
    """A model of the zoo, or one in a folder.

    Raises:
        ValueError: There is neither.
    """
    if name not in zoo.names() and Path(name).is_dir():
        return load_vae(name)
    return zoo.load(name)


def _print(report: CheckReport) -> None:
    table = Table(show_header=False, title=escape(report.model), title_justify="left")
    for finding in report.findings:
        colour = _COLOURS[finding.status]
        status = f"[{colour}]{finding.status}[/]"
        table.add_row(status, finding.name, escape(finding.message))
    out.print(table)
    out.print(report.summary)
