"""Which images are stored, and in which split."""

import pytest

from stages import preprocess
from stages.common.datasets.raw import RawImage
from stages.common.run import UserError
from stages.common.splits import SplitRow


def raw(*ids: str) -> list[RawImage]:
    fields = {"encoded": b"", "label": 0, "official_split": "train", "columns": {}}
    return [RawImage(id=image_id, **fields) for image_id in ids]


def rows(**split_of: str) -> list[SplitRow]:
    return [SplitRow(image_id, split, "cat", "", {}) for image_id, split in split_of.items()]


def test_images_get_the_split_of_the_table_and_those_that_are_not_in_it_are_left_out():
    table = rows(b="test", c="train", e="valid")
    pairs = preprocess.with_split(raw("a", "b", "c", "d", "e", "f"), table)
    assert [(image.id, split) for image, split in pairs] == [
        ("b", "test"),
        ("c", "train"),
        ("e", "valid"),
    ]


@pytest.mark.parametrize("table", [rows(b="test", a="train"), rows(a="test", z="train")])
def test_a_table_of_other_images_or_in_another_order_is_an_error(table):
    with pytest.raises(UserError, match=r"data/splits.csv.*received [az],.*dvc repro split"):
        list(preprocess.with_split(raw("a", "b"), table))
