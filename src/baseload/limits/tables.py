"""Tables of points as CSV: one way to read them, and one kind of error where they are none."""

import csv
import io
import re
from collections.abc import Sequence
from itertools import zip_longest

from baseload.domain.errors import DataError

SEPARATORS = (",", ";", "\t")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def separator_of(text: str) -> str:
    """What stands between the cells: the one of `SEPARATORS` that the line of column names has most of."""
    head = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=head.count)


def read_table(
    data: bytes, *, name: str, hint: str, needed: Sequence[str] = ()
) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """The columns of a CSV file, and each row with its line number.

    Cells stand apart by commas, semicolons or tabs; columns are named without blanks around, in lower case.
    DataError, with `hint`, where it has no line at all or lacks a `needed` column; also where it is not UTF-8 or not
    CSV, where a column stands twice, or a row has more cells than there are columns.
    """
    try:
        text = data.decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text), delimiter=separator_of(text))
        columns = [cell.strip().lower() for cell in next((line for line in lines if line), [])]
        cells = [(lines.line_num, line) for line in lines if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text: {error}.", hint="Save the table as CSV in UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{name}: not CSV: {error}.", hint="Look for a quotation mark that is not closed.") from None
    if not columns:
        raise DataError(f"{name}: empty: it has no line of column names.", hint=hint)
    twice = next((column for i, column in enumerate(columns) if column and column in columns[:i]), None)
    if twice is not None:
        raise DataError(f"{name}: the column `{twice}` stands twice.", hint="Leave one of them out.")
    for line, row in cells:
        if len(row) > len(columns):
            raise DataError(
                f"{name}, line {line}: more cells than the {len(columns)} columns.",
                hint="Put quotation marks around a cell with a comma in it.",
            )
    absent = next((column for column in needed if column not in columns), None)
    if absent is not None:
        raise DataError(f"{name}: no column `{absent}`.", hint=hint)
    return columns, [(line, dict(zip_longest(columns, row))) for line, row in cells]


def number_of(text: str) -> float:
    """A number, also with commas between thousands ("1,024"); ValueError for all else, "12,5" too."""
    return float(text.replace(",", "") if _GROUPED.fullmatch(text) else text)
