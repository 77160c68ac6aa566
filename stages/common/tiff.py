"""TIFF files of any number of channels, most of which Pillow does not open."""

import io
import math
import struct
import zlib

import numpy as np

from stages.common.geometry import RGB

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, plain and BigTIFF
UPRIGHT = 1  # of TIFF's tag of orientation
# What tifffile, and what it decompresses by, raise on bytes that they can't make sense of.
_DECODER_ERRORS = (
    *(OSError, IndexError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError),
    *(ArithmeticError, AssertionError, MemoryError, zlib.error, struct.error),
)


class TooManyPixels(ValueError):
    """A picture larger than allowed, by its header alone."""


class Unsupported(ValueError):
    """A sound picture of a kind that is not read."""


def read(encoded: bytes, pixel_limit: int) -> np.ndarray:
    """All channels of the first picture in a file, upright: (height, width, channels), uint8.

    Channels may be samples of a pixel or pages of one size; 16 bits are scaled to 8.

    Args:
        encoded: the file.
        pixel_limit: most pixels, width × height, that are decoded; of more than three channels
            as many bytes as such a picture in RGB.

    Raises:
        TooManyPixels: more than `pixel_limit`.
        Unsupported: other numbers than 8 or 16 bits, other axes, or a compression that needs a
            package which is not installed.
        ValueError: no such picture; the text says what is wrong.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            len(file.pages)  # finds pages that go in circles; reading one by one, it would not end
            series = file.series[0]
            axes, shape = series.axes, series.shape
            if "X" not in axes or "Y" not in axes or len(axes) not in (2, 3):
                raise Unsupported(f"expected height, width and channels, received the axes {axes}")
            height, width = shape[axes.index("Y")], shape[axes.index("X")]
            channels = math.prod(shape) // max(height * width, 1)
            if height * width * max(channels, RGB) > RGB * pixel_limit:
                raise TooManyPixels(
                    f"{width}×{height} pixels of {channels} channels are more than the limit of "
                    f"{pixel_limit} in RGB"
                )
            if height * width == 0:
                raise ValueError(f"{width}×{height} pixels")
            counts_from_white = file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
            orientation = file.pages[0].tags.valueof("Orientation", UPRIGHT)
            values = series.asarray()
    except (TooManyPixels, Unsupported):
        raise
    except _DECODER_ERRORS as error:
        if "imagecodecs" in str(error):
            raise Unsupported(
                f"{error}; save it uncompressed or by Deflate, or install imagecodecs into .venv"
            ) from None
        raise ValueError(f"not a TIFF file that can be decoded: {error}") from None
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise Unsupported(f"expected channels of 8 or 16 bits, received {values.dtype}")
    if len(axes) == 2 and counts_from_white:
        values = 255 - values
    values = np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1])
    if len(axes) == 2:
        values = values[..., np.newaxis]
    return np.ascontiguousarray(_turned(values, orientation))


def bits(encoded: bytes) -> int:
    """Bits of a number in the first page of a file that `read` reads."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        return file.pages[0].bitspersample


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """(height, width, channels) as it is to be shown; the numbers are those of TIFF 6.0."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
