"""Which images are stored, and in which split."""

import io

import numpy as np
import pytest
from PIL import Image

from stages import preprocess
from stages.common import geometry, images
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
    assert [(one.image.id, one.split) for one in pairs] == [
        ("b", "test"),
        ("c", "train"),
        ("e", "valid"),
    ]


@pytest.mark.parametrize("table", [rows(b="test", a="train"), rows(a="test", z="train")])
def test_a_table_of_other_images_or_in_another_order_is_an_error(table):
    with pytest.raises(UserError, match=r"data/splits.csv.*received [az],.*dvc repro split"):
        list(preprocess.with_split(raw("a", "b"), table))


def placed(count: int) -> list[preprocess.Placed]:
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        file = io.BytesIO()
        pixels = random.integers(0, 256, (12, 9 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        image = RawImage(str(number), "train", file.getvalue(), 0, {"name": f"cat/{number}.png"})
        found.append(preprocess.Placed(image, "train"))
    return found


AS_THEY_ARE = geometry.PreprocessParams(image_size=12, resize="squash", channels=3)


@pytest.mark.parametrize(("small_bytes", "by"), [(0, "parallel_map"), (10**6, "map_encoded")])
def test_small_and_large_images_come_in_order_with_their_pixels(monkeypatch, small_bytes, by):
    monkeypatch.setattr(preprocess, "SMALL_BYTES", small_bytes)
    called = []

    def counted(name, function):
        def count(*arguments):
            called.append(name)
            return function(*arguments)

        return count

    for name in ("parallel_map", "map_encoded"):
        monkeypatch.setattr(images, name, counted(name, getattr(images, name)))
    given = placed(150)  # more than one chunk: processes are started
    found = list(preprocess.decoded(given, AS_THEY_ARE))
    assert called == [by]
    assert [one for one, _ in found] == given
    for one, pixels in found:
        np.testing.assert_array_equal(pixels, Image.open(io.BytesIO(one.encoded)))


@pytest.mark.parametrize("small_bytes", [0, 10**6])
def test_all_images_that_cannot_be_read_are_named(monkeypatch, small_bytes):
    monkeypatch.setattr(preprocess, "SMALL_BYTES", small_bytes)
    good, other = placed(2)
    bad = preprocess.Placed(
        RawImage("7", "train", good.encoded[:60], 0, {"name": "cat/7.png"}), "train"
    )
    worse = preprocess.Placed(
        RawImage("8", "train", good.encoded[:60], 0, {"name": "cat/8.png"}), "train"
    )
    came = []
    pairs = preprocess.decoded([good, bad, other, worse], AS_THEY_ARE)
    with pytest.raises(UserError, match=r"2 images .*mend or remove them:\n.*7\.png.*\n.*8\.png"):
        came.extend(one for one, _ in pairs)
    assert came == [good, other]
