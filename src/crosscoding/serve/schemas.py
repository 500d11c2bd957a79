"""What requests to the API hold, as pydantic models, from which the OpenAPI description is made."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (  # pyright: ignore[reportMissingImports]
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from typing_extensions import TypeAliasType

from crosscoding.methods import Auto
from crosscoding.serve.json_arrays import Packed
from crosscoding.serve.questions import ARRAYS, Wanted

_MOST_SEED = 2**53 - 1  # the largest integer that every reader of JSON keeps

Numbers = TypeAliasType("Numbers", StrictFloat | StrictInt | list["Numbers"] | None)  # pyright: ignore[reportInvalidTypeForm]
Flags = TypeAliasType("Flags", StrictBool | list["Flags"])  # pyright: ignore[reportInvalidTypeForm]


class Base64Array(BaseModel):
    """An array as the base64 of its bytes, little-endian, row by row. NaN is missing."""

    model_config = ConfigDict(extra="forbid")

    base64: str
    dtype: Literal["float32", "float64", "uint8", "bool"] = "float32"
    shape: list[Annotated[int, Field(ge=0, le=2**31)]]

    def plain(self) -> Packed:
        """The array as the modules below know it."""
        return Packed(self.base64, self.dtype, self.shape)


class Interval(BaseModel):
    """A cell between two bounds, both included."""

    model_config = ConfigDict(extra="forbid")

    low: StrictFloat | StrictInt | StrictStr | None = None
    high: StrictFloat | StrictInt | StrictStr | None = None


class OneOf(BaseModel):
    """A cell that is one of several categories."""

    model_config = ConfigDict(extra="forbid")

    one_of: list[StrictStr | StrictBool | StrictInt | StrictFloat] = Field(min_length=1)


Array: TypeAlias = Base64Array | Numbers
Cell: TypeAlias = StrictStr | StrictBool | StrictInt | StrictFloat | Interval | OneOf | None

_VALUES = (
    "Observed values in the model's units, null where missing: nested lists of the data's shape, "
    "or of (queries, data's shape); or base64."
)


class Request(BaseModel):
    """One or more queries to a model: what is known, and what the answer is to hold."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "mnist-2d",
                    "values": {"base64": "…", "dtype": "float32", "shape": [28, 28]},
                    "outputs": ["mean", "std", "modes"],
                    "draws": 8,
                },
                {
                    "model": "households",
                    "rows": [{"age": 35, "city": {"one_of": ["Bonn", "Ulm"]}, "income": None}],
                    "outputs": ["mean", "interval"],
                    "purpose": "interval",
                },
            ]
        },
    )

    model: str | None = Field(None, description="The model; may be left out if only one is served.")
    values: Array | None = Field(None, description=_VALUES)
    noise: Array | None = Field(
        None, description="Standard deviation of noise in the values: a number or an array."
    )
    low: Array | None = Field(None, description="Lower bounds, included; null where there is none.")
    high: Array | None = Field(None, description="Upper bounds, as `low`.")
    one_of: Base64Array | Flags | None = Field(
        None, description="Possible classes of each element: true and false, (data's shape, K)."
    )
    given: Array | dict[str, Array] | None = Field(
        None, description="Covariates, for a model whose decoder takes them."
    )
    rows: list[dict[str, Cell]] | None = Field(
        None,
        min_length=1,
        description="For a model with a table, instead of arrays: objects by column, in the user's "
        "units. A cell is a value, null, an interval or a set.",
    )
    seed: int = Field(0, ge=0, le=_MOST_SEED, description="The same seed gives the same answer.")
    purpose: Literal["density", "mean", "interval"] = Field(
        "density", description="What the answer is for; work ends when it is good enough for that."
    )
    max_seconds: FiniteFloat | None = Field(
        None, gt=0, description="Budget in seconds; the answer then depends on the machine's speed."
    )
    max_decodes: StrictInt | None = Field(
        None, gt=0, le=2**53, description="Budget in decoder evaluations for each query."
    )
    num_draws: StrictInt = Field(
        1000, ge=2, le=100_000, description="Latent draws on which means and intervals rest."
    )
    outputs: list[Literal["mean", "std", "interval", "probabilities", "completions", "modes"]] = (
        Field(
            ["mean", "std"],
            description="Parts of the answer, beside log p(x) and the verdict. `interval` holds an "
            "element with probability 0.9; `completions` are the means at the z of the draws; "
            "`modes` are completions that differ, with their shares.",
        )
    )
    draws: StrictInt = Field(0, ge=0, le=10_000, description="Number of draws of complete data.")
    encoding: Literal["list", "base64"] = Field("list", description="How arrays are sent.")
    alone: bool = Field(
        False,
        description="Whether no other request may be answered in the same batch. Answers in a "
        "batch are those of the request alone up to rounding, which may exchange draws for others "
        "that are as good; alone, the same seed gives the same bits.",
    )
    anytime: bool = Field(
        False,
        description="With `Accept: text/event-stream`: whether a first answer is sent at once and "
        "replaced by better ones.",
    )

    def asked(self) -> dict[str, Any]:
        """The evidence, as `questions.question_of` takes it."""
        parts = {name: _plain(getattr(self, name)) for name in (*ARRAYS, "given")}
        rows = (
            None
            if self.rows is None
            else [{name: _cell(cell) for name, cell in row.items()} for row in self.rows]
        )
        return {**parts, "rows": rows}

    def wanted(self) -> Wanted:
        """What the answer is to hold."""
        return Wanted(tuple(dict.fromkeys(self.outputs)), self.draws, self.encoding)

    def method(self) -> Auto:
        """The method and its budget.

        Raises:
            ValueError: There are too few draws for the purpose.
        """
        return Auto(self.max_seconds, self.max_decodes, self.num_draws, self.purpose)


def _plain(array: Any) -> Any:
    if isinstance(array, dict):
        return {name: _plain(part) for name, part in array.items()}
    return array.plain() if isinstance(array, Base64Array) else array


def _cell(cell: Any) -> Any:
    return cell.model_dump(exclude_unset=True) if isinstance(cell, BaseModel) else cell


class Verdict(BaseModel):
    """Whether to trust an answer."""

    label: Literal["trusted", "approximate", "unreliable"]
    purposes: dict[str, str]
    reasons: list[str]
    advice: str


class Answer(BaseModel):
    """The answer to a query; arrays or columns as they were asked for. Null: there is no number."""

    model_config = ConfigDict(extra="allow")

    verdict: Verdict
    log_evidence: float | None = Field(description="log p(x) in nats.")
    log_evidence_error: float | None = Field(description="Its standard error in nats.")
    ess: float | None = Field(description="Effective draws; null where draws do not enter.")


class Answers(BaseModel):
    """The answers to a request, one for each query."""

    model: str
    method: str
    purpose: str
    seed: int
    seconds: float = Field(description="Seconds of work, on all requests of the batch.")
    waited: float = Field(description="Seconds in the queue.")
    batched_with: int = Field(description="Other requests that were answered in the same batch.")
    stopped_early: bool = Field(description="Whether the server's time limit was reached.")
    answers: list[Answer]


class Problem(BaseModel):
    """What is wrong with a request, in one sentence."""

    detail: str
