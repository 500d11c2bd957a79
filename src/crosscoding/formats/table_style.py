"""How a table is written: its delimiter, its decimal separator, and what its cells hold."""

import math
import re
from dataclasses import dataclass

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_NAMED = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
_DELIMITERS = {"\t": "tab", ";": "';'", "|": "'|'", ",": "','", " ": "space"}  # option values
_DIGITS = re.compile(r"[+-]?[\d.,' ]*\d[\d.,' ]*([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class TableStyle:
    """How a table is written.

    Args:
        delimiter: Separates cells; None: a tab in .tsv files, a comma in all others.
        decimal: Decimal separator, "." or ",".
        header: Whether the first line names the columns; None: decided by its content.
    """

    delimiter: str | None = None
    decimal: str = "."
    header: bool | None = None

    @staticmethod
    def parse(delimiter: str | None, decimal: str, header: bool | None) -> "TableStyle":
        """The style given by the options.

        Raises:
            ValueError: The delimiter or the decimal separator is not a valid one.
        """
        if delimiter is not None:
            delimiter = _NAMED.get(delimiter.lower(), delimiter)
            if len(delimiter) != 1 or delimiter.isalnum() or delimiter in "\"'\r\n.+-":
                raise ValueError(
                    "expected --delimiter as one character that cannot be part of a number, such "
                    f"as ';', or as tab or space, got {delimiter!r}"
                )
        if decimal not in (".", ","):
            raise ValueError(f"expected --decimal '.' or --decimal ',', got {decimal!r}")
        return TableStyle(delimiter, decimal, header)

    def of(self, suffix: str) -> "TableStyle":
        """This style with the default delimiter for a file's suffix, if none was given.

        Raises:
            ValueError: The delimiter equals the decimal comma.
        """
        delimiter = self.delimiter or ("\t" if suffix == ".tsv" else ",")
        if delimiter == self.decimal:
            raise ValueError(
                "expected a delimiter other than the decimal comma, got none: give --delimiter ';' "
                "or whatever separates the columns"
            )
        return TableStyle(delimiter, self.decimal, self.header)

    # ---- cells ---------------------------------------------------------------------------------

    def number(self, cell: str) -> float | None:
        """The number in a cell, NaN if the value is missing, None if the cell holds no number.

        Python's underscores between digits are not accepted, as no other program writes them.
        """
        cell = cell.strip()
        if cell.lower() in MISSING:
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
        """A number in full precision, or an empty string for NaN."""
        return "" if math.isnan(number) else str(number).replace(".", self.decimal)

    def advice(self, cell: str) -> str:
        """What to do about a cell that holds no number."""
        if self.delimiter not in (None, ",") and TableStyle(decimal=",").number(cell) is not None:
            return "if it has a decimal comma, give --decimal ','"
        if other := self.other_delimiter(cell):
            return other
        if not _DIGITS.fullmatch(cell.strip()):
            return "write classes as numbers from 0"
        if self.decimal == ",":
            return "write it with a decimal comma, as --decimal says, and no thousands separators"
        return (
            "write it with a decimal point and no thousands separators, or give --decimal ',' if "
            "it has a decimal comma"
        )

    def other_delimiter(self, text: str) -> str:
        """Advice on a delimiter that splits the text into numbers only; "" if there is none."""
        for delimiter, name in _DELIMITERS.items():
            parts = text.strip().split(delimiter)
            decimal = "," if any("," in part for part in parts) else "."
            style = TableStyle(delimiter, decimal)
            numbers = len(parts) > 1 and all(style.number(part) is not None for part in parts)
            if numbers and delimiter not in (self.delimiter, self.decimal):
                comma = "" if decimal == self.decimal else f" --decimal '{decimal}'"
                return f"is this the wrong delimiter? Give --delimiter {name}{comma}"
        return ""


def is_missing(cell: str) -> bool:
    """Whether a cell holds no value."""
    return cell.strip().lower() in MISSING


def is_whole(cell: str) -> bool:
    """Whether a cell holds a number without decimals or an exponent."""
    return _WHOLE.fullmatch(cell.strip()) is not None
