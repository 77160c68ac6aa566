"""TIFF files of any number of channels, most of which Pillow does not open."""

import io

import numpy as np

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, plain and BigTIFF


def read(encoded: bytes, pixel_limit: int) -> np.ndarray:
    """All channels of the first picture in a file: (height, width, channels), uint8.

    Channels may be samples of a pixel or pages of one size; 16 bits are scaled to 8.

    Args:
        encoded: the file.
        pixel_limit: most pixels, width × height, that are decoded.

    Raises:
        ValueError: no such picture; the text says what is wrong.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            if "X" not in axes or "Y" not in axes or len(axes) not in (2, 3):
                raise ValueError(f"expected height, width and channels, received the axes {axes}")
            pixels = shape[axes.index("X")] * shape[axes.index("Y")]
            if not 0 < pixels <= pixel_limit:
                raise ValueError(f"{pixels} pixels, of which 1 to {pixel_limit} are allowed")
            values = series.asarray()
    except (tifffile.TiffFileError, IndexError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"not a TIFF file that can be decoded: {error}") from None
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(f"expected channels of 8 or 16 bits, received {values.dtype}")
    if len(axes) == 2:
        return values[..., np.newaxis]
    return values if axes.endswith("S") else np.moveaxis(values, 0, -1)
