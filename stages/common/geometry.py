"""How a picture of any shape becomes one of the square that a network sees."""

from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from stages.common import params

try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

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
        picture: RGB or grey, of any size.
        image_size: in pixels.
        resize: 'squash': each side that is longer is brought down on its own, as the network's own
            first layer squashes to a square, so that both together give the picture that one
            resize would. 'crop': the largest square in the middle. 'pad': the whole picture, its
            shape kept, in the middle of a black square.
    """
    width, height = picture.size
    if resize == "crop":
        side = min(width, height)
        box = ((width - side) / 2, (height - side) / 2, side, side)
        return _resized(picture, (min(side, image_size),) * 2, box)
    if resize == "pad":
        side = min(max(width, height), image_size)
        scale = side / max(width, height)
        whole = _resized(picture, (max(1, round(width * scale)), max(1, round(height * scale))))
        return ImageOps.pad(whole, (side, side), Image.Resampling.BICUBIC, color="black")
    return _resized(picture, (min(width, image_size), min(height, image_size)))


def _resized(
    picture: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Bicubic as Pillow's (Keys 1981, a = -1/2), by a library that is several times as fast.

    It rounds otherwise: of a photograph's values a fifth differ from Pillow's, by 1. Where it has
    no wheel (requirements.in says where) it is Pillow that resizes.

    Args:
        picture: RGB or grey.
        size: width and height, in pixels.
        box: left, top, width and height of the part that is shown; None: all.
    """
    left, top, width, height = box or (0, 0, *picture.size)
    if (left, top, width, height) == (0, 0, *size):
        return picture
    if cykooz_resizer is None:
        edges = (left, top, left + width, top + height)
        return picture.resize(size, Image.Resampling.BICUBIC, edges)
    resized = Image.new(picture.mode, size)
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
        crop_box=cykooz_resizer.CropBox(left, top, width, height),
        use_alpha=False,
    )
    cykooz_resizer.Resizer().resize_pil(picture, resized, options)  # lets other threads run
    return resized


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


def on_device(layer):
    """The layer `resize` as a network that runs calls it: by `antialiased`.

    For pictures of which it shows a part or to which it adds, the layer itself.

    Args:
        layer: from `resizing_layer`.

    Returns:
        A layer of the same name and `height`, not to be saved.
    """
    import keras

    class ResizingOnDevice(keras.layers.Layer):
        def __init__(self):
            super().__init__(name=layer.name)
            self.height = layer.height

        def call(self, images):
            height, width = images.shape[1:3]
            if of_layer(layer) == "squash" or (height is not None and height == width):
                return antialiased(images, layer.height)
            return layer(images)

    return ResizingOnDevice()


def antialiased(images, side):
    """Pictures as squares, bilinear, antialiased where they shrink; of that size, as they are.

    TensorFlow's own antialiased resize runs on CPUs alone (tensorflow#39246): on a GPU box every
    batch would leave the device, wait for one CPU thread and come back, and XLA refuses it. There
    it is two products of matrices, equal to rounding. On a CPU these are slower, and pictures that
    grow are left to the plain resize, which is then the same and faster still
    (benchmarks/profile.md).

    Args:
        images: (batch, height, width, channels), numbers.
        side: of the squares in pixels; a number, or a tensor of one whole number.

    Returns:
        (batch, side, side, channels), float32.
    """
    import tensorflow as tf

    if isinstance(side, int) and tuple(images.shape[1:3]) == (side, side):
        return tf.cast(images, tf.float32)
    if tf.config.list_physical_devices("GPU"):
        return _products(images, side, tf.zeros(2), tf.ones(2))
    return tf.image.resize(images, [side, side], antialias=not _grow(images, side))


def _grow(images, side) -> bool:
    """Whether it is known that no side of these pictures becomes shorter."""
    sides = images.shape[1:3]
    return isinstance(side, int) and None not in sides and max(sides) <= side


