"""What the check says of one image."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from stages.common import checks

LIMIT = 10**6


def photograph(seed: int, size=(160, 120)) -> Image.Image:
    """A picture with large and small structures, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bits_between(first: bytes | Image.Image, second: bytes | Image.Image) -> int:
    """Hamming distance of the perceptual hashes."""
    hashes = [
        checks.inspect(image if isinstance(image, bytes) else encode(image), LIMIT)["perceptual"]
        for image in (first, second)
    ]
    assert all(len(text) == 16 for text in hashes)
    return (int(hashes[0], 16) ^ int(hashes[1], 16)).bit_count()


def test_everything_of_a_sound_image():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0], pixels[:2, :, 1], pixels[..., 2] = 200, 100, 7
    encoded = encode(Image.fromarray(pixels))
    found = checks.inspect(encoded, LIMIT)
    found.pop("perceptual")
    assert found == {
        "bytes": len(encoded),
        "content": hashlib.sha256(encoded).hexdigest(),
        "format": "PNG",
        "mode": "RGB",
        "width": 6,
        "height": 4,
        "frames": 1,
        "red": 100.0,
        "green": 50.0,
        "blue": 7.0,
    }


def test_sides_are_those_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = checks.inspect(encode(photograph(0), "JPEG", exif=exif), LIMIT)
    assert (found["width"], found["height"]) == (120, 160)


def test_a_bad_image_keeps_its_size_and_content():
    encoded = encode(photograph(0))[:200]
    found = checks.inspect(encoded, LIMIT)
    assert found.pop("detail")
    assert found == {
        "bytes": 200,
        "content": hashlib.sha256(encoded).hexdigest(),
        "problem": "truncated",
    }


def test_the_pixel_limit_is_passed_on():
    assert checks.inspect(encode(photograph(0)), 160 * 120 - 1)["problem"] == "too_many_pixels"
    assert "problem" not in checks.inspect(encode(photograph(0)), 160 * 120)


def test_means_of_a_large_picture_are_those_of_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    pixels[:300, :, 0] = 3
    found = checks.inspect(encode(Image.fromarray(pixels)), LIMIT)
    means = [found["red"], found["green"], found["blue"]]
    np.testing.assert_allclose(means, pixels.reshape(-1, 3).mean(axis=0), atol=0.3)


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image.resize((97, 71)),
        lambda image: image.resize((640, 480)),
        lambda image: image.point(lambda value: min(255, value + 12)),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: image.convert("L"),
        lambda image: encode(image, "JPEG", quality=30),
        lambda image: encode(image, "WEBP", quality=50),
    ],
)
def test_copies_that_look_alike_have_near_hashes(changed):
    # Of 64 bits; the distance between unrelated pictures is about 32.
    for seed in range(5):
        assert bits_between(photograph(seed), changed(photograph(seed))) <= 6


def test_other_pictures_have_far_hashes():
    distances = [bits_between(photograph(seed), photograph(seed + 1)) for seed in range(10)]
    assert min(distances) >= 16


def test_the_hash_is_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = photograph(0).transpose(Image.Transpose.ROTATE_180)
    assert bits_between(photograph(0), encode(upside_down, "PNG", exif=exif)) == 0
    assert bits_between(photograph(0), upside_down) > 10
