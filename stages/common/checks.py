"""What `fetch` finds out about one image: whether it can be used, and what it looks like."""

import hashlib

import numpy as np
from PIL import Image

from stages.common import images

HASHED_SIDE = 64  # pixels; twice the side of the grey picture that the perceptual hash is made of


def inspect(encoded: bytes, pixel_limit: int) -> dict[str, str | int | float]:
    """The fields of an InventoryRow that the encoded bytes decide.

    Of an image that can't be used they are its size in bytes, its content and the problem.
    """
    known = {"bytes": len(encoded), "content": hashlib.sha256(encoded).hexdigest()}
    try:
        decoded = images.read(encoded, pixel_limit)
    except images.BadImage as bad:
        return known | {"problem": bad.problem, "detail": bad.detail}
    picture = decoded.picture
    # Both figures are averages over many pixels, so that a picture a few times smaller gives the
    # same at a fraction of the time.
    small = picture.reduce(max(1, min(picture.size) // HASHED_SIDE))
    red, green, blue = channel_means(small)
    return known | {
        "format": decoded.format,
        "mode": decoded.mode,
        "width": picture.width,
        "height": picture.height,
        "frames": decoded.frames,
        "perceptual": perceptual_hash(small),
        "red": red,
        "green": green,
        "blue": blue,
    }


def perceptual_hash(picture: Image.Image) -> str:
    """64 bits in 16 hexadecimal digits; of two pictures that look alike, few bits differ.

    The signs, about their median, of the 8 by 8 lowest frequencies of the grey picture.
    """
    import imagehash

    return str(imagehash.phash(picture))


def channel_means(picture: Image.Image) -> tuple[float, float, float]:
    """The means of red, green and blue, 0–255."""
    # By rows first: adding rows as they lie is several times faster than a mean over both axes.
    sums = np.asarray(picture).sum(axis=0, dtype=np.uint64).sum(axis=0)
    red, green, blue = (sums / (picture.width * picture.height)).tolist()
    return red, green, blue
