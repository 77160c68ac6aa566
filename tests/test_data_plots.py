"""Pictures of the data: of bounded size for any data, and they show what is there."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from stages.common import data_plots, plots


def has_color(path, color: str, beyond: int = 20) -> bool:
    """Whether a picture has more pixels of a colour than the given number."""
    wanted = tuple(bytes.fromhex(color[1:]))
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return bool((pixels == wanted).all(axis=2).sum() > beyond)


def texts(monkeypatch) -> list[str]:
    """All that is written into the figures from now on."""
    from matplotlib.text import Text

    found = []
    draw = Text.draw
    monkeypatch.setattr(
        Text, "draw", lambda self, r: (found.append(self.get_text()), draw(self, r))
    )
    return found


@pytest.fixture
def pixels() -> np.ndarray:
    return np.full((20, 30, 3), 90, np.uint8)


@pytest.mark.parametrize(("classes", "images"), [(2, 20), (1000, 5000)])
def test_any_data_makes_pictures_of_bounded_size(tmp_path, classes, images):
    random = np.random.default_rng(0)
    labels = [f"a long name of class {number % classes} $_{number}" for number in range(images)]
    labels = [label.rsplit(" ", 1)[0] + " $x_" for label in labels]
    assigned = [("train", "valid", "test")[number % 3] for number in range(images)]
    counts = Counter(zip(assigned, labels, strict=True))
    rows = [
        (name, label, counts[name, label])
        for label in dict.fromkeys(labels)
        for name in ("train", "valid", "test")
    ]
    data_plots.class_balance(tmp_path / "balance.png", rows)
    data_plots.sizes(tmp_path / "sizes.png", random.integers(1, 5000, (images, 2)))
    means = random.uniform(0, 255, (images, 3))
    data_plots.channels(tmp_path / "channels.png", means, labels, assigned)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert 300 < picture.width < 2200
            assert 200 < picture.height < 2200
        of_sizes = (plots.BLUE, plots.ORANGE, plots.GREEN)
        for color in of_sizes if path.stem == "sizes" else plots.SPLIT_COLORS.values():
            assert has_color(path, color), path


def test_the_same_data_is_the_same_bytes(tmp_path):
    for name in ("first.png", "second.png"):
        data_plots.sizes(tmp_path / name, np.array([[30, 20], [300, 200]]))
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_class_balance_shows_the_numbers_of_the_largest_and_smallest(tmp_path, monkeypatch):
    written = texts(monkeypatch)
    rows = [("train", f"class {number}", 1000 + number) for number in range(100)]
    data_plots.class_balance(tmp_path / "balance.png", rows)
    assert "Images of each class, the 20 largest and 20 smallest of 100" in written
    assert {"class 99", "1,099", "class 80", "class 19", "class 0", "1,000"} <= set(written)
    assert not {"class 79", "class 20"} & set(written)


def test_sizes_tell_the_spread(tmp_path, monkeypatch):
    written = texts(monkeypatch)
    data_plots.sizes(tmp_path / "sizes.png", np.array([[300, 200], [600, 200], [1200, 200]]))
    assert {"width: 300 to 1,200, median 600", "height: all 200"} <= set(written)
    assert "width / height: 1.5 to 6, median 3" in written


def test_sizes_of_large_pictures_are_written_in_full(tmp_path, monkeypatch):
    written = texts(monkeypatch)
    data_plots.sizes(tmp_path / "sizes.png", np.array([[12345, 10000], [12344, 10000]]))
    assert {"width: 12,344 to 12,345, median 12,344", "height: all 10,000"} <= set(written)
    assert not [text for text in written if "e+" in text]


def test_channels_of_grey_pictures_are_one_series(tmp_path, monkeypatch):
    written = texts(monkeypatch)
    labels, assigned = ["cat", "dog", "cat"], ["train", "valid", "test"]
    grey, colored = np.full((3, 3), 100.0), np.tile([10.0, 120.0, 240.0], (3, 1))
    data_plots.channels(tmp_path / "grey.png", grey, labels, assigned)
    assert "Brightness by class" in written
    assert "red" not in written
    data_plots.channels(tmp_path / "colored.png", colored, labels, assigned)
    assert {"red", "green", "blue", "Colour by class", "train (1 image)"} <= set(written)


def test_duplicates_are_shown_with_names_labels_and_splits(tmp_path, monkeypatch, pixels):
    written = texts(monkeypatch)
    exact = data_plots.DuplicateGroup(
        images=9,
        exact=True,
        labels=2,
        shown=[(pixels, "a.png", "cat", "train"), (pixels, "b.png", "dog", "train")],
    )
    alike = data_plots.DuplicateGroup(
        images=2, exact=False, labels=1, shown=[(pixels, "c$.png", "cat", "test")] * 2
    )
    path = tmp_path / "duplicates.png"
    data_plots.duplicates(path, [exact, alike], total=1234)
    assert {
        "Duplicates: each group stays in one split\n"
        "2 of 1,234 groups, those under several labels first",
        "9 copies of one file, 2 of them shown, under 2 labels",
        "2 images that look alike",
        "a.png\ncat · train",
        "b.png\ndog · train",
        "c$.png\ncat · test",
    } <= set(written)
    # Labels that contradict each other stand out.
    assert has_color(path, plots.ORANGE, beyond=0)
    data_plots.duplicates(path, [alike], total=3)
    assert not has_color(path, plots.ORANGE, beyond=0)
    assert "Duplicates: each group stays in one split\nthe 1 largest of 3 groups" in written


def test_no_duplicates_are_a_sentence(tmp_path, monkeypatch):
    written = texts(monkeypatch)
    data_plots.duplicates(tmp_path / "duplicates.png", [], total=0)
    assert "No image is a copy or a near duplicate of another." in written
    data_plots.duplicates(tmp_path / "duplicates.png", [], total=0, near_ones=False)
    assert "No image is a copy of another." in written
