"""data/predictions/<model>.csv: what a model said of every test image; all metrics follow from it.

Columns: id, label, predicted, correct (1 or 0), and `probability <class>` for every class, with
seven significant digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common import tables
from stages.common.run import progress

FIXED_COLUMNS = ("id", "label", "predicted", "correct")
PROBABILITY = "probability "
# A row of text must fit: some 12 bytes a class, and a header with the names of all classes.
BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class Predictions:
    """The table, in its order."""

    ids: list[str]
    labels: np.ndarray  # (images,), int64, numbers of classes
    probabilities: np.ndarray  # (images, classes), float64, rows adding up to 1
    class_names: list[str]


def write(
    path: Path,
    ids: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes the table; arguments as in `Predictions`, of any float type."""
    header = (*FIXED_COLUMNS, *(PROBABILITY + name for name in class_names))
    rows = _rows(ids, labels, probabilities, class_names)
    tables.write_csv(
        path, header, progress(rows, total=len(ids), unit="image", description="predictions")
    )


def _rows(ids, labels, probabilities, class_names) -> Iterator[tuple]:
    for example_id, label, row in zip(ids, labels, probabilities, strict=True):
        texts = [f"{value:.7g}" for value in row.tolist()]
        # Of what is written, the largest: two that differ in the eighth digit are equal there.
        predicted = texts.index(texts[int(row.argmax())])
        correct = int(predicted == label)
        yield example_id, class_names[label], class_names[predicted], correct, *texts


def read(path: Path) -> Predictions:
    """The table; each row's probabilities divided by their sum, which rounding moved from 1."""
    from pyarrow import csv

    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        # Otherwise pyarrow guesses: an id of digits would become a number.
        convert_options=csv.ConvertOptions(column_types=_column_types(path)),
    )
    columns = table.column_names[len(FIXED_COLUMNS) :]
    class_names = [column.removeprefix(PROBABILITY) for column in columns]
    probabilities = np.empty((table.num_rows, len(columns)))
    for number, column in enumerate(columns):
        probabilities[:, number] = table[column].to_numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    number_of = {name: number for number, name in enumerate(class_names)}
    labels = np.array([number_of[name] for name in table["label"].to_pylist()], dtype=np.int64)
    return Predictions(table["id"].to_pylist(), labels, probabilities, class_names)


def _column_types(path: Path) -> dict:
    import csv

    import pyarrow

    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    texts = dict.fromkeys(FIXED_COLUMNS, pyarrow.string())
    return {**dict.fromkeys(header, pyarrow.float64()), **texts}
