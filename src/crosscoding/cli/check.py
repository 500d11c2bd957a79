"""`crosscoding check`: examines a model before it is used."""

from dataclasses import dataclass

from crosscoding.cli.console import err, note, out, print_json, use_one_thread
from crosscoding.cli.data_files import read_data
from crosscoding.cli.models import load_model
from crosscoding.formats.table_style import TableStyle


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    model: str
    data: str | None
    style: TableStyle
    allow_code: bool
    decoder: str | None
    seed: int


def run(request: Request, *, as_json: bool) -> bool:
    """Check a model and print the report; returns whether it is free of errors."""
    use_one_thread()
    vae = load_model(request.model, allow_code=request.allow_code, decoder=request.decoder)
    some = None
    if request.data is not None:
        data = read_data(request.data, vae, request.style)
        note(*data.notes)
        some = data.values if data.frame is None else data.frame
    with err.status("checking"):
        report = vae.check(some, seed=request.seed)
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report)
    return report.ok
