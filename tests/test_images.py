"""Real files of every kind that people have, through the one decoder."""

import functools
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from stages.common import geometry, images, tiff
from stages.common.run import UserError
from tests import ROOT

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


def png_file(width: int, height: int, depth: int, color_type: int, rows: bytes, *chunks) -> bytes:
    """A PNG file of given pixel rows (each with its filter byte), for kinds Pillow can't write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


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


def test_a_palette_with_a_degree_of_transparency_for_each_colour():
    palette = Image.new("P", (4, 2))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((0, 0), 1)
    pixels = decoded(encode(palette, "PNG", transparency=bytes([0, 128])))
    assert tuple(pixels[1, 1]) == (255, 255, 255)
    half = np.array(GREEN) * 128 / 255 + 127
    np.testing.assert_allclose(pixels[0, 0].astype(float), half, atol=1)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_transparency_in_other_formats(kind):
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[:16] = 0
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(encode(np.concatenate([FIELDS, alpha], axis=2), kind, **options))
    assert (pixels[:16] == 255).all()
    np.testing.assert_array_equal(pixels[16:], FIELDS[16:])


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


def test_sixteen_bits_with_the_higher_byte_first():
    values = np.array([[0, 257, 65535]], ">u2")
    grey = Image.frombytes("I;16B", (3, 1), values.tobytes())
    np.testing.assert_array_equal(decoded(encode(grey, "TIFF"))[0, :, 2], [0, 1, 255])


def test_sixteen_bits_of_each_colour():
    row = np.array([[0, 65535, 32896], [65535, 257 * 200, 0]], ">u2")
    encoded = png_file(2, 1, 16, 2, b"\0" + row.tobytes())
    np.testing.assert_array_equal(decoded(encoded)[0], [[0, 255, 128], [255, 200, 0]])


def test_sixteen_bits_of_each_colour_with_transparency():
    row = np.array([[65535, 0, 0, 65535], [0, 0, 0, 0]], ">u2")
    encoded = png_file(2, 1, 16, 6, b"\0" + row.tobytes())
    np.testing.assert_array_equal(decoded(encoded)[0], [[255, 0, 0], [255, 255, 255]])


def test_a_transparent_grey_of_sixteen_bits_becomes_white():
    row = np.array([0, 257], ">u2")
    transparent = (b"tRNS", struct.pack(">H", 0))
    encoded = png_file(2, 1, 16, 0, b"\0" + row.tobytes(), transparent)
    np.testing.assert_array_equal(decoded(encoded)[0, :, 0], [255, 1])


@pytest.mark.parametrize(
    ("bits", "row", "grey"),
    [
        (1, 0b01000000, [255, 255, 255, 255]),  # white is what is laid over white
        (2, 0b00011011, [0, 255, 170, 255]),
        (4, 0x1234, [255, 34, 51, 68]),
    ],
)
def test_a_transparent_grey_of_few_bits_becomes_white(bits, row, grey):
    transparent = (b"tRNS", struct.pack(">H", 0 if bits == 1 else 1))
    packed = row.to_bytes(bits * 4 // 8 or 1, "big")
    pixels = decoded(png_file(4, 1, bits, 0, b"\0" + packed, transparent))
    np.testing.assert_array_equal(pixels[0, :, 0], grey)


def test_a_transparent_colour_of_sixteen_bits_becomes_white():
    row = np.array([[257 * 9, 257 * 8, 0], [257 * 9, 0, 0]], ">u2")
    transparent = (b"tRNS", row[0].tobytes())
    encoded = png_file(2, 1, 16, 2, b"\0" + row.tobytes(), transparent)
    np.testing.assert_array_equal(decoded(encoded)[0], [[255, 255, 255], [9, 0, 0]])


def test_floating_point_pixels_are_refused_and_not_guessed():
    encoded = encode(Image.fromarray(np.array([[0.25, 1.0]], np.float32)), "TIFF")
    with pytest.raises(images.BadImage, match="store 8 or 16 bits") as caught:
        images.decode(encoded)
    assert caught.value.problem == "not_an_image"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind):
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    encoded = encode(Image.fromarray(bits).convert("1"), kind)
    np.testing.assert_array_equal(decoded(encoded)[..., 0], bits)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printers_colours_become_rgb(kind):
    encoded = encode(Image.new("CMYK", (8, 8), (255, 255, 0, 0)), kind)
    red, green, blue = decoded(encoded)[4, 4].astype(int)
    assert blue > 250
    assert max(red, green) < 5


def as_a_camera_stores(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What gives the picture when its orientation is undone."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: picture[:, ::-1].transpose(1, 0, 2),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: picture[::-1].transpose(1, 0, 2),
    }[orientation]
    return np.ascontiguousarray(stored)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encode(as_a_camera_stores(FIELDS, orientation), kind, exif=exif))
    assert pixels.shape == FIELDS.shape
    corners = np.ix_([4, 27], [6, 41])
    np.testing.assert_allclose(pixels[corners].astype(int), FIELDS[corners], atol=6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("damage", [b"", b"not TIFF at all", b"MM\0*\0\0\0\x08\xff\xff"])
def test_a_note_on_orientation_that_can_not_be_read_turns_nothing(damage):
    encoded = encode(FIELDS, "PNG", exif=b"Exif\0\0" + damage)
    np.testing.assert_array_equal(decoded(encoded), FIELDS)


def test_a_damaged_note_beside_the_orientation_does_no_harm():
    # A description that is a fraction (type 5), as some cameras write; then orientation 3.
    entries = struct.pack(">HHII", 270, 5, 2, 0) + struct.pack(">HHIHH", 274, 3, 1, 3, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(80)
    upside_down = np.ascontiguousarray(FIELDS[::-1, ::-1])
    np.testing.assert_array_equal(decoded(encode(upside_down, "PNG", exif=exif)), FIELDS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_of_an_animation_the_first_frame_is_taken(kind, options):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert tuple(decoded(encoded)[4, 4]) == RED
    assert images.read(encoded).frames == 3


def test_the_preview_in_a_photograph_is_no_animation():
    photo, preview = Image.fromarray(FIELDS), Image.new("RGB", (8, 8))
    found = images.read(encode(photo, "MPO", save_all=True, append_images=[preview]))
    assert (found.format, found.frames, found.picture.size) == ("MPO", 1, (48, 32))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {}),
        ("TIFF", "I;16", {}),
        ("BMP", "L", {}),
    ],
)
def test_the_kind_of_the_file_is_told(kind, mode, options):
    found = images.read(encode(Image.new(mode, (5, 4)), kind, **options))
    assert (found.format, found.mode, found.frames) == (kind, mode, 1)
    assert (found.picture.mode, found.picture.size) == ("RGB", (5, 4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_truncated_file_is_an_error_and_never_half_a_picture(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    encoded = encode(noise, kind)
    cut_off = encoded[: int(len(encoded) * part)]
    with pytest.raises(images.BadImage, match=rf"cut off.*{len(cut_off)} bytes") as caught:
        images.decode(cut_off)
    assert caught.value.problem == "truncated"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<html>404 not found</html>", r"\(26 bytes, which begin with b'<html>404"),
        (b"\x00" * 500, r"\(500 bytes"),
        (b"P6 1 1 255 abc", "the formats are JPEG, PNG, GIF, BMP, WEBP, TIFF"),
    ],
)
def test_a_file_that_is_no_image(content, words):
    with pytest.raises(images.BadImage, match=words) as caught:
        images.decode(content)
    assert caught.value.problem == "not_an_image"


@pytest.mark.parametrize(
    "content",
    [
        png_file(0, 5, 8, 2, b""),
        png_file(5, 0, 8, 2, b""),
        b"GIF89a" + struct.pack("<HHBBB", 0, 7, 0, 0, 0) + b";",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 3, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
)
def test_a_picture_without_pixels(content):
    with pytest.raises(images.BadImage, match=r"^[057]×[0357] pixels$") as caught:
        images.decode(content)
    assert caught.value.problem == "zero_pixels"


def test_the_pixel_limit_is_kept_before_anything_is_decoded():
    # The header promises 400 million pixels; decoding would find that there are none.
    bomb = png_file(20_000, 20_000, 8, 2, b"")
    for encoded, limit in (
        (bomb, 10**8),
        (bomb, images.MOST_PIXELS),
        (encode(FIELDS, "PNG"), 1535),
    ):
        with pytest.raises(images.BadImage, match=r"pixels") as caught:
            images.decode(encoded, limit)
        assert caught.value.problem == "too_many_pixels"
    assert images.decode(encode(FIELDS, "PNG"), 1536).size == (48, 32)


def test_pillow_has_no_lower_limit_of_its_own():
    # Otherwise an image could pass the check and fail when its pixels are needed.
    assert images.MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


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
    assert geometry.shrink(Image.new("RGB", size), 224, "squash").size == expected


def test_a_small_image_keeps_every_pixel():
    array = images.to_array(encode(FIELDS, "PNG"), 48, "squash")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, FIELDS)


def test_shrinking_averages_what_it_drops():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = images.to_array(encode(stripes, "PNG"), 16, "squash")
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


@dataclass(frozen=True)
class File:
    """The least that map_encoded takes."""

    name: str
    encoded: bytes


def area(encoded: bytes, factor: int) -> tuple[int, int]:
    """What a process does in a test: the picture's area times `factor`, and who did it."""
    picture = images.decode(encoded)
    return factor * picture.width * picture.height, os.getpid()


