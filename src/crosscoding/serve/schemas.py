"""Requests and answers as pydantic models, from which the OpenAPI description is made.

Arrays and rows are checked by `request_checks`; their types only describe them.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (  # pyright: ignore[reportMissingImports]
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError  # pyright: ignore[reportMissingImports]
from typing_extensions import TypeAliasType

from crosscoding.methods import Auto
from crosscoding.serve.json_arrays import Packed
from crosscoding.serve.questions import ARRAYS, Wanted
from crosscoding.serve.request_checks import (
    ARRAY,
    FLAGS,
    NUMBERS,
    check_fields,
    check_nested,
    check_rows,
)

_MOST_SEED = 2**53 - 1  # the largest integer that every reader of JSON keeps exactly

Numbers = TypeAliasType("Numbers", StrictFloat | StrictInt | list["Numbers"] | None)  # pyright: ignore[reportInvalidTypeForm]
Flags = TypeAliasType("Flags", StrictBool | list["Flags"])  # pyright: ignore[reportInvalidTypeForm]


class Base64Array(BaseModel):
    """An array as the base64 of its bytes, little-endian, row by row. NaN means missing."""

    model_config = ConfigDict(extra="forbid")

    base64: str
    dtype: Literal["float32", "float64", "uint8", "bool"] = "float32"
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], FailFast()]


class Interval(BaseModel):
    """A cell between two bounds, both included."""

    model_config = ConfigDict(extra="forbid")

    low: StrictFloat | StrictInt | StrictStr | None = None
    high: StrictFloat | StrictInt | StrictStr | None = None


class OneOf(BaseModel):
    """A cell that is one of several categories."""

    model_config = ConfigDict(extra="forbid")

    one_of: list[StrictStr | StrictBool | StrictInt | StrictFloat] = Field(min_length=1)


Cell: TypeAlias = StrictStr | StrictBool | StrictInt | StrictFloat | Interval | OneOf | None


def _checked(check: Callable[[Any], Any], given: Any) -> Any:
    """A field as a check returns it; the ValueError of the check becomes one of pydantic."""
    try:
        return given if given is None else check(given)
    except ValueError as error:
        raise PydanticCustomError("first_wrong", "{words}", {"words": str(error)}) from None


def _array(given: Any, leaves: frozenset[type] = NUMBERS) -> Any:
    """An array in JSON as it is; one in base64 as `Packed`."""
    if not isinstance(given, dict):
        check_nested(given, leaves)
        return given
    if given.keys().isdisjoint(Base64Array.model_fields):
        raise ValueError(ARRAY)
    check_fields(given, Base64Array.model_fields)
    try:
        found = Base64Array.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field, message = ".".join(map(str, first["loc"])), first["msg"]
        raise ValueError(f"{field}: {message[:1].lower()}{message[1:]}") from None
    return Packed(found.base64, found.dtype, found.shape)


def _covariates(given: Any) -> Any:
    """An array, or several by name."""
    if isinstance(given, dict) and not isinstance(given.get("base64"), str):
        return {name: _array(part) for name, part in given.items()}
    return _array(given)


def _rows(given: Any) -> Any:
    check_rows(given)
    return given


def _read_by(check: Callable[[Any], Any], described: Any) -> BeforeValidator:
    return BeforeValidator(partial(_checked, check), json_schema_input_type=described)


Array: TypeAlias = Annotated[Any, _read_by(_array, Base64Array | Numbers)]
Mask: TypeAlias = Annotated[
    Any, _read_by(partial(_array, leaves=FLAGS), Base64Array | Flags | None)
]
Given: TypeAlias = Annotated[
    Any, _read_by(_covariates, Base64Array | Numbers | dict[str, Base64Array | Numbers])
]
_Described: TypeAlias = Annotated[list[dict[str, Cell]], Field(min_length=1)] | None
Rows: TypeAlias = Annotated[Any, _read_by(_rows, _Described)]

Output: TypeAlias = Literal["mean", "std", "interval", "probabilities", "completions", "modes"]

_VALUES = (
    "Observed values in the model's units, null where missing: nested lists of the data's shape, "
    "or of (queries, data's shape); or base64."
)


class Request(BaseModel):
    """One or more queries to a model: what is known, and what the answer should contain."""

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
    values: Array = Field(None, description=_VALUES)
    noise: Array = Field(
        None, description="Standard deviation of noise in the values: a number or an array."
    )
    low: Array = Field(None, description="Lower bounds, included; null where there is none.")
    high: Array = Field(None, description="Upper bounds, as `low`.")
    one_of: Mask = Field(
        None, description="Possible classes of each element: true and false, (data's shape, K)."
    )
    given: Given = Field(None, description="Covariates, for a model whose decoder takes them.")
    rows: Rows = Field(
        None,
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
        1000,
        ge=2,
        le=100_000,
        description="Latent draws from which means and intervals are computed.",
    )
    outputs: Annotated[list[Output], FailFast()] = Field(
        ["mean", "std"],
        description="Parts of the answer, besides log p(x) and the verdict. `interval` contains an "
        "element with probability 0.9; `completions` are the means at the z of the draws; "
        "`modes` are different completions, with their shares.",
    )
    draws: StrictInt = Field(0, ge=0, le=10_000, description="Number of draws of complete data.")
    encoding: Literal["list", "base64"] = Field("list", description="How arrays are sent.")
    alone: bool = Field(
        False,
        description="Whether to answer the request in a batch of its own. Answers in a shared "
        "batch differ by rounding, which may replace draws by others that are as good; alone, the "
        "same seed gives the same bits.",
    )
    anytime: bool = Field(
        False,
        description="With `Accept: text/event-stream`: whether a first answer is sent at once and "
        "replaced by better ones.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, given: Any) -> Any:
        if isinstance(given, dict):
            _checked(lambda fields: check_fields(fields, cls.model_fields), given)
        return given

    def asked(self) -> dict[str, Any]:
        """The evidence, as `questions.question_of` takes it."""
        return {name: getattr(self, name) for name in (*ARRAYS, "given", "rows")}

    def wanted(self) -> Wanted:
        """What the answer should contain."""
        return Wanted(tuple(dict.fromkeys(self.outputs)), self.draws, self.encoding)

    def method(self) -> Auto:
        """The method and its budget.

        Raises:
            ValueError: There are too few draws for the purpose.
        """
        return Auto(self.max_seconds, self.max_decodes, self.num_draws, self.purpose)


class Verdict(BaseModel):
    """Whether to trust an answer."""

    label: Literal["trusted", "approximate", "unreliable"]
    purposes: dict[str, str]
    reasons: list[str]
    advice: str


class Answer(BaseModel):
    """The answer to a query, with the arrays or columns asked for. Null: there is no number."""

    model_config = ConfigDict(extra="allow")

    verdict: Verdict
    log_evidence: float | None = Field(description="log p(x) in nats.")
    log_evidence_error: float | None = Field(description="Its standard error in nats.")
    ess: float | None = Field(description="Effective sample size; null where no draws are used.")


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
