"""How a picture of any shape becomes one of the square that a network sees."""

from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from stages.common import params

RESIZE = ("squash", "crop", "pad")
RGB, GREY = 3, 1  # channels


@params.params_dataclass
class PreprocessParams:
    """Section `preprocess`: two stages need it, the model file does to a new picture the same."""

    image_size: params.PositiveInt
    resize: Literal[RESIZE]
    channels: Annotated[
        int,
        Field(ge=1, description="3 (RGB), 1 (grey) or as many channels as each TIFF file has"),
    ]


def shrink(picture: Image.Image, image_size: int, resize: str) -> Image.Image:
    """A picture with no side above `image_size` pixels; nothing is enlarged.

    Bicubic, with antialiasing.

    Args:
        picture: of any size.
        image_size: in pixels.
        resize: 'squash': each side that is longer is brought down on its own, as the network's own
            first layer squashes to a square, so that both together give the picture that one
            resize would. 'crop': the largest square in the middle. 'pad': the whole picture, its
            shape kept, in the middle of a black square.
    """
    if resize == "crop":
        side = min(picture.size)
        return ImageOps.fit(picture, (min(side, image_size),) * 2, Image.Resampling.BICUBIC)
    if resize == "pad":
        side = min(max(picture.size), image_size)
        return ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color="black")
    size = (min(picture.width, image_size), min(picture.height, image_size))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def resizing_layer(image_size: int, resize: str):
    """The Keras layer `resize`, from pictures of any one size to squares, as `shrink` does it."""
    import keras

    return keras.layers.Resizing(
        image_size,
        image_size,
        interpolation="bilinear",
        antialias=True,  # acts only where a picture is made smaller
        crop_to_aspect_ratio=resize == "crop",
        pad_to_aspect_ratio=resize == "pad",
        name="resize",
    )


def of_layer(layer) -> str:
    """The `resize` that a layer of `resizing_layer` was made with."""
    if layer.crop_to_aspect_ratio:
        return "crop"
    return "pad" if layer.pad_to_aspect_ratio else "squash"


def shown(pixels: np.ndarray) -> np.ndarray:
    """A picture of any number of channels, as people see it: (height, width, 3), the same dtype.

    RGB stays; of more channels the first three are shown, of fewer the first one, as grey.

    Args:
        pixels: (height, width, channels).
    """
    if pixels.shape[2] >= RGB:
        return pixels[..., :RGB]
    return np.repeat(pixels[..., :GREY], RGB, axis=2)
