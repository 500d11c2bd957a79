"""Questions: requests to a model, checked and turned into evidence and settings.

Every error message is the one that the library raises in Python, or names the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.columns.table_evidence import Limits as ColumnLimits
from crosscoding.covariates import Covariates
from crosscoding.errors import counted
from crosscoding.evidence import Evidence
from crosscoding.methods import Auto
from crosscoding.serve.catalogue import Served
from crosscoding.serve.json_arrays import Encoding, array_of, mask_of
from crosscoding.serve.limits import Limits
from crosscoding.serve.modes import MOST_GROUPS
from crosscoding.serve.table_rows import evidence_of_rows
from crosscoding.target.discrete_target import target_of

LEVEL = 0.9  # of intervals
FOR_MODES = 400  # draws of a query that are divided into groups


@dataclass(frozen=True)
class Wanted:
    """What an answer should contain besides log p(x) and the verdict.

    Args:
        outputs: Some of "mean", "std", "interval", "probabilities", "completions" and "modes".
        draws: Number of draws of complete data, and of completions.
        encoding: How arrays are sent.
    """

    outputs: tuple[str, ...] = ("mean", "std")
    draws: int = 0
    encoding: Encoding = "list"

    def numbers(self, num_values: int, num_latent: int, stored: int) -> int:
        """How many numbers the answer to a query has, plus those stored to compute it.

        Numbers that only one query of a batch needs at a time are counted in `numbers_at_once`.
        """
        sizes = {"interval": 2, "modes": MOST_GROUPS, "completions": self.draws}
        parts = sum(sizes.get(output, 1) for output in self.outputs) + self.draws
        return parts * num_values + stored * num_latent

    def numbers_at_once(self, num_values: int, num_latent: int) -> int:
        """How many numbers are stored for one query at a time."""
        return FOR_MODES * (num_values + num_latent) if "modes" in self.outputs else 0


@dataclass(frozen=True, eq=False)
class Question:
    """One or more queries to a model, with the settings of their answers.

    Args:
        served: The model.
        evidence: Evidence of a batch of N queries, shape (N, *data).
        method: How they are answered.
        seed: Seed of the answer and of its draws.
        wanted: What the answer should contain.
        rows: The cells of a table's rows as they were asked, by column; empty without a table.
        limits: Low and high bounds of a table's columns, (N,) each, by name.
        alone: Whether it must not share a batch with other requests.
    """

    served: Served
    evidence: Evidence
    method: Auto
    seed: int
    wanted: Wanted
    rows: list[dict[str, Any]] = field(default_factory=list)
    limits: ColumnLimits = field(default_factory=dict)
    alone: bool = False

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self.evidence.values)

    @property
    def num_numbers(self) -> int:
        """How many numbers its answer has, plus those stored to compute it."""
        return _num_numbers(self.served, self.num_queries, self.method, self.wanted)

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What it shares with questions that may be answered in the same batch; None: none may.

        All queries of a call share their random numbers and get the answers that they would get
        alone, unless time is limited.
        """
        if self.alone or self.method.max_seconds is not None:
            return None
        return self.served.name, self.method, self.seed, self.wanted


def question_of(
    served: Served,
    asked: Mapping[str, Any],
    method: Auto,
    seed: int,
    wanted: Wanted,
    limits: Limits,
    *,
    alone: bool = False,
) -> Question:
    """The question of a request.

    Args:
        served: The model.
        asked: Its arrays, as for `evidence_of`, or its `rows`, a list of objects by column.
        method, seed, wanted, alone: As in `Question`.
        limits: The server's limits.
    Raises:
        ValueError: The evidence does not fit the model, or the answer would be too large.
        NonFiniteError: A value is not finite.
    """
    rows = asked.get("rows")
    if rows is None:
        evidence: Evidence = evidence_of(served, asked)
        found = Question(served, evidence, method, seed, wanted, alone=alone)
    else:
        if any(asked.get(name) is not None for name in ARRAYS):
            raise ValueError("rows: expected either rows or arrays such as values, got both")
        if served.vae.table is None:
            raise ValueError(f"rows: expected values, as {served.name} has no table, got rows")
        _check_count(served, len(rows), method, wanted, limits)
        known, bounds = evidence_of_rows(served.vae.table, rows, served.vae.dtype)
        found = Question(served, known, method, seed, wanted, rows, bounds, alone)
    _check_count(served, found.num_queries, method, wanted, limits)
    target_of(served.vae, found.evidence)
    return found


