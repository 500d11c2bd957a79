"""Decides whether a table's first line names its columns, and whether its first column is an index.

Words name columns. Numbers may, too: pandas names unnamed columns 0, 1, 2, …. Where such a line
could also be a row, nothing is guessed, as one row too few or too many shifts all answers: the user
has to give --header or --no-header.
"""

from collections.abc import Sequence

from crosscoding.formats.table_style import TableStyle, is_missing, is_whole

UNNAMED = ("", "Unnamed: 0")  # pandas' name for its index when written once, and when written twice
_SURE = 3  # from this many columns on, 0, 1, 2, … are taken as names

Rows = Sequence[Sequence[str]]


def find_header(first: Sequence[str], rows: Rows, style: TableStyle, name: str) -> tuple[bool, str]:
    """Whether the first line names the columns, and a note for the user if that was inferred.

    Args:
        first: The cells of the first line.
        rows: The cells of all other lines.
        style: How the table is written.
        name: The table's name, for the note and errors.

    Raises:
        ValueError: The first line may be names or a row.
    """
    if style.header is not None:
        return style.header, ""
    if _is_pandas_header(first, rows, style):
        shown = ", ".join([*map(str.strip, first[:3]), *["…"] * (len(first) > 3)])
        note = (
            f"line 1 of {name}, {shown}, is taken as the column names that pandas writes; if it "
            "is a row, give --no-header"
        )
        return True, note
    if not _are_numbers(first, style):
        return all(is_missing(cell) or style.number(cell) is None for cell in first), ""
    if _may_be_names(first, rows, style):
        raise ValueError(
            f"expected the first line of {name} to be clearly a row or the column names, got "
            f"numbers that may be either: {', '.join(first[:4])}"
            f"{', …' * (len(first) > 4)}; give --header if they are names, --no-header if they are "
            "a row"
        )
    return False, ""


def check_index(names: Sequence[str], rows: Rows, style: TableStyle, name: str) -> None:
    """Raise ValueError if the first column is unnamed and counts the rows, like a pandas index."""
    if names[0].strip() in UNNAMED and _counts_rows(rows, style):
        raise ValueError(
            f"expected only columns of data in {name}, got an extra first column {names[0]!r} "
            "that counts the rows, like a pandas index; leave it out, with to_csv(..., "
            "index=False) in pandas or row.names=FALSE in R, or name it if it is data"
        )


def counts(column: Sequence[float | None]) -> bool:
    """Whether a column is 0, 1, 2, … or 1, 2, 3, …"""
    return any(list(column) == list(range(start, start + len(column))) for start in (0, 1))


def _counts_rows(rows: Rows, style: TableStyle) -> bool:
    """Whether the first column counts the rows."""
    return bool(rows) and counts([style.number(row[0]) for row in rows])


def _is_pandas_header(first: Sequence[str], rows: Rows, style: TableStyle) -> bool:
    """Whether the first line is 0, 1, 2, …, possibly after the empty name of an index."""
    names = first[1:] if first[0].strip() in UNNAMED else first
    if not names or [cell.strip() for cell in names] != [str(i) for i in range(len(names))]:
        return False
    if len(names) < len(first):
        return _counts_rows(rows, style) or len(names) >= _SURE
    return len(names) >= _SURE or _are_decimals(rows, style)


def _may_be_names(first: Sequence[str], rows: Rows, style: TableStyle) -> bool:
    """Whether numbers may be names: consecutive ones, or whole ones above decimals."""
    numbers = [style.number(cell) for cell in first]
    start = numbers[0] or 0.0
    in_order = numbers == [start + i for i in range(len(numbers))]
    if in_order and start == 0:
        return len(first) >= _SURE or (bool(rows) and all(map(is_whole, first)))
    if in_order and len(first) > _SURE:
        return True
    different = len(set(numbers)) == len(numbers) > 1
    return different and all(map(is_whole, first)) and _are_decimals(rows, style)


def _are_numbers(cells: Sequence[str], style: TableStyle) -> bool:
    """Whether every cell holds a number or is missing."""
    return all(style.number(cell) is not None for cell in cells)


def _are_decimals(rows: Rows, style: TableStyle) -> bool:
    """Whether every cell that is not missing holds a number with decimals or an exponent."""
    cells = [cell for row in rows for cell in row if not is_missing(cell)]
    return bool(cells) and not any(is_whole(cell) or style.number(cell) is None for cell in cells)
