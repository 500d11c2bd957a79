"""The cells of a table: how numbers are written in them, and what keeps its lines apart."""

import math
import re
from dataclasses import dataclass

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_NAMED = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
_DELIMITERS = {"\t": "tab", ";": "';'", "|": "'|'", ",": "','", " ": "space"}  # as they are given
_DIGITS = re.compile(r"[+-]?[\d.,' ]*\d[\d.,' ]*([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class TableStyle:
    """How a table is written.

    Args:
        delimiter: What is between cells; None: a tab in a .tsv file, a comma in all others.
        decimal: What is before the decimals of a number, "." or ",".
        header: Whether the first line names the columns; None: as it looks.
    """

    delimiter: str | None = None
    decimal: str = "."
    header: bool | None = None

    @staticmethod
    def parse(delimiter: str | None, decimal: str, header: bool | None) -> "TableStyle":
        """The style that options name.

        Raises:
            ValueError: They name none.
        """
        if delimiter is not None:
            delimiter = _NAMED.get(delimiter.lower(), delimiter)
            if len(delimiter) != 1 or delimiter.isalnum() or delimiter in "\"'\r\n.+-":
                raise ValueError(
                    "expected --delimiter as one character that is not part of a number, such as "
                    f"';', or as tab or space, got {delimiter!r}"
                )
        if decimal not in (".", ","):
            raise ValueError(f"expected --decimal '.' or --decimal ',', got {decimal!r}")
        return TableStyle(delimiter, decimal, header)

    def of(self, suffix: str) -> "TableStyle":
        """This style with the delimiter that files of that suffix have, if none was given.

        Raises:
            ValueError: The delimiter is the decimal comma.
        """
        delimiter = self.delimiter or ("\t" if suffix == ".tsv" else ",")
        if delimiter == self.decimal:
            raise ValueError(
                "expected a delimiter beside the decimal comma, got none: give --delimiter ';' or "
                "whatever is between the columns"
            )
        return TableStyle(delimiter, self.decimal, self.header)

    # ---- what a cell is ------------------------------------------------------------------------

    def number(self, cell: str) -> float | None:
        """The number in a cell, NaN where it is missing; None if there is no number.

        Written as other programs read it too: without _ between digits.
        """
        cell = cell.strip()
        if cell.lower() in _MISSING:
            return math.nan
        if "_" in cell or (self.decimal == "," and "." in cell):
            return None
        try:
            return float(cell.replace(self.decimal, "."))
        except ValueError:
            return None

    def joined(self, cells: list[str]) -> str:
        """A line of these cells."""
        return (self.delimiter or ",").join(cells)

    def text(self, number: float) -> str:
        """A number in full precision; nothing for NaN."""
        return "" if math.isnan(number) else str(number).replace(".", self.decimal)

    def advice(self, cell: str) -> str:
        """What to do about a cell that holds no number."""
        if self.delimiter not in (None, ",") and TableStyle(decimal=",").number(cell) is not None:
            return "if its comma is a decimal one, give --decimal ','"
        if other := self.other_delimiter(cell):
            return other
        if not _DIGITS.fullmatch(cell.strip()):
            return "write classes as numbers from 0"
        if self.decimal == ",":
            return "write it with a decimal comma, as --decimal says, and no thousands separators"
        return (
            "write it with a decimal point and no thousands separators, or give --decimal ',' if "
            "commas are decimal ones"
        )

    def other_delimiter(self, text: str) -> str:
        """Advice on a delimiter that has numbers on all its sides in a text; "" if none has."""
        for delimiter, name in _DELIMITERS.items():
            parts = text.strip().split(delimiter)
            decimal = "," if any("," in part for part in parts) else "."
            style = TableStyle(delimiter, decimal)
            numbers = len(parts) > 1 and all(style.number(part) is not None for part in parts)
            if numbers and delimiter not in (self.delimiter, self.decimal):
                comma = "" if decimal == self.decimal else f" --decimal '{decimal}'"
                return f"is the delimiter another one? Give --delimiter {name}{comma}"
        return ""


def is_missing(cell: str) -> bool:
    """Whether nothing is known in a cell."""
    return cell.strip().lower() in _MISSING


def is_whole(cell: str) -> bool:
    """Whether a cell has a number without decimals or an exponent."""
    return _WHOLE.fullmatch(cell.strip()) is not None
