"""Puts the tables of docs/experiments.md together from docs/experiments/*.csv.

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`: a row for each setting, the
means over its seeds and, of several, their standard deviation.
"""

import csv
import statistics
from pathlib import Path

from stages.common.run import run
from tools import markdown

FOLDER = Path("docs/experiments")
PAGE = Path("docs/experiments.md")
SEED = "seed"


def table(text: str) -> str:
    """Markdown of one CSV file: columns of the setting, then `seed`, then what was measured."""
    rows = list(csv.DictReader(text.splitlines()))
    names = list(rows[0])
    settings_end = names.index(SEED)
    setting_names, metrics = names[:settings_end], names[settings_end + 1 :]
    settings: dict[tuple, list[dict]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in setting_names), []).append(row)
    header = [*setting_names, "seeds", *(name.replace("_", " ") for name in metrics)]
    lines = [
        [
            *setting,
            str(len(found)),
            *(_spread([row[name] for row in found]) for name in metrics),
        ]
        for setting, found in settings.items()
    ]
    return markdown.table(header, lines)


def _spread(cells: list[str]) -> str:
    if not all(cells):
        return "—"  # a seed lacks it
    values = [float(cell) for cell in cells]
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def filled(page: str, folder: Path = FOLDER) -> str:
    """The page with its tables made anew."""

    def made(name: str) -> str:
        return table((folder / f"{name}.csv").read_text(encoding="utf-8"))

    return markdown.filled(page, made)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run(main, takes_arguments=False)
