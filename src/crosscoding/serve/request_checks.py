"""Checks of the parts of a request that may be large; each check stops at the first wrong entry.

pydantic records an error for every entry, and for every branch of a union that the entry does not
match. From 0.4 megabytes of wrong entries it would make half a gigabyte of errors, and send one.
"""

from collections.abc import Collection
from typing import Any

ARRAY = (
    "expected nested lists of numbers and nulls (of true and false for one_of), or an object with "
    "base64, dtype and shape"
)
NUMBERS = frozenset({float, int, type(None)})
FLAGS = frozenset({bool})
_MEMBERS = frozenset({str, bool, int, float})
_ENDS = frozenset({str, int, float, type(None)})
_CELLS = _MEMBERS | {type(None)}
_MOST_DIMENSIONS = 16


def check_nested(given: Any, leaves: Collection[type]) -> None:
    """Raise ValueError unless JSON is an entry of one of these types, or nested lists of them."""
    level = [[given]]
    for _ in range(_MOST_DIMENSIONS + 1):
        deeper: list[list[Any]] = []
        for entries in level:
            types = set(map(type, entries))
            if not types <= {list, *leaves}:
                raise ValueError(ARRAY)
            if list in types:
                deeper += [entry for entry in entries if type(entry) is list]
        if not deeper:
            return
        level = deeper
    raise ValueError(ARRAY)


def check_rows(given: Any) -> None:
    """Raise ValueError unless JSON is a list of objects whose values are cells."""
    if type(given) is not list or not given:
        raise ValueError("expected a list of at least one object by column")
    for place, row in enumerate(given):
        if type(row) is not dict:
            raise ValueError(f"row {place}: expected an object by column, got {row!r:.80}")
        for name, cell in row.items():
            if type(cell) not in _CELLS and not _is_interval(cell) and not _is_set(cell):
                raise ValueError(
                    f'row {place}, column {name!r:.80}: expected a value, null, {{"low": …, '
                    f'"high": …}} or {{"one_of": […]}} with at least one member, got {cell!r:.80}'
                )


def _is_interval(cell: Any) -> bool:
    return (
        type(cell) is dict
        and cell.keys() <= {"low", "high"}
        and all(type(end) in _ENDS for end in cell.values())
    )


def _is_set(cell: Any) -> bool:
    if type(cell) is not dict or cell.keys() != {"one_of"}:
        return False
    members = cell["one_of"]
    return type(members) is list and bool(members) and set(map(type, members)) <= _MEMBERS


def check_fields(given: Any, known: Collection[str]) -> None:
    """Raise ValueError if an object has a field that is not known."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{unknown:.80}: expected no such field")
