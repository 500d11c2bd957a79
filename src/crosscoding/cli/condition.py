"""`crosscoding condition`: completes partly observed pictures or rows with a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crosscoding import zoo
from crosscoding.cli.answer_files import PURPOSE, Answers
from crosscoding.cli.console import note, output_folder, print_json, use_one_thread
from crosscoding.cli.data_doubts import doubts
from crosscoding.cli.data_files import Data, read_data
from crosscoding.cli.frames import is_parquet
from crosscoding.cli.models import load_model
from crosscoding.cli.observed_elements import parse_mask
from crosscoding.conditioning import condition
from crosscoding.errors import BudgetError
from crosscoding.evidence import Evidence
from crosscoding.formats.pixels import Pixels
from crosscoding.formats.table_style import TableStyle
from crosscoding.methods import METHODS, Auto
from crosscoding.methods import method as method_named
from crosscoding.model.vae import VAE


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    model: str
    observe: str | None
    image: Path | None
    digit: int | None
    data: str | None
    style: TableStyle
    allow_code: bool
    decoder: str | None
    samples: int
    method: str | None
    out: Path
    seed: int


def run(request: Request, *, as_json: bool) -> None:
    """Answer the request and write the results to its folder."""
    use_one_thread()
    given = [name for name in ("image", "digit", "data") if getattr(request, name) is not None]
    if len(given) != 1:
        raise ValueError(
            "expected exactly one of --image FILE, --digit NUMBER (0 to 39) and --data FILE"
        )
    vae = load_model(request.model, allow_code=request.allow_code, decoder=request.decoder)
    method = method_named(request.method or "auto")
    if method == Auto():
        method = Auto(purpose=PURPOSE)
    data = _data(request, vae)
    note(*data.notes)
    mask = _mask(request, vae, data.values)
    folder = output_folder(request.out)
    evidence = _evidence(data, mask, vae)
    vae.likelihood.check_values(evidence.values, mask)
    with _errors_of_method(request.method):
        posterior = condition(vae, evidence, method, seed=request.seed)
    answers = Answers(
        vae,
        posterior,
        data.values,
        mask,
        completions=posterior.predict(request.samples, seed=request.seed),
        latent=posterior.sample(request.samples, seed=request.seed),  # same seed: the same z
    )
    asked = {
        "model": request.model,
        "method": posterior.method if request.method is None else METHODS[request.method].label,
        "observe": request.observe,
        "seed": request.seed,
        "samples": request.samples,
    }
    summary = asked | answers.summary() | {"doubts": doubts(answers)}
    parquet = data.frame is not None and is_parquet(Path(data.name))
    answers.write(folder, summary, data.table, request.style, parquet=parquet)
    if as_json:
        print_json(summary)
    else:
        answers.print(summary, folder)


def _evidence(data: Data, mask: Tensor, vae: VAE) -> Evidence:
    """The observed elements; those of a model's table keep the rows that they come from."""
    if data.frame is None or vae.table is None:
        return Evidence(data.values, mask)
    frame = data.frame.copy()
    for place, name in enumerate(vae.table.names):
        if name in frame.columns:
            frame[name] = frame[name].where(mask[:, place].numpy())
    return vae.table.evidence(frame, dtype=vae.dtype)


def _data(request: Request, vae: VAE) -> Data:
    """The data to complete: one datum without a batch dimension, or all rows of a file."""
    if request.data is None:
        if request.style != TableStyle():
            raise ValueError("expected --delimiter, --decimal and --header only with --data FILE")
        return Data(_picture(request, vae), str(request.image))
    data = read_data(request.data, vae, request.style)
    data.check(vae)
    return data


@contextmanager
def _errors_of_method(name: str | None) -> Iterator[None]:
    """Reword errors of a chosen method, whose advice is meant for Python, for the command line."""
    try:
        yield
    except (ValueError, NotImplementedError, BudgetError) as error:
        if name is None:
            raise
        reason = str(error).partition("; ")[0]
        raise ValueError(
            f"--method {name} cannot answer this: {reason}; try another --method, or none"
        ) from None


def _picture(request: Request, vae: VAE) -> Tensor:
    """The datum given by --image or --digit, in the data's shape."""
    shape, digits = tuple(vae.data_shape), zoo.digits()[0]
    if not Pixels.suit(vae):
        raise ValueError(
            f"expected --data FILE for {request.model}, whose data of shape {shape} are not "
            "pictures"
        )
    pixels = Pixels.of(vae)
    if request.model not in zoo.names() and not pixels.binary:
        note(
            "pixels are rescaled to -1 to 1; if the model was trained on another range, use --data"
        )
    if request.image is not None:
        return pixels.read(request.image).to(vae.dtype)
    if not pixels.binary or shape != digits.shape[1:]:
        raise ValueError(
            f"expected --image FILE for {request.model}, a picture of {shape[-1]} x "
            f"{shape[-2]} pixels, got --digit: {request.model} is not a model of digits"
        )
    return digits[request.digit].to(vae.dtype)


def _mask(request: Request, vae: VAE, values: Tensor) -> Tensor:
    """The observed elements: those that are not NaN and, if given, that --observe selects."""
    mask = ~values.isnan()
    if request.observe is not None:
        mask = mask & parse_mask(request.observe, vae.data_shape, seed=request.seed)
    if mask.all():
        raise ValueError(
            "expected data with something missing, got complete data; select the observed part "
            "with --observe, or leave missing values empty in a .csv or NaN in a .npy"
        )
    return mask
