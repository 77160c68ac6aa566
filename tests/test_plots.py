import numpy as np
import pytest
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


def test_sections_have_their_tiles_and_a_colour_bar_within_the_picture(tmp_path):
    red, green = (200, 30, 30), (30, 200, 30)
    sections = [
        (f"Heading {number}", [(np.full((20, 20, 3), color, np.uint8), "two\nlines", plots.BLUE)])
        for number, color in enumerate((red, green))
    ]
    settings = {"columns": 3, "title": "Title"}
    plots.image_sections(tmp_path / "plain.png", sections, **settings)
    violet = (120, 20, 180)
    bar = (np.full((1, 9, 3), violet, np.uint8), "what it shows", "little", "much")
    plots.image_sections(tmp_path / "bar.png", sections, **settings, color_bar=bar)
    pixels = np.asarray(Image.open(tmp_path / "bar.png").convert("RGB")).astype(int)
    rows = []
    for color in (red, green):
        found = np.argwhere((pixels == color).all(axis=2))
        assert len(found) > 5_000
        rows.append(found[:, 0].mean())
    assert rows[0] < rows[1]
    with Image.open(tmp_path / "plain.png") as plain:
        assert len(pixels) == plain.height + 60
    bar_rows = np.argwhere((pixels == violet).all(axis=2))[:, 0]
    below = pixels[bar_rows.max() + 4 :]
    assert (below < 128).all(axis=2).any()  # the names of its two ends
    assert (below[-2:] == 255).all()  # which nothing cuts off


def test_captions_of_wide_letters_stay_within_their_tiles(tmp_path):
    tile = (np.full((20, 20, 3), 255, np.uint8), "W" * 24, plots.ORANGE)
    plots.image_grid(tmp_path / "grid.png", [tile] * 3, columns=3, title="")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    inked = (pixels < 250).any(axis=(0, 2))
    for tile_edge in (0, 175, 350, 524):
        assert not inked[max(0, tile_edge - 1) : tile_edge + 2].any()
    assert inked.mean() > 0.5


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
    tiles = [(np.zeros((20, 20, 3), np.uint8), r"$\nonsense{$")]
    plots.image_grid(tmp_path / "grid.png", tiles, columns=1, title="$ and {$")
    plots.sentence(tmp_path / "sentence.png", r"$\nonsense{$")
    assert (tmp_path / "sentence.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exactly ten", "exactly ten"),
        ("two\n  lines", "two lines"),
        ("a long name with an end", "a lon…n end"),
    ],
)
def test_names_become_one_short_line_with_the_middle_left_out(name, expected):
    assert plots.shorten(name, 11) == expected


def test_letters_that_the_usual_font_lacks_are_drawn_in_one_that_is_installed(
    tmp_path, monkeypatch, recwarn
):
    fraktur = "\N{MATHEMATICAL BOLD FRAKTUR CAPITAL A}"  # which STIX has, and comes with matplotlib
    tile = (np.zeros((20, 20, 3), np.uint8), fraktur)
    monkeypatch.setattr(plots, "FALLBACK_FONTS", ("No such font",))
    plots.image_grid(tmp_path / "box.png", [tile], columns=1, title="")
    assert "missing from font(s) DejaVu Sans" in str(recwarn.pop(UserWarning).message)
    recwarn.clear()
    monkeypatch.setattr(plots, "FALLBACK_FONTS", ("No such font", "STIXGeneral"))
    plots.image_grid(tmp_path / "letter.png", [tile], columns=1, title="")
    assert not [str(one.message) for one in recwarn]
    assert (tmp_path / "letter.png").read_bytes() != (tmp_path / "box.png").read_bytes()
