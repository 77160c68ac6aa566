"""What `evaluate` and `compare` share: their section of params and the rows of data/splits.csv."""

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from stages.common import augment, params, splits
from stages.common.run import UserError

FEWEST_VALUES, MOST_VALUES = 2, 10  # of a column, for slices that nobody asked for
MOST_ASKED_VALUES = 100
NOT_SLICED = ("name",)  # besides the columns that every table of splits has


@params.params_dataclass
class EvaluateParams:
    """Section `evaluate`."""

    batch_size: params.PositiveInt
    bootstrap_samples: Annotated[
        int, Field(ge=100, le=100_000, description="a whole number from 100 to 100000")
    ]
    weight_column: Annotated[
        str | None,
        Field(min_length=1, description="null or a column of data/splits.csv"),
    ]
    test_time_augment: augment.AugmentParams
    slice_columns: Annotated[
        list[params.Text] | None,
        Field(
            description=f"null (every column with {FEWEST_VALUES} to {MOST_VALUES} values) or a "
            "list of columns"
        ),
    ]


def test_rows() -> list[splits.SplitRow]:
    """The rows of data/splits.csv that are in the test split."""
    return [row for row in splits.read() if row.split == "test"]


def in_order(rows: Sequence[splits.SplitRow], ids: Sequence[str]) -> list[splits.SplitRow]:
    """The row of every id.

    Raises:
        UserError: an id has no row; the images are those of another table of splits.
    """
    row_of = {row.id: row for row in rows}
    missing = [example_id for example_id in ids if example_id not in row_of]
    if missing:
        raise UserError(
            f"{splits.SPLITS_FILE} has no test image {missing[0]!r} ({len(missing)} of {len(ids)} "
            "are missing), so that it is not of these images; run `dvc repro`"
        )
    return [row_of[example_id] for example_id in ids]


def slice_columns(rows: Sequence[splits.SplitRow], wanted: Sequence[str] | None) -> list[str]:
    """The columns by whose values the metrics are given.

    Args:
        rows: of the test images, at least one.
        wanted: names; None: every column with 2 to 10 different values, save for the name.

    Raises:
        UserError: a column is not there, or has more than 100 different values.
    """

    def count(name: str) -> int:
        return len({row.columns[name] for row in rows})

    available = list(rows[0].columns)
    if wanted is None:
        return [
            name
            for name in available
            if name not in NOT_SLICED and FEWEST_VALUES <= count(name) <= MOST_VALUES
        ]
    where = "params.yaml, evaluate.slice_columns"
    for name in wanted:
        if name not in available:
            raise UserError(
                f"{where}: expected columns of {splits.SPLITS_FILE}, which has "
                f"{', '.join(available) or 'none to slice by'}, received {name!r}"
                f"{params.nearest(name, available)}"
            )
        if count(name) > MOST_ASKED_VALUES:
            raise UserError(
                f"{where}: expected columns with at most {MOST_ASKED_VALUES} different values, "
                f"received {name!r}, which has {count(name)}; leave it out, or give the data "
                "set a coarser column"
            )
    return list(dict.fromkeys(wanted))


def image_weights(rows: Sequence[splits.SplitRow], column: str | None) -> np.ndarray | None:
    """How much each image counts by a column, (images,) float64; None without a column.

    Raises:
        UserError: see splits.with_weights; or all weights are 0.
    """
    if column is None:
        return None
    where = "params.yaml, evaluate.weight_column"
    weights = np.array([weight for _, weight in splits.with_weights(rows, column, where)])
    if not weights.any():
        raise UserError(
            f"{where}: every test image has weight 0 in the column {column!r}; give some of them "
            "more, or set it to null"
        )
    return weights


def members_by_value(values: Sequence[str]) -> dict[str, list[int]]:
    """Readable value to the positions that have it.

    Decimals are shortened to four digits (0.3333333432674408: 0.3333) unless two would become one.
    """
    members: dict[str, list[int]] = {}
    for position, value in enumerate(values):
        members.setdefault(value, []).append(position)
    readable = {value: _readable(value) for value in members}
    if len(set(readable.values())) < len(readable):
        readable = {value: value or "(empty)" for value in members}
    shown: dict[str, list[int]] = {}
    for value, positions in members.items():
        shown.setdefault(readable[value], []).extend(positions)  # cells may say "(empty)" too
    return shown


def _readable(value: str) -> str:
    if re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", value):
        return f"{float(value):.4g}"
    return value or "(empty)"
