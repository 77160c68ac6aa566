import numpy as np
from PIL import Image

from stages.common import plots


def test_image_grid_shows_every_picture_and_is_the_same_bytes_each_time(tmp_path):
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    tiles = [(np.full((20, 20, 3), color, np.uint8), "name") for color in colors]
    for name in ("first.png", "second.png"):
        plots.image_grid(tmp_path / name, tiles, columns=2, title="Title")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "first.png").convert("RGB"))
    for color in colors:
        assert (pixels == color).all(axis=2).sum() > 5_000


def test_class_balance_of_many_classes_stays_a_picture_of_bounded_size(tmp_path):
    few = [(split, label, 5) for label in "ab" for split in ("train", "valid", "test")]
    many = [("train", f"class {number}", number) for number in range(1000)]
    for name, rows in (("few.png", few), ("many.png", many)):
        plots.class_balance(tmp_path / name, rows)
        with Image.open(tmp_path / name) as picture:
            assert picture.height < 2200
            assert len(picture.getcolors(picture.width * picture.height)) > 3
