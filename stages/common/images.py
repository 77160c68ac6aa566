"""Decodes image files, with Pillow, on all cores: to RGB, to grey, or to the channels of a TIFF."""

import io
import itertools
import math
import multiprocessing
import signal
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from stages.common import geometry, tiff
from stages.common.run import UserError, cores

# Only these are tried: other plugins of Pillow start programs (EPS) or are seldom met.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
MOST_PIXELS = 178_956_970  # Pillow's own limit, above which it takes a file for an attack
MOST_OF_16_BITS = 65535
PNG_BITS = 24  # place of the byte that says how many bits a channel has; its header comes first
OF_16_BITS = ";16"  # ends the mode of several channels of so many bits
# Tags of TIFF 6.0, and values of them.
TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 262, 0
TIFF_BITS, TIFF_COMPRESSION, TIFF_UNCOMPRESSED = 258, 259, 1
TIFF_PLANES, TIFF_PLANE_BY_PLANE = 284, 2
# Pillow by itself takes a PNG whose text or color profile has more than a mebibyte for an attack.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Where Pillow finds an orientation, TIFF's tags aside.
METADATA = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
CHUNK_IMAGES = 64
CHUNK_BYTES = 2**20
# A JPEG may be decoded at a half, a quarter or an eighth, where at least so many times the pixels
# that are wanted are left for the resize behind it: Pillow's own thumbnails leave twice as many.
DRAFT_GAP = 1.5
# What Pillow's plugins raise on bytes that they can't make sense of, found by damaging real files.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, struct.error)

Item = TypeVar("Item")
Result = TypeVar("Result")


class BadImage(ValueError):
    """An image that can't be used: the code of the problem, as in inventory.PROBLEMS, and words."""

    def __init__(self, problem: str, detail: str):
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class Decoded:
    """A picture, and what its file says of itself."""

    picture: Image.Image  # upright, RGB
    format: str  # as Pillow names it: JPEG, PNG, …
    mode: str  # of the pixels as stored, as Pillow has it: L, RGB, P, I;16, …; or `5 channels`
    frames: int  # above 1: an animation or several pages, of which the picture is the first


def read(encoded: bytes, pixel_limit: int = MOST_PIXELS, wanted_side: int | None = None) -> Decoded:
    """An encoded image as an upright RGB picture.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency is laid over
    white; of an animation the first frame is taken, of a TIFF file that Pillow does not open the
    first three channels.

    Args:
        encoded: an image file.
        pixel_limit: most pixels, width × height.
        wanted_side: pixels to which sides will be shrunk; a much larger JPEG then comes smaller,
            since its decoder leaves out what nobody sees. None: as large as it is.

    Raises:
        BadImage: not_an_image, truncated (cut off or damaged), zero_pixels, or too_many_pixels:
            more than `pixel_limit`, which is read from the header before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            file_format, mode = image.format, _mode(image, encoded)
            _check_size(image.size, pixel_limit)
            # A photograph's second picture (MPO) is a preview or a depth map, and no animation.
            frames = 1 if file_format == "MPO" else getattr(image, "n_frames", 1)
            least = math.inf if wanted_side is None else math.ceil(DRAFT_GAP * wanted_side)
            if max(image.size) > least:
                image.draft(None, (least, least))  # JPEG's alone
            if _pillow_misreads(image):
                values = _tiff_values(encoded, pixel_limit)
                # Four channels alone would be taken for RGB and transparency.
                picture = Image.fromarray(values, "CMYK" if image.mode == "CMYK" else None)
                return Decoded(_to_rgb(picture), file_format, mode, frames)
            image.load()
            if file_format == "PNG":
                _fit_transparent_colour(image, bits=encoded[PNG_BITS])
            _turn_upright(image)
            return Decoded(_to_rgb(image), file_format, mode, frames)
    except BadImage:
        raise
    except UnidentifiedImageError:
        if many := _of_many_channels(encoded, pixel_limit):
            return many
        raise _unidentified(encoded) from None
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", str(error)) from None
    except _DECODER_ERRORS as error:
        detail = f"cut off or damaged, of {len(encoded)} bytes: {error}"
        raise BadImage("truncated", detail) from None


def _mode(image: Image.Image, encoded: bytes) -> str:
    """Pillow's name of what is stored; for several channels of 16 bits it has none, and `;16`."""
    if image.format == "PNG":
        bits = encoded[PNG_BITS]
    else:
        bits = max(getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,)))
    return image.mode + OF_16_BITS * (bits == 16 and len(image.getbands()) > 1)


