"""Real files of every kind that people have, through the one decoder."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from stages.common import images

# Four fields of plain colour, so that orientation shows and JPEG does little harm.
RED, GREEN, BLUE, YELLOW = (200, 40, 30), (30, 180, 60), (40, 50, 210), (220, 210, 50)
FIELDS = np.kron(
    np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8), np.ones((16, 24, 1), np.uint8)
)  # (32, 48, 3)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(encoded: bytes) -> np.ndarray:
    image = images.decode(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("JPEG", 6), ("PNG", 0), ("GIF", 0), ("BMP", 0), ("WEBP", 6), ("TIFF", 0)],
)
def test_every_format_gives_its_pixels(kind, tolerance):
    pixels = decoded(encode(FIELDS, kind))
    # Away from the borders of the fields, where a lossy format blurs colours.
    inside = np.ix_([4, 27], [6, 41])
    np.testing.assert_allclose(pixels[inside].astype(int), FIELDS[inside], atol=tolerance)
    assert pixels.shape == FIELDS.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_grey_picture_has_three_equal_channels(kind):
    grey = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)
    pixels = decoded(encode(grey, kind))
    assert pixels.shape == (16, 32, 3)
    # WebP stores colour differences, which it rounds.
    assert np.ptp(pixels.astype(int), axis=2).max() <= (1 if kind == "WEBP" else 0)
    np.testing.assert_allclose(pixels[..., 0].astype(int), grey, atol=4)


def test_a_palette_is_resolved():
    palette = Image.fromarray(FIELDS).quantize(4)
    assert palette.mode == "P"
    np.testing.assert_array_equal(decoded(encode(palette, "PNG")), FIELDS)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_becomes_white(kind):
    palette = Image.fromarray(FIELDS).quantize(4)
    expected = FIELDS.copy()
    expected[:16, :24] = 255
    encoded = encode(palette, kind, transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(decoded(encoded), expected)


def test_transparency_is_laid_over_white():
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[:16], alpha[16:, :24] = 0, 128
    pixels = decoded(encode(np.concatenate([FIELDS, alpha], axis=2), "PNG"))
    assert (pixels[:16] == 255).all()
    half = np.array(BLUE) * 128 / 255 + 127
    np.testing.assert_allclose(pixels[20, 10].astype(float), half, atol=1)
    assert tuple(pixels[20, 40]) == YELLOW


def test_grey_with_transparency_is_laid_over_white():
    values = np.zeros((8, 8, 2), np.uint8)
    values[:, 4:, 1] = 255  # black, its left half transparent
    pixels = decoded(encode(Image.fromarray(values, "LA"), "PNG"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 0).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind):
    grey = np.array([[0, 256, 257, 32768, 65534, 65535]], np.uint16)
    pixels = decoded(encode(grey, kind))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 127, 254, 255])


def test_one_bit_is_black_and_white():
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    encoded = encode(Image.fromarray(bits).convert("1"), "PNG")
    np.testing.assert_array_equal(decoded(encoded)[..., 0], bits)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printers_colours_become_rgb(kind):
    encoded = encode(Image.new("CMYK", (8, 8), (255, 255, 0, 0)), kind)
    red, green, blue = decoded(encoded)[4, 4].astype(int)
    assert blue > 250
    assert max(red, green) < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_upright(kind, orientation):
    # What a camera stores so that undoing the EXIF orientation gives FIELDS.
    stored = {
        1: FIELDS,
        2: FIELDS[:, ::-1],
        3: FIELDS[::-1, ::-1],
        4: FIELDS[::-1],
        5: FIELDS.transpose(1, 0, 2),
        6: FIELDS[:, ::-1].transpose(1, 0, 2),
        7: FIELDS[::-1, ::-1].transpose(1, 0, 2),
        8: FIELDS[::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encode(np.ascontiguousarray(stored), kind, exif=exif))
    assert pixels.shape == FIELDS.shape
    corners = np.ix_([4, 27], [6, 41])
    np.testing.assert_allclose(pixels[corners].astype(int), FIELDS[corners], atol=6)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(decoded(encoded)[4, 4]) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_truncated_file_is_an_error_and_never_half_a_picture(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    encoded = encode(noise, kind)
    with pytest.raises(ValueError, match=r"\w"):
        images.decode(encoded[: int(len(encoded) * part)])


@pytest.mark.parametrize("content", [b"", b"A text, saved as cat.jpg.\n", b"\x00" * 500])
def test_a_file_that_is_no_image(content):
    with pytest.raises(ValueError, match=rf"not an image .*\({len(content)} bytes\)"):
        images.decode(content)


def test_a_decompression_bomb_is_an_error(monkeypatch):
    # The real limit takes a picture of 179 million pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="1536 pixels"):
        images.decode(encode(FIELDS, "PNG"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 300), (224, 224)),
        ((640, 480), (224, 224)),
        ((640, 100), (224, 100)),
        ((100, 640), (100, 224)),
        ((224, 224), (224, 224)),
        ((32, 32), (32, 32)),
        ((1, 1000), (1, 224)),
    ],
)
def test_only_longer_sides_are_shrunk(size, expected):
    assert images.shrink(Image.new("RGB", size), 224).size == expected


def test_a_small_image_keeps_every_pixel():
    array = images.to_array(encode(FIELDS, "PNG"), 48)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, FIELDS)


def test_shrinking_averages_what_it_drops():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = images.to_array(encode(stripes, "PNG"), 16)
    assert shrunk.shape == (16, 16, 3)
    # Without antialiasing the stripes would come out black or white.
    assert abs(shrunk[:, 2:-2].astype(int) - 128).max() < 20


def test_parallel_map_keeps_the_order():
    barrier = threading.Event()

    def slow_first(number: int) -> int:
        # The first item can only end after a later one has begun, save on one core.
        if number == 0:
            barrier.wait(0.2)
        barrier.set()
        return number**2

    assert list(images.parallel_map(slow_first, range(200))) == [n**2 for n in range(200)]
    assert list(images.parallel_map(slow_first, [])) == []


def test_parallel_map_reads_only_so_far_ahead():
    taken = 0

    def source():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = images.parallel_map(abs, source(), ahead=8)
    for received, _ in enumerate(results, start=1):
        assert taken <= received + 8
        if received == 100:
            break
    results.close()
    assert taken <= 108


def test_parallel_map_passes_on_the_error_of_an_item():
    results = images.parallel_map(lambda number: 12 // number, [3, 2, 0, 1])
    assert [next(results), next(results)] == [4, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_parallel_map_passes_on_the_error_of_the_source():
    def source():
        yield 1
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        list(images.parallel_map(abs, source()))
