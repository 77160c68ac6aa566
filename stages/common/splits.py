"""data/splits.csv: one row an image, the id that data/raw knows it by, and its split.

The table is written and read row by row, so a million images need no memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.common import tables

SPLITS_FILE = Path("data/splits.csv")
SPLIT_NAMES = ("train", "valid", "test")
# What data sets call their official splits, by our name.
OFFICIAL_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
FIXED_COLUMNS = ("id", "split", "label", "group")


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One image: its split, its class by name, the group it may not leave, other columns."""

    id: str
    split: str
    label: str
    group: str
    columns: dict[str, str]


def write(path: Path, rows: Iterable[SplitRow], column_names: list[str]) -> None:
    """Writes the rows in their order; other columns follow the fixed ones.

    A source's own column `group` is not among them: what the images are in is the joined group.
    """
    column_names = [name for name in column_names if name not in FIXED_COLUMNS]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = tables.csv_writer(file)
        writer.writerow([*FIXED_COLUMNS, *column_names])
        for row in rows:
            others = [row.columns[name] for name in column_names]
            writer.writerow([row.id, row.split, row.label, row.group, *others])


def read(path: Path = SPLITS_FILE) -> Iterator[SplitRow]:
    """The rows of the table in their order, one after the other."""
    with path.open(newline="", encoding="utf-8") as file:
        for record in tables.csv_reader(file):
            yield SplitRow(
                **{name: record.pop(name) for name in FIXED_COLUMNS},
                columns=record,
            )