def _pillow_misreads(image: Image.Image) -> bool:
    """Whether it is a TIFF file of uncompressed planes of 16 bits, which Pillow 13 takes for 8."""
    tags = getattr(image, "tag_v2", {})
    return (
        tags.get(TIFF_PLANES) == TIFF_PLANE_BY_PLANE
        and tags.get(TIFF_COMPRESSION, TIFF_UNCOMPRESSED) == TIFF_UNCOMPRESSED
        and max(tags.get(TIFF_BITS, (1,))) > 8
        and len(image.getbands()) > 1
    )


def decode(
    encoded: bytes, pixel_limit: int = MOST_PIXELS, wanted_side: int | None = None
) -> Image.Image:
    """The picture of `read` alone."""
    return read(encoded, pixel_limit, wanted_side).picture


def _tiff_values(encoded: bytes, pixel_limit: int) -> np.ndarray:
    """`tiff.read`, as uint8 (height, width, channels).

    Raises:
        BadImage: too_many_pixels; not_an_image where it is sound, but of no kind that is read.
        ValueError: it can't be decoded.
    """
    try:
        return tiff.read(encoded, pixel_limit)
    except tiff.TooManyPixels as error:
        raise BadImage("too_many_pixels", str(error)) from None
    except tiff.Unsupported as error:
        raise BadImage("not_an_image", str(error)) from None


def _of_many_channels(encoded: bytes, pixel_limit: int) -> Decoded | None:
    """A TIFF file that Pillow does not know, by its first three channels; None: no such file.

    Raises:
        BadImage: as `_tiff_values`.
    """
    if encoded[:4] not in tiff.BEGINNINGS:
        return None
    try:
        values = _tiff_values(encoded, pixel_limit)
    except BadImage:
        raise
    except ValueError:
        return None
    channels = values.shape[2]
    shown = np.ascontiguousarray(geometry.shown(values))
    mode = f"{channels} channels" + OF_16_BITS * (tiff.bits(encoded) == 16)
    return Decoded(Image.fromarray(shown), "TIFF", mode, 1)


def _check_size(size: tuple[int, int], pixel_limit: int) -> None:
    width, height = size
    if width * height == 0:
        raise BadImage("zero_pixels", f"{width}×{height} pixels")
    if width * height > pixel_limit:
        detail = f"{width}×{height} pixels are more than the limit of {pixel_limit}"
        raise BadImage("too_many_pixels", detail)


def _unidentified(encoded: bytes) -> BadImage:
    """Why no plugin took the bytes, judged by their beginning."""
    if not encoded:
        return BadImage("not_an_image", "not an image that can be decoded: the file is empty")
    Image.init()
    begins_as = [name for name in FORMATS if Image.OPEN[name][1](encoded[:16]) is True]
    if not begins_as:
        return BadImage(
            "not_an_image",
            f"not an image that can be decoded ({len(encoded)} bytes, which begin with "
            f"{encoded[:12]!r}; the formats are {', '.join(FORMATS)})",
        )
    # Pillow does not tell a header without pixels from a damaged one.
    places = {"PNG": ("!16x2I", 24), "GIF": ("<6x2H", 10), "BMP": ("<18x2i", 26)}
    layout, end = places.get(begins_as[0], ("", 0))
    if end and len(encoded) >= end:
        width, height = struct.unpack(layout, encoded[:end])
        if width * height == 0:
            return BadImage("zero_pixels", f"{width}×{height} pixels")
    return BadImage(
        "truncated",
        f"begins as {begins_as[0]}, but its header is cut off or damaged ({len(encoded)} bytes)",
    )


def _fit_transparent_colour(image: Image.Image, bits: int) -> None:
    """Brings a transparent colour to the 8 bits of the pixels; Pillow leaves it as it is stored.

    Of 16 bits it keeps the upper 8, so that colours that differ in the others are transparent too.
    """
    colour = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(colour, tuple) and bits == 16:
        image.info["transparency"] = tuple(channel >> 8 for channel in colour)