def end_the_process(encoded: bytes) -> None:
    os._exit(len(encoded))


def test_map_encoded_works_in_several_processes_and_keeps_the_order(monkeypatch):
    monkeypatch.setattr(images, "cores", lambda: 2)
    widths = range(1, 4 * images.CHUNK_IMAGES)
    files = [File(str(width), encode(Image.new("L", (width, 2)), "PNG")) for width in widths]
    files[70] = File("71", b"broken")
    results = list(images.map_encoded(functools.partial(area, factor=3), files))
    assert [file.name for file, _ in results] == [str(width) for width in widths]
    _, bad = results.pop(70)
    assert isinstance(bad, images.BadImage)
    assert (bad.problem, "broken" in bad.detail) == ("not_an_image", True)
    assert all(found == 6 * int(file.name) for file, (found, _) in results)
    processes = {process for _, (_, process) in results}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


def test_map_encoded_starts_no_process_for_a_few_images():
    files = [File("a", encode(FIELDS, "PNG")), File("b", b"")]
    (_, (found, process)), (_, bad) = images.map_encoded(functools.partial(area, factor=1), files)
    assert (found, process) == (1536, os.getpid())
    assert bad.problem == "not_an_image"
    assert list(images.map_encoded(functools.partial(area, factor=1), [])) == []


