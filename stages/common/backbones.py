"""The table of backbones: name to constructor, input scaling and where weights come from.

Adding a network is adding a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stages.common import efficientnet_lite
from stages.common.run import UserError

KERAS_WEIGHTS_SECONDS = 10  # a host that has not answered by then is not reachable
# Weights that are drawn, not loaded, follow from this: the stage has no other randomness.
INITIAL_SEED = 0


@dataclass(frozen=True)
class Backbone:
    """One row of the table."""

    # (symbolic images (batch, size, size, 3) RGB 0–255, weights) to the last feature map
    build: Callable
    weights: tuple[str | None, ...]  # what `backbone.weights` may be
    native_size: int  # pixels, the size that the weights were trained at


def build(name: str, weights: str | None, image_size: int):
    """The network without its top as a Keras model.

    Args:
        name: a row of `BACKBONES`.
        weights: 'imagenet', or None for random ones.
        image_size: side of the square that the network sees, in pixels.

    Returns:
        A keras.Model named 'backbone': images (batch, image_size, image_size, 3), RGB 0–255, to
        the last feature map (batch, height, width, channels). The input scaling is inside.

    Raises:
        UserError: the weights can't be reached, or are not installed.
    """
    import keras

    keras.utils.set_random_seed(INITIAL_SEED)
    inputs = keras.Input((image_size, image_size, 3), name="backbone_images")
    return BACKBONES[name].build(inputs, weights)


def _efficientnet_lite0(inputs, weights):
    import keras

    # (x − 127) / 128, as the weights were trained.
    scaled = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="input_scaling")(inputs)
    model = keras.Model(inputs, efficientnet_lite.lite0(scaled), name="backbone")
    if weights == "imagenet":
        efficientnet_lite.load_imagenet_weights(model)
    return model


def _efficientnet_b0(inputs, weights):
    import keras

    return _from_keras(keras.applications.EfficientNetB0, inputs, weights)


def _from_keras(constructor, inputs, weights):
    """A network of keras.applications that takes 0–255 and scales inside."""
    import socket

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(KERAS_WEIGHTS_SECONDS)
    try:
        return constructor(include_top=False, weights=weights, input_tensor=inputs, name="backbone")
    except Exception as error:
        # get_file raises a bare Exception for a host that can't be reached.
        if weights is None or "URL fetch failure" not in str(error):
            raise
        raise UserError(
            f"the weights of {constructor.__name__} can't be downloaded: {error}. Connect this "
            "machine, or set backbone.name to efficientnet_lite0, whose weights are installed, "
            "or backbone.weights to null"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _tiny(inputs, weights):
    """Two convolutions with BatchNorm: for tests and for trying the pipeline itself."""
    import keras
    from keras import layers

    del weights  # there are none
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="input_scaling")(inputs)
    for number, channels in enumerate((8, 16)):
        x = layers.Conv2D(
            channels, 3, 2, padding="same", use_bias=False, name=f"block{number}_conv"
        )(x)
        x = layers.BatchNormalization(name=f"block{number}_norm")(x)
        x = layers.ReLU(name=f"block{number}_relu")(x)
    return keras.Model(inputs, x, name="backbone")


BACKBONES = {
    "efficientnet_lite0": Backbone(_efficientnet_lite0, ("imagenet", None), 224),
    "efficientnet_b0": Backbone(_efficientnet_b0, ("imagenet", None), 224),
    "tiny": Backbone(_tiny, (None,), 32),
}
