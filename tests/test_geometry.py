"""Pictures that are no squares, in the pipeline and by a model file; and parts of pictures."""

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps

from stages.common import backbones, geometry, models
from tests.resized_parts import random_parts, resized_by_pillow

# Red, green and blue thirds of a wide picture, under each other or side by side.
THIRDS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def thirds(width: int, height: int) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    parts = np.array_split(np.arange(max(width, height)), 3)
    for color, part in zip(THIRDS, parts, strict=True):
        if width > height:
            pixels[:, part] = color
        else:
            pixels[part] = color
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((300, 100), "squash", (60, 60)),
        ((300, 40), "squash", (60, 40)),
        ((300, 100), "crop", (60, 60)),
        ((300, 40), "crop", (40, 40)),
        ((300, 100), "pad", (60, 60)),
        ((30, 20), "squash", (30, 20)),
        ((30, 20), "crop", (20, 20)),
        ((30, 20), "pad", (30, 30)),
    ],
)
def test_sizes(size, resize, expected):
    assert geometry.shrink(Image.new("RGB", size), 60, resize).size == expected


def with_pillow_alone(picture, image_size: int, resize: str) -> Image.Image:
    """What `shrink` promises, in Pillow's own words."""
    bicubic = Image.Resampling.BICUBIC
    if resize == "crop":
        return ImageOps.fit(picture, (min(*picture.size, image_size),) * 2, bicubic)
    if resize == "pad":
        return ImageOps.pad(
            picture, (min(max(picture.size), image_size),) * 2, bicubic, color="black"
        )
    return picture.resize([min(side, image_size) for side in picture.size], bicubic)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(161, 90), (90, 161), (161, 40)])
@pytest.mark.parametrize("resize", geometry.RESIZE)
@pytest.mark.parametrize("library", ["installed", "absent"])
def test_pictures_are_shrunk_as_by_pillow(library, resize, size, mode, monkeypatch):
    if library == "absent":
        monkeypatch.setattr(geometry, "cykooz_resizer", None)
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    received = geometry.shrink(picture, 60, resize)
    expected = with_pillow_alone(picture, 60, resize)
    assert (received.mode, received.size) == (expected.mode, expected.size)
    differences = np.abs(np.asarray(received).astype(int) - np.asarray(expected).astype(int))
    assert differences.max() <= (1 if library == "installed" else 0)


@pytest.mark.parametrize("shape", [(90, 30), (30, 90)])
def test_what_is_seen_of_a_picture_in_three_colours(shape):
    picture = thirds(*shape)
    wide = shape[0] > shape[1]

    def middle_line(resize: str, place: int) -> list[int]:
        pixels = np.asarray(geometry.shrink(picture, 30, resize)).astype(int)
        return pixels[15, place].tolist() if wide else pixels[place, 15].tolist()

    assert [middle_line("squash", place) for place in (5, 15, 25)] == [list(c) for c in THIRDS]
    assert [middle_line("crop", place) for place in (2, 15, 27)] == [[0, 200, 0]] * 3
    assert [middle_line("pad", place) for place in (4, 15, 25)] == [list(c) for c in THIRDS]
    padded = np.asarray(geometry.shrink(picture, 30, "pad"))
    edge = padded[:9] if wide else padded[:, :9]
    assert not edge.any()


@pytest.mark.parametrize("resize", geometry.RESIZE)
def test_a_model_file_does_to_a_new_picture_what_the_pipeline_does(resize, tmp_path):
    """Up to the kind of interpolation: a smooth picture shows no difference of it."""
    rows, columns = np.mgrid[0:96, 0:48]
    smooth = np.stack([rows * 2, columns * 3, rows + columns], axis=-1).astype(np.uint8)
    models.save(
        models.with_any_size(backbones.build("tiny", None, 32), resize), tmp_path / "b.keras"
    )
    layer = keras.models.load_model(tmp_path / "b.keras", compile=False).get_layer("resize")
    assert geometry.of_layer(layer) == resize
    raw = np.asarray(layer(smooth[None].astype(np.float32)))[0]
    stored = np.asarray(geometry.shrink(Image.fromarray(smooth), 32, resize))
    inside = np.s_[2:-2, 10:-10]  # where the black begins, the two blur it differently
    np.testing.assert_allclose(raw[inside], stored[inside].astype(float), atol=4)
    if resize == "pad":
        assert not raw[:, :4].any()


@pytest.mark.parametrize("resize", geometry.RESIZE)
@pytest.mark.parametrize("size", [(9, 9), (24, 24), (40, 40), (9, 20), (20, 40)])
def test_what_runs_sees_pictures_as_the_model_file_does(size, resize):
    """Whether they grow, stay or shrink; one kernel may round otherwise than the other."""
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    layer = geometry.resizing_layer(24, resize)
    np.testing.assert_allclose(geometry.on_device(layer)(images), layer(images), atol=1e-3)


@pytest.mark.parametrize("size", [(9, 9), (40, 40), (9, 20), (20, 40), (1, 4)])
def test_a_part_is_resized_as_pillow_does_it(size):
    """Whether it grows or shrinks, or one side does the one and the other the other."""
    images, corners, extents = random_parts(size)
    cropped = geometry.cropped(images, 20, corners, extents)
    expected = resized_by_pillow(images, 20, corners, extents)
    np.testing.assert_allclose(cropped, expected, atol=5e-3)