def _turn_upright(image: Image.Image) -> None:
    """Applies the EXIF orientation in place; where EXIF can't be read, the picture stays."""
    if not (METADATA & image.info.keys() or hasattr(image, "tag_v2")):
        return  # asking takes a fifth of the time of a picture of 32 pixels
    try:
        image.getexif()  # keeps what it read, so that the bytes can go:
        image.info.pop("exif", None)  # writing damaged ones anew is where Pillow fails
        ImageOps.exif_transpose(image, in_place=True)
    except _DECODER_ERRORS:
        # The pixels are sound, and a note that nobody can read has turned no other viewer either.
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage(
            "not_an_image", "floating-point pixels have no known range; store 8 or 16 bits"
        )
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > MOST_OF_16_BITS:
            raise BadImage(
                "not_an_image",
                f"numbers from {values.min()} to {values.max()} have no known range; store 8 or 16 "
                "bits without a sign",
            )
        bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))[0]
        if bits < 16:  # Pillow leaves 12 bits as they are
            values = values.astype(np.int64) * MOST_OF_16_BITS // (2**bits - 1)
        grey = (values // 257).astype(np.uint8)
        # Pillow turns pictures that count from white to black for 8 bits only.
        if getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
            grey = 255 - grey
        grey[values == image.info.get("transparency")] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_array(
    encoded: bytes, image_size: int, resize: str, channels: int = geometry.RGB
) -> np.ndarray:
    """Encoded bytes to (height, width, channels), uint8, no side above `image_size`.

    Args:
        encoded: an image file.
        image_size: in pixels.
        resize: see geometry.shrink.
        channels: 3: RGB; 1: grey, the luma of RGB (ITU-R 601); else those of a TIFF file, which
            must have as many.

    Raises:
        BadImage: what `read` raises; not_an_image where the file has other channels.
    """
    if channels == geometry.RGB:
        picture = decode(encoded, wanted_side=image_size)
        return np.asarray(geometry.shrink(picture, image_size, resize))
    if channels == geometry.GREY:
        picture = decode(encoded, wanted_side=image_size)
        grey = geometry.shrink(picture.convert("L"), image_size, resize)
        return np.asarray(grey)[..., np.newaxis]
    try:
        values = tiff.read(encoded, MOST_PIXELS)
    except ValueError as error:
        raise BadImage("not_an_image", f"{channels} channels come from TIFF: {error}") from None
    if values.shape[2] != channels:
        raise BadImage(
            "not_an_image",
            f"has {values.shape[2]} channels, preprocess.channels asks for {channels}",
        )
    bands = [
        geometry.shrink(Image.fromarray(np.ascontiguousarray(band)), image_size, resize)
        for band in np.moveaxis(values, 2, 0)
    ]
    return np.stack(bands, axis=-1)


class Encoded(Protocol):
    """Whatever carries the bytes of an image file."""

    encoded: bytes


EncodedItem = TypeVar("EncodedItem", bound=Encoded)


def map_encoded(
    function: Callable[[bytes], Result], items: Iterable[EncodedItem]
) -> Iterator[tuple[EncodedItem, Result | BadImage]]:
    """Pairs every item with `function(item.encoded)`, in order, in as many processes as cores.

    Where the function raises BadImage, that is the item's result, so that the caller can name it.

    Processes, since Python itself takes most of the time that a small image needs, and threads
    share one Python; in chunks, since a message costs as much as a small image. Memory is bounded
    by a few chunks a core, of 64 images or a mebibyte each.

    Args:
        function: of a module, or a functools.partial of one, so that a process can import it.

    Raises:
        UserError: a process was killed.
    """
    chunks = _chunks(items)
    first = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(first, chunks)
    processes = cores()
    if len(first) < 2 or processes == 1:  # starting processes would take longer than the work
        for chunk in chunks:
            yield from zip(chunk, _run_chunk(function, _bytes_of(chunk)), strict=True)
        return
    # Not forked: a fork of a process in which TensorFlow's threads run can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker) as pool:

        def submit(chunk: list[EncodedItem]) -> Future:
            return pool.submit(_run_chunk, function, _bytes_of(chunk))

        try:
            for chunk, results in _in_order(submit, chunks, ahead=3 * processes):
                yield from zip(chunk, results, strict=True)
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes images was killed, most likely since the memory is used "
                "up; run the same command again on a machine with more memory"
            ) from None


def _bytes_of(chunk: Iterable[EncodedItem]) -> list[bytes]:
    return [item.encoded for item in chunk]


def _run_chunk(function: Callable[[bytes], Result], chunk: list[bytes]) -> list[Result | BadImage]:
    def result_or_problem(encoded: bytes) -> Result | BadImage:
        try:
            return function(encoded)
        except BadImage as problem:
            return problem

    return [result_or_problem(encoded) for encoded in chunk]


def _start_worker() -> None:
    """Leaves Ctrl-C to the main process, and Pillow's remarks on metadata unsaid."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")


def _chunks(items: Iterable[EncodedItem]) -> Iterator[list[EncodedItem]]:
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        size += len(item.encoded)
        if len(chunk) == CHUNK_IMAGES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int = 64,
    threads: int | None = None,
) -> Iterator[Result]:
    """`map` on threads, as many as cores, in order, with at most `ahead` results in memory.

    For what waits (for a disk, a network) or leaves Python for long, as large images do.
    """
    with ThreadPoolExecutor(threads or cores()) as pool:
        for _, result in _in_order(lambda item: pool.submit(function, item), items, ahead):
            yield result


def _in_order(
    submit: Callable[[Item], Future], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Any]]:
    """Each item with the result of its future, with at most `ahead` of them in memory."""
    waiting = deque()
    try:
        for item in items:
            waiting.append((item, submit(item)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
