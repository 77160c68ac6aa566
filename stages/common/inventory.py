"""data/inventory.csv: one row an image of the source, what the check found out about it.

Both tables are written and read row by row, so a million images need no memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from stages.common import tables

INVENTORY_FILE = Path("data/inventory.csv")
REJECTED_FILE = Path("data/rejected.csv")
REJECTED_COLUMNS = ("id", "name", "label", "problem", "detail")
PROBLEMS = {
    "not_an_image": "no image of a known format",
    "truncated": "cut off or damaged",
    "zero_pixels": "a picture without pixels",
    "too_many_pixels": "more pixels than dataset.pixel_limit",
    "empty_label": "no label",
    "missing_file": "no file that can be read",
    "not_downloaded": "the file could not be downloaded",
}  # code to meaning


@dataclass(frozen=True, kw_only=True)
class InventoryRow:
    """One image. Of an image with a problem, numbers that are not known are None, texts empty."""

    id: str  # the `tfds_id` in data/raw; `table row N` for a row whose image never got there
    name: str  # what people know the image by: its path in the source, or the id
    label: str  # class name
    bytes: int | None = None  # of the encoded file
    format: str = ""  # as Pillow names it: JPEG, PNG, …
    # Pixels as stored, as Pillow has it: L, RGB, P, I;16, …; or `5 channels`; several channels of
    # 16 bits end in `;16`.
    mode: str = ""
    width: int | None = None  # pixels, of the upright picture
    height: int | None = None
    frames: int | None = None  # above 1: an animation or several pages
    content: str = ""  # sha256 of the encoded bytes, hexadecimal
    perceptual: str = ""  # 64-bit perceptual hash of the upright RGB picture, 16 hexadecimal digits
    red: float | None = None  # mean of the channel, 0–255
    green: float | None = None
    blue: float | None = None
    problem: str = ""  # a code of PROBLEMS, or empty
    detail: str = ""  # the problem in words


COLUMNS = tuple(field.name for field in fields(InventoryRow))
_WHOLE_NUMBERS = ("bytes", "width", "height", "frames")
_MEANS = ("red", "green", "blue")


def write(path: Path, rows: Iterable[InventoryRow]) -> None:
    """Writes the rows in their order as they come."""
    _write(path, COLUMNS, rows)


def write_rejected(path: Path, rows: Iterable[InventoryRow]) -> None:
    """Writes what people need of the rows with a problem; the header alone where there are none."""
    _write(path, REJECTED_COLUMNS, rows)


def read(path: Path = INVENTORY_FILE) -> Iterator[InventoryRow]:
    """The rows of a table that `write` or `write_rejected` wrote, one after the other."""
    with path.open(newline="", encoding="utf-8") as file:
        for record in tables.csv_reader(file):
            for names, number in ((_WHOLE_NUMBERS, int), (_MEANS, float)):
                record |= {name: number(record[name]) for name in names if record.get(name)}
            known = {name: value for name, value in record.items() if value != ""}
            yield InventoryRow(**{"id": "", "name": "", "label": "", **known})


def _write(path: Path, columns: tuple[str, ...], rows: Iterable[InventoryRow]) -> None:
    tables.write_csv(
        path, columns, ([_cell(getattr(row, name)) for name in columns] for row in rows)
    )


def _cell(value: str | int | float | None) -> str | int:
    """A cell of the table; means keep two decimals, None is empty."""
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else value