def cropped(images, side: int, corners, extents):
    """A part of each picture as a square, resized once, as `antialiased` does the whole.

    Equal to Pillow's bilinear resize of a box. `tf.image.crop_and_resize` alone would not smooth
    what it makes smaller.

    Args:
        images: (batch, height, width, channels), numbers.
        side: of the squares in pixels.
        corners: of the parts, top and left, (batch, 2), float32: fractions of the picture's sides.
        extents: of the parts, height and width, (batch, 2), float32, likewise.

    Returns:
        (batch, side, side, channels), float32.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return _products(images, side, corners, extents)
    images = tf.cast(images, tf.float32)
    if _grow(images, side):
        return _enlarged_parts(images, side, corners, extents)
    pixels = tf.cast(tf.shape(images)[1:3], tf.float32)

    def of_one(picture, corner, extent):
        # What tf.image.resize calls, which has no word for a part.
        scale = side / (pixels * extent)
        return tf.raw_ops.ScaleAndTranslate(
            images=picture[tf.newaxis],
            size=[side, side],
            scale=scale,
            translation=-corner * pixels * scale,
            kernel_type="triangle",
            antialias=True,
        )[0]

    return tf.map_fn(
        lambda one: of_one(*one),
        (images, corners, extents),
        fn_output_signature=tf.TensorSpec((side, side, images.shape[-1]), tf.float32),
    )


def _enlarged_parts(images, side: int, corners, extents):
    """What `cropped` does where pictures grow, by `tf.image.crop_and_resize`, in half of the time.

    That places the first and the last pixel of a part on its edges, and knows nothing beyond the
    picture's outermost centres: pictures get a rim, and parts are given by centres.
    """
    import tensorflow as tf

    rim = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    pixels = tf.cast(tf.shape(images)[1:3], tf.float32)
    half = 0.5 * extents * pixels / side  # a pixel of the square, in those of the picture
    first = corners * pixels + half + 0.5  # in pixels of the picture with its rim, from a centre on
    last = (corners + extents) * pixels - half + 0.5
    boxes = tf.concat([first, last], axis=1) / tf.tile(pixels + 1, [2])
    return tf.image.crop_and_resize(rim, boxes, tf.range(tf.shape(images)[0]), [side, side])


def _products(images, side, corners, extents):
    """What `antialiased` and `cropped` do on a GPU: a product from the left and one from the right.

    Where it rounds what it multiplies to TensorFloat-32, by 0.2 of 255 at most as emulated.

    Args:
        images, side: see `antialiased`.
        corners, extents: (2,) for all or (batch, 2), see `cropped`.
    """
    import tensorflow as tf

    images = tf.cast(images, tf.float32)
    height, width = tf.unstack(tf.shape(images)[1:3])
    rows = _triangles(height, side, corners[..., 0], extents[..., 0])
    columns = _triangles(width, side, corners[..., 1], extents[..., 1])
    lower = tf.einsum("...ih,...hwc->...iwc", rows, images)
    squares = tf.einsum("...jw,...iwc->...ijc", columns, lower)
    # A network wants to know its sides before it runs.
    known = side if isinstance(side, int) else None
    return tf.ensure_shape(squares, [None, known, known, images.shape[-1]])


def _triangles(source, target, corner, extent):
    """What each pixel of a line gives to each one of a part of it that is resized.

    A triangle around the pixel's centre, as wide as a pixel of the coarser of both lines.

    Args:
        source: pixels of the line.
        target: pixels that the part becomes.
        corner: where the part begins, a fraction of the line; a number or, of several, (parts,).
        extent: its length, likewise.

    Returns:
        (target, source) or (parts, target, source), float32.
    """
    import tensorflow as tf

    source, target = tf.cast(source, tf.float32), tf.cast(target, tf.float32)
    step = (extent * source / target)[..., tf.newaxis]
    centres = (corner * source)[..., tf.newaxis] + (tf.range(target) + 0.5) * step
    distances = tf.abs(centres[..., tf.newaxis] - (tf.range(source) + 0.5))
    weights = tf.maximum(1.0 - distances / tf.maximum(step, 1.0)[..., tf.newaxis], 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


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
