"""Parts of pictures, and what Pillow makes of them."""

import numpy as np
from PIL import Image


def random_parts(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise pictures (4, height, width, 3), the corners and the extents of a part of each.

    The first is the whole picture, the second ends where the picture ends.
    """
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (4, *size, 3)).astype(np.float32)
    extents = random.uniform(0.4, 1, (4, 2)).astype(np.float32)
    corners = random.uniform(0, 1 - extents).astype(np.float32)
    corners[0], extents[0] = 0, 1
    corners[1] = 1 - extents[1]
    return images, corners, extents


def resized_by_pillow(images, side: int, corners, extents) -> np.ndarray:
    """Bilinear, each channel by itself, which Pillow then does not round."""
    height, width = images.shape[1:3]
    resized = []
    for image, corner, extent in zip(images, corners, extents, strict=True):
        (top, left), (bottom, right) = corner * (height, width), (corner + extent) * (height, width)
        of_channels = [
            Image.fromarray(channel).resize(
                (side, side), Image.Resampling.BILINEAR, (left, top, right, bottom)
            )
            for channel in np.moveaxis(image, -1, 0)
        ]
        resized.append(np.stack(of_channels, axis=-1))
    return np.stack(resized)
