"""`crosscoding check`: what speaks for and against a model."""

from rich.markup import escape
from rich.table import Table

from crosscoding.cli.arrays import read_data
from crosscoding.cli.console import err, out, print_json, use_one_thread
from crosscoding.cli.models import load_model
from crosscoding.report import CheckReport

_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}


def run(name: str, data: str | None, *, allow_code: bool, seed: int, as_json: bool) -> bool:
    """Check a model, print the report, and tell whether there is no error."""
    use_one_thread()
    vae = load_model(name, allow_code=allow_code)
    some = None if data is None else read_data(data, vae)
    with err.status("checking"):
        report = vae.check(some, seed=seed)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    return report.ok


def _print(report: CheckReport) -> None:
    table = Table(show_header=False, title=escape(report.model), title_justify="left")
    for finding in report.findings:
        colour = _COLOURS[finding.status]
        status = f"[{colour}]{finding.status}[/]"
        table.add_row(status, finding.name, escape(finding.message))
    out.print(table)
    out.print(report.summary)
