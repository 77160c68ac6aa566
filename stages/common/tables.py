"""Small files that people and DVC read: metrics as JSON, tables as CSV."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from stages.common import files

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # of text tables, by the name of the file
DECIMALS = 6  # of a metric; DVC can show them all
MOST_CHARACTERS = 2**31 - 1  # of a cell; by itself Python ends at 131,072


def write_metrics(path: Path, metrics: dict) -> None:
    """Writes nested numbers with sorted keys and six decimals.

    Raises:
        ValueError: a value is no finite number; DVC would show a text as a column of its own.
    """

    def tidy(value):
        if isinstance(value, dict):
            return {str(key): tidy(inner) for key, inner in value.items()}
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return round(value, DECIMALS) + 0.0  # -0.0 becomes 0.0
        raise ValueError(f"{path}: a metric must be a finite number, received {value!r}")

    text = json.dumps(tidy(metrics), indent=2, sort_keys=True, ensure_ascii=False)
    with files.replacing(path) as new:
        new.write_text(text + "\n", encoding="utf-8")


class _UnixLines:
    """A file that gets lines without the carriage return at their ends."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")


def csv_writer(file: TextIO) -> Any:
    """A writer of the csv module with Unix line ends.

    The module quotes a carriage return within a cell only where lines end in one; unquoted, it
    would part the row in two.
    """
    return csv.writer(_UnixLines(file))


def csv_reader(file: TextIO, delimiter: str = ",") -> csv.DictReader:
    """A reader of rows by column name, whose cells may be as long as they like."""
    csv.field_size_limit(MOST_CHARACTERS)
    return csv.DictReader(file, delimiter=delimiter)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table with Unix line ends, row by row, creating its folder."""
    with files.replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv_writer(file)
        writer.writerow(header)
        writer.writerows(rows)