def _check_count(served: Served, num: int, method: Auto, wanted: Wanted, limits: Limits) -> None:
    """Raise ValueError unless there are queries, and no more than the limits allow."""
    if not 1 <= num <= limits.max_queries:
        raise ValueError(f"expected 1 to {limits.max_queries} queries in a request, got {num}")
    numbers = _num_numbers(served, num, method, wanted)
    if numbers > limits.max_numbers:
        raise ValueError(
            f"expected an answer of up to {limits.max_numbers:,} numbers, got {numbers:,} for "
            f"{counted(num, 'query', 'queries')}, counting the stored draws; ask for fewer queries "
            "at once, fewer draws, a smaller num_draws, or no modes"
        )


def _num_numbers(served: Served, num: int, method: Auto, wanted: Wanted) -> int:
    """How many numbers the answer to `num` queries has, plus those stored to compute it."""
    vae = served.vae
    each = wanted.numbers(vae.data_size, vae.latent_dim, method.num_draws)
    return num * each + wanted.numbers_at_once(vae.data_size, vae.latent_dim)


# ---- arrays --------------------------------------------------------------------------------------

ARRAYS = ("values", "noise", "low", "high", "one_of")


def evidence_of(served: Served, asked: Mapping[str, Any]) -> Evidence:
    """Evidence (N, *data) from the arrays of a request; without any, one query with nothing known.

    Args:
        served: The model.
        asked: The `ARRAYS` and `given`, each in JSON, or None.
    Raises:
        ValueError: An array does not have the data's shape, or what `Evidence` raises.
    """
    vae = served.vae
    parts = [*_values(served, asked), *_bounds(served, asked)]
    if asked.get("one_of") is not None:
        allowed = torch.from_numpy(mask_of("one_of", asked["one_of"])).to(vae.device)
        _check_shape(served, "one_of", tuple(allowed.shape[:-1]))
        parts.append(Evidence.one_of(allowed).in_dtype(vae.dtype))
    if not parts:
        like = torch.empty(vae.data_shape, dtype=vae.dtype, device=vae.device)
        parts.append(Evidence.from_nan(torch.full_like(like, torch.nan)))
    found = Evidence.all_of(parts)
    if asked.get("given") is not None:
        found = found.with_given(_given(served, asked["given"]))
    return found.flatten(len(vae.data_shape))


def _values(served: Served, asked: Mapping[str, Any]) -> list[Evidence]:
    """Evidence of values, with noise or without."""
    if asked.get("values") is None:
        if asked.get("noise") is not None:
            raise ValueError("noise: expected the values that it was added to, got no values")
        return []
    noise = 0.0 if asked.get("noise") is None else _numbers(served, "noise", asked["noise"])
    return [Evidence.from_nan(_of_data(served, "values", asked["values"]), noise=noise)]


def _bounds(served: Served, asked: Mapping[str, Any]) -> list[Evidence]:
    """Evidence of intervals."""
    given = {name: asked[name] for name in ("low", "high") if asked.get(name) is not None}
    if not given:
        return []
    return [Evidence.interval(**{n: _of_data(served, n, array) for n, array in given.items()})]


def _given(served: Served, given: Any) -> Covariates:
    """Covariates in the dtypes of the model's examples."""
    examples = served.vae.examples
    if isinstance(given, dict):
        named = examples if isinstance(examples, dict) else {}
        return {n: _covariate(f"given {n}", part, named.get(n)) for n, part in given.items()}
    return _covariate("given", given, examples)


def _covariate(name: str, given: Any, like: Any) -> Tensor:
    found = torch.from_numpy(np.array(array_of(name, given), dtype=np.float64))
    return found.to(like) if isinstance(like, Tensor) else found


def _numbers(served: Served, name: str, given: Any) -> Tensor:
    """An array of a request in the model's dtype."""
    found = torch.from_numpy(np.array(array_of(name, given), dtype=np.float64))
    found = found.to(dtype=served.vae.dtype, device=served.vae.device)
    if found.isinf().any():
        raise ValueError(f"{name}: expected finite numbers that {served.vae.dtype} holds")
    return found


def _of_data(served: Served, name: str, given: Any) -> Tensor:
    found = _numbers(served, name, given)
    _check_shape(served, name, tuple(found.shape))
    return found


def _check_shape(served: Served, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a shape is that of a datum, or of a batch of data."""
    wanted = tuple(served.vae.data_shape)
    if shape not in (wanted, (*shape[:1], *wanted)):
        listed = ", ".join(map(str, wanted))
        raise ValueError(
            f"{name}: expected shape ({listed}) or (queries, {listed}) for {served.name}, got "
            f"({', '.join(map(str, shape))})"
        )
