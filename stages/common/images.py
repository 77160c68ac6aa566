"""Decodes image files to RGB and shrinks them, with Pillow, on all cores."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def decode(encoded: bytes) -> Image.Image:
    """An encoded image as an upright RGB picture.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency is laid over
    white; of an animation the first frame is taken.

    Raises:
        ValueError: the bytes are no image that Pillow knows, are cut off, or exceed its limit of
            pixels (decompression bombs). The text says which.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ValueError(f"not an image that can be decoded ({len(encoded)} bytes)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    if upright.mode.startswith("I;16") or upright.mode == "I":
        pixels = np.asarray(upright).astype(np.int64).clip(0, 65535)
        return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def shrink(image: Image.Image, image_size: int) -> Image.Image:
    """Brings each side that is longer than `image_size` pixels down to it; enlarges nothing.

    A side is squashed on its own, as the network's own first layer squashes to a square, so that
    both together give the picture that one resize would. Bicubic, with antialiasing.
    """
    size = (min(image.width, image_size), min(image.height, image_size))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def to_array(encoded: bytes, image_size: int) -> np.ndarray:
    """Encoded bytes to (height, width, 3), uint8, RGB, no side above `image_size`."""
    return np.asarray(shrink(decode(encoded), image_size))


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 64
) -> Iterator[Result]:
    """`map` on as many threads as cores, in order, with at most `ahead` results in memory.

    Threads are enough: Pillow and hashlib release the interpreter's lock while they work.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
