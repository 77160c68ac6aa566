"""Small files that people and DVC read: metrics as JSON, tables as CSV."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

DECIMALS = 6  # of a metric; DVC can show them all


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

    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tidy(metrics), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table with Unix line ends, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
