"""Tables of points as CSV: one way to read them, and one kind of error where they are none."""

import csv
import io

from baseload.domain.errors import DataError


def read_table(data: bytes, *, name: str, hint: str) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """The columns of a CSV file, and each row with its line number.

    DataError, with `hint`, where it has no line at all; also where it is not UTF-8, or not CSV, where a column stands
    twice, or a row has more cells than there are columns.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        rows = [(reader.line_num, dict(row)) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text: {error}.", hint="Save the table as CSV in UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{name}: not CSV: {error}.", hint="Look for a quotation mark that is not closed.") from None
    if not reader.fieldnames:
        raise DataError(f"{name}: empty: it has no line of column names.", hint=hint)
    columns = list(reader.fieldnames)
    twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
    if twice is not None:
        raise DataError(f"{name}: the column `{twice}` stands twice.", hint="Leave one of them out.")
    for line, row in rows:
        if reader.restkey in row:
            raise DataError(
                f"{name}, line {line}: more cells than the {len(columns)} columns.",
                hint="Put quotation marks around a cell with a comma in it.",
            )
    return columns, rows