def test_a_killed_process_is_one_sentence(monkeypatch):
    monkeypatch.setattr(images, "cores", lambda: 2)
    files = [File(str(number), b"x") for number in range(2 * images.CHUNK_IMAGES)]
    with pytest.raises(UserError, match="was killed, most likely since the memory is used up"):
        list(images.map_encoded(end_the_process, files))


def wait(encoded: bytes) -> None:
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_processes_end_with_the_stage_that_is_told_to_end(number):
    """The signal comes to the stage alone, as `kill` sends it."""
    script = """if True:
        from stages.common import images
        from stages.common.run import run
        from tests.test_images import File, wait
        images.cores = lambda: 2
        files = [File(str(number), b"x") for number in range(200 * images.CHUNK_IMAGES)]
        run(lambda: list(images.map_encoded(wait, files)))
    """
    stage = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(started := psutil.Process(stage.pid).children()) < 3:  # one looks after the others
        time.sleep(0.05)
    stage.send_signal(number)
    assert "interrupted" in stage.communicate(timeout=60)[1]
    assert stage.returncode == 130
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


def test_chunks_are_bounded_by_images_and_by_bytes():
    small = [File("", b"x")] * (2 * images.CHUNK_IMAGES + 1)
    assert [len(chunk) for chunk in images._chunks(small)] == [64, 64, 1]
    large = [File("", bytes(images.CHUNK_BYTES // 2 + 1))] * 5
    assert [len(chunk) for chunk in images._chunks(large)] == [2, 2, 1]


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same():
    """Also where EXIF turns it, and never below what is wanted."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    for orientation in (None, exif):
        file = io.BytesIO()
        large.save(file, "JPEG", quality=95, **({"exif": orientation} if orientation else {}))
        encoded = file.getvalue()
        smaller = images.decode(encoded, wanted_side=224)
        whole = images.decode(encoded)
        assert min(smaller.size) >= images.DRAFT_GAP * 224
        assert smaller.width < whole.width
        expected = np.asarray(geometry.shrink(whole, 224, "squash"), np.float64)
        received = images.to_array(encoded, 224, "squash").astype(np.float64)
        assert received.shape == expected.shape
        assert np.abs(received - expected).mean() < 1  # of 255


def test_only_a_jpeg_much_larger_than_wanted_comes_smaller():
    picture = Image.new("RGB", (500, 375), "red")
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        picture.save(file, kind)
        assert images.decode(file.getvalue(), wanted_side=224).size == (500, 375)


def tiff_of(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_may_count_from_white(dtype, byteorder):
    values = np.array([[0, 128, 255]], np.uint16) * (257 if dtype is np.uint16 else 1)
    encoded = tiff_of(values.astype(dtype), photometric="miniswhite", byteorder=byteorder)
    assert np.asarray(images.decode(encoded))[0, :, 0].tolist() == [255, 127, 0]


def test_twelve_bits_are_scaled_as_sixteen_are():
    """By hand, since tifffile packs no bits without a further package."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (279, 3)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = b"\x80\x0f\xff" + b"\0"  # 0x800 and 0xfff
    header = struct.pack("<2sHI", b"II", 42, 12)
    encoded = header + pixels + struct.pack("<H", len(tags)) + fields + bytes(4)
    assert decoded(encoded)[0, :, 0].tolist() == [127, 255]


def test_planes_of_sixteen_bits_of_ink():
    inks = np.zeros((4, 8, 8), np.uint16)
    inks[0, :, 4:] = inks[3, 4:] = 65535  # cyan on the right, black below
    encoded = tiff_of(inks, photometric="separated", planarconfig="separate")
    white, cyan, black = [255, 255, 255], [0, 255, 255], [0, 0, 0]
    pixels = decoded(encoded)
    for (row, column), color in {(0, 0): white, (0, 7): cyan, (7, 0): black, (7, 7): black}.items():
        assert pixels[row, column].tolist() == color


def test_planes_of_sixteen_bits_that_are_too_many():
    """Four planes are more bytes than so many pixels in RGB."""
    encoded = tiff_of(
        np.zeros((4, 24, 40), np.uint16), photometric="separated", planarconfig="separate"
    )
    assert images.read(encoded, 24 * 40 * 4 // 3).picture.size == (40, 24)
    for limit in (24 * 40, 24 * 40 - 1):
        with pytest.raises(images.BadImage) as caught:
            images.read(encoded, limit)
        assert caught.value.problem == "too_many_pixels"


@pytest.mark.parametrize("value", [-1, 65536])
def test_pixels_of_32_bits_have_no_known_range(value):
    encoded = tiff_of(np.array([[0, value]], np.int32), photometric="minisblack")
    with pytest.raises(images.BadImage, match="store 8 or 16 bits") as caught:
        images.decode(encoded)
    assert caught.value.problem == "not_an_image"


def test_grey_is_one_channel_of_the_same_picture():
    grey = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)
    pixels = images.to_array(encode(Image.fromarray(grey), "PNG"), 224, "squash", channels=1)
    np.testing.assert_array_equal(pixels, grey[..., np.newaxis])
    coloured = images.to_array(encode(Image.fromarray(FIELDS), "PNG"), 16, "pad", channels=1)
    assert coloured.shape == (16, 16, 1)
    assert not coloured[:2].any()  # FIELDS is wide: black above it


BANDS = np.random.default_rng(0).integers(0, 256, (24, 40, 5), dtype=np.uint8)


def test_pages_of_a_tiff_file_that_go_in_circles_end():
    encoded = bytearray(
        tiff_of(BANDS, photometric="minisblack", planarconfig="contig", metadata=None)
    )
    (first,) = struct.unpack_from("<I", encoded, 4)
    (tags,) = struct.unpack_from("<H", encoded, first)
    struct.pack_into("<I", encoded, first + 2 + 12 * tags, len(encoded))  # where the next one is
    encoded += struct.pack("<HI", 0, len(encoded))  # without tags, and itself the next one
    np.testing.assert_array_equal(images.to_array(bytes(encoded), 40, "squash", 5), BANDS)


@pytest.mark.parametrize("beginning", [b"II*\0", b"MM\0*\0\0", b"II+\0\x08\0\0\0\x10\0"])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_tiff_file_that_ends_within_its_header(beginning, channels):
    with pytest.raises(images.BadImage) as caught:
        images.to_array(beginning, 40, "squash", channels)
    assert caught.value.problem in ("truncated", "not_an_image")


@pytest.mark.parametrize(
    "encoded",
    [
        tiff_of(BANDS, photometric="minisblack", planarconfig="contig"),
        tiff_of(np.moveaxis(BANDS, 2, 0), photometric="minisblack", planarconfig="separate"),
        tiff_of(np.moveaxis(BANDS, 2, 0), photometric="minisblack"),  # a page a channel
        tiff_of(BANDS.astype(np.uint16) * 257, photometric="minisblack", planarconfig="contig"),
        tiff_of(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib"),
    ],
    ids=["samples", "planes", "pages", "16 bits", "compressed"],
)
def test_all_channels_of_a_tiff_file_are_kept(encoded):
    np.testing.assert_array_equal(images.to_array(encoded, 224, "squash", channels=5), BANDS)
    shrunk = images.to_array(encoded, 20, "crop", channels=5)
    assert shrunk.shape == (20, 20, 5)
    with pytest.raises(images.BadImage, match=r"has 5 channels, preprocess\.channels asks for 4"):
        images.to_array(encoded, 224, "squash", channels=4)


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_channels_are_turned_upright(channels, orientation):
    values = BANDS[..., :channels]
    encoded = tiff_of(
        as_a_camera_stores(values, orientation),
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(274, "H", 1, orientation, True)],
    )
    np.testing.assert_array_equal(images.to_array(encoded, 224, "squash", channels), values)
    # What the inventory has of it: width and height, as it is stored in `preprocess`.
    assert images.read(encoded).picture.size == (values.shape[1], values.shape[0])


def test_many_channels_are_seen_by_the_first_three():
    encoded = tiff_of(BANDS, photometric="minisblack", planarconfig="contig")
    found = images.read(encoded)
    assert (found.format, found.mode, found.frames) == ("TIFF", "5 channels", 1)
    np.testing.assert_array_equal(np.asarray(found.picture), BANDS[..., :3])
    with pytest.raises(images.BadImage):
        images.read(encoded[: len(encoded) // 2])


def test_many_channels_count_for_the_pixel_limit():
    """As many bytes as a picture in RGB: five planes of 24 by 40 are 1,600 of its pixels."""
    encoded = tiff_of(BANDS, photometric="minisblack", planarconfig="contig")
    assert images.read(encoded, pixel_limit=1600).mode == "5 channels"
    with pytest.raises(images.BadImage, match="40×24 pixels of 5 channels") as caught:
        images.read(encoded, pixel_limit=1599)
    assert caught.value.problem == "too_many_pixels"


def test_damaged_compression_of_many_channels_is_a_bad_image():
    encoded = tiff_of(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib")
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        begin = file.pages[0].dataoffsets[0]
    damaged = encoded[:begin] + b"\xff" * 8 + encoded[begin + 8 :]
    with pytest.raises(images.BadImage) as caught:
        images.read(damaged)
    assert caught.value.problem == "truncated"
    with pytest.raises(images.BadImage, match="not a TIFF file that can be decoded"):
        images.to_array(damaged, 224, "squash", channels=5)


def test_a_damaged_tag_of_many_pages_is_a_bad_image():
    encoded = bytearray(tiff_of(np.moveaxis(BANDS, 2, 0).copy(), photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(bytes(encoded))) as file:
        place = file.pages[0].tags["BitsPerSample"].valueoffset
    encoded[place] = 0
    with pytest.raises(images.BadImage) as caught:
        images.read(bytes(encoded))
    assert caught.value.problem == "truncated"
    with pytest.raises(images.BadImage, match="not a TIFF file that can be decoded"):
        images.to_array(bytes(encoded), 224, "squash", channels=5)


@pytest.mark.parametrize("axes", ["YXC", "YXS", "CYX", "YCX"])
def test_channels_are_found_by_the_axes_that_a_file_names(axes):
    places = [axes.index(axis) for axis in ("Y", "X")]
    values = np.moveaxis(BANDS, [0, 1], places).copy()
    planes = "contig" if axes == "YXS" else None
    encoded = tiff_of(
        values, photometric="minisblack", planarconfig=planes, metadata={"axes": axes}
    )
    np.testing.assert_array_equal(tiff.read(encoded, images.MOST_PIXELS), BANDS)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_planes_of_sixteen_bits_are_read_as_what_they_are(channels, byteorder):
    values = BANDS[..., :channels].copy()
    values[..., 3:] = 255  # opaque
    planes = np.moveaxis(values.astype(np.uint16) * 257, 2, 0)
    options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    encoded = tiff_of(
        planes, photometric="rgb", planarconfig="separate", byteorder=byteorder, **options
    )
    np.testing.assert_array_equal(decoded(encoded), values[..., :3])
    turned = tiff_of(
        planes,
        photometric="rgb",
        planarconfig="separate",
        extratags=[(274, "H", 1, 6, True)],  # a quarter turn
        **options,
    )
    np.testing.assert_array_equal(decoded(turned), np.rot90(values[..., :3], -1))


def test_sound_channels_of_a_kind_that_is_not_read_are_not_called_damaged():
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    floats = tiff_of(BANDS.astype(np.float32), **options)
    with pytest.raises(images.BadImage, match=r"of 8 or 16 bits, received float32") as caught:
        images.read(floats)
    assert caught.value.problem == "not_an_image"
    encoded = bytearray(tiff_of(BANDS, **options))
    with tifffile.TiffFile(io.BytesIO(bytes(encoded))) as file:
        place = file.pages[0].tags["Compression"].valueoffset
    encoded[place : place + 2] = (5).to_bytes(2, "little")  # LZW
    with pytest.raises(images.BadImage, match=r"save it .* or install imagecodecs") as caught:
        images.read(bytes(encoded))
    assert caught.value.problem == "not_an_image"


def test_a_long_note_in_a_png_file_is_no_damage():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("history", "cut\n" * 2**19, zip=True)
    encoded = encode(Image.fromarray(FIELDS), "PNG", pnginfo=notes)
    np.testing.assert_array_equal(decoded(encoded), FIELDS)


def test_other_files_have_no_such_channels():
    with pytest.raises(images.BadImage, match="5 channels come from TIFF: not a TIFF file"):
        images.to_array(encode(Image.fromarray(FIELDS), "PNG"), 224, "squash", channels=5)
    floats = tiff_of(BANDS.astype(np.float32), photometric="minisblack", planarconfig="contig")
    with pytest.raises(images.BadImage, match=r"expected channels of 8 or 16 bits.*float32"):
        images.to_array(floats, 224, "squash", channels=5)
