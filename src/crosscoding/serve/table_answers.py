"""Answers for tables: each column in its own units, as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from crosscoding.columns import Column
from crosscoding.serve.json_arrays import number
from crosscoding.serve.questions import LEVEL, Question


def columns_of(question: Question, parts: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What is known, or else follows, about each column, one object for each row.

    Args:
        question: A question to a model with a table.
        parts: Some of `mean`, `std`, (N, columns) each, `interval`, (2, N, columns), and
            `probabilities`, (N, columns, K), in tensors' units.
    """
    table = question.served.vae.table
    assert table is not None  # the caller has made sure
    frames = {}
    if "mean" in parts:
        frames["mean"] = _cells(question, parts["mean"], whole=False)
    if "interval" in parts:
        for name, end in zip(("low", "high"), parts["interval"], strict=True):
            frames[name] = _cells(question, end)
    exact = question.evidence.exact.cpu()
    found = []
    for row in range(question.num_queries):
        own: dict[str, Any] = {}
        for place, column in enumerate(table.columns):
            text = str(column.name)
            if bool(exact[row, place]) and question.rows:
                own[text] = {"known": True, "value": question.rows[row].get(text)}
                continue
            about: dict[str, Any] = {"known": bool(exact[row, place])}
            about |= {name: cells[row][text] for name, cells in frames.items()}
            if "mean" in parts and not column.is_listed and column.kind != "date":
                mean = float(parts["mean"][row, place])  # a cell would be rounded to its dtype
                about["mean"] = number(column.shift + column.scale * mean)
            if "std" in parts and not column.is_listed:
                about["std"] = number(float(parts["std"][row, place]) * column.scale)
            if column.is_listed and "probabilities" in parts:
                _list_categories(about, column, parts["probabilities"][row, place])
            own[text] = about
        found.append({"columns": own, "level": LEVEL} if "interval" in parts else {"columns": own})
    return found


def _list_categories(about: dict[str, Any], column: Column, probabilities: Tensor) -> None:
    """Replace the mean, which categories do not have, by their probabilities."""
    if "mean" in about:
        about["likeliest"] = about.pop("mean")
    pairs = zip(column.categories, probabilities.tolist(), strict=False)
    about["probabilities"] = [{"value": value, "probability": p} for value, p in pairs]


def rows_of(question: Question, draws: Tensor) -> list[list[dict[str, Any]]]:
    """Completed rows, a list of draws for each query.

    Args:
        question: A question to a model with a table.
        draws: In tensors' units, shape (draws, N, columns).
    """
    per_draw = [_cells(question, draw) for draw in draws]
    exact = question.evidence.exact.cpu()
    table = question.served.vae.table
    assert table is not None  # the caller has made sure
    names = [str(name) for name in table.names]
    found = []
    for row in range(question.num_queries):
        asked = question.rows[row] if question.rows else {}
        kept = {n: asked[n] for p, n in enumerate(names) if bool(exact[row, p]) and n in asked}
        found.append([cells[row] | kept for cells in per_draw])
    return found


def _cells(question: Question, values: Tensor, *, whole: bool = True) -> list[dict[str, Any]]:
    """Values in tensors' units as cells in JSON, an object by column for each row."""
    table = question.served.vae.table
    assert table is not None  # the caller has made sure
    frame = table.from_tensors(values.cpu(), whole=whole, limits=question.limits)
    columns = {str(name): [_json(cell) for cell in frame[name]] for name in table.names}
    return [{name: cells[row] for name, cells in columns.items()} for row in range(len(frame))]


def _json(cell: Any) -> Any:
    """A cell of a DataFrame in JSON: dates as in ISO 8601, durations in seconds."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if hasattr(cell, "isoformat") and not hasattr(cell, "total_seconds"):
        return None if cell != cell else cell.isoformat()
    if hasattr(cell, "total_seconds"):
        return None if cell != cell else cell.total_seconds()
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return None
    return cell if isinstance(cell, (str, bool, int, float)) else None
