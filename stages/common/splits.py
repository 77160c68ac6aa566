"""data/splits.csv: one row an image, the id that data/raw knows it by, and its split.

The table is written and read row by row, so a million images need no memory.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.common import params, tables
from stages.common.run import UserError

SPLITS_FILE = Path("data/splits.csv")
SPLIT_NAMES = ("train", "valid", "test")
# What data sets call their official splits, by our name.
OFFICIAL_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
FIXED_COLUMNS = ("id", "split", "label", "group")
SHOWN = 5  # wrong rows that an error quotes


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One image: its split, its class by name, the group it may not leave, other columns."""

    id: str
    split: str
    label: str
    group: str
    columns: dict[str, str]

    @property
    def name(self) -> str:
        """What people know the image by: its path in the source, or the id."""
        return self.columns.get("name") or self.id


def write(path: Path, rows: Iterable[SplitRow], column_names: list[str]) -> None:
    """Writes the rows in their order; other columns follow the fixed ones.

    A source's own column `group` is not among them: what the images are in is the joined group.
    """
    column_names = [name for name in column_names if name not in FIXED_COLUMNS]
    header = [*FIXED_COLUMNS, *column_names]
    cells = (
        (row.id, row.split, row.label, row.group, *(row.columns[name] for name in column_names))
        for row in rows
    )
    tables.write_csv(path, header, cells)


def read(path: Path = SPLITS_FILE) -> Iterator[SplitRow]:
    """The rows of the table in their order, one after the other."""
    with path.open(newline="", encoding="utf-8") as file:
        for record in tables.csv_reader(file):
            yield SplitRow(
                **{name: record.pop(name) for name in FIXED_COLUMNS},
                columns=record,
            )


def with_weights(
    rows: Iterable[SplitRow], column: str, where: str
) -> Iterator[tuple[SplitRow, float]]:
    """Each row with what the column says that it counts, one after the other.

    Args:
        rows: of the table.
        column: whose values are weights: finite numbers of 0 or more.
        where: the key of params.yaml that names the column, for errors.

    Raises:
        UserError: no such column; at the end of the rows, values in it that are no weights.
    """
    wrong, wrong_count = [], 0
    for row in rows:
        if column not in row.columns:
            raise UserError(
                f"{where}: expected null or a column of {SPLITS_FILE}, which has "
                f"{', '.join(row.columns) or 'none'}, received {column!r}"
                f"{params.nearest(column, row.columns)}"
            )
        weight = _number(row.columns[column])
        if not (math.isfinite(weight) and weight >= 0):
            wrong_count += 1
            if len(wrong) < SHOWN:
                wrong.append(f"{row.columns[column]!r} for {row.name}")
        yield row, weight
    if wrong_count:
        more = f" and {wrong_count - len(wrong)} more" if wrong_count > len(wrong) else ""
        raise UserError(
            f"{where}: expected a number of 0 or more in the column {column!r}, "
            f"received {', '.join(wrong)}{more}; mend the data set's table"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
