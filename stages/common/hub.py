"""Networks of KerasHub, by the name of a preset or by a folder that one was saved to.

An optional extra, `make extra NAME=keras-hub`: nothing here is imported unless params.yaml asks
for it, or a model file holds layers of it.
"""

import math
import sys
from pathlib import Path

from stages.common import params
from stages.common.run import UserError


def library():
    """The module keras_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import keras_hub
    except ModuleNotFoundError as error:
        if error.name != "keras_hub":
            raise
        raise UserError(
            f"KerasHub is not installed in {sys.prefix}; `make extra NAME=keras-hub` installs it "
            "in .venv, and `.venv-demo/bin/python -m pip install --constraint "
            "requirements-demo.txt keras-hub` for the demo"
        ) from None
    return keras_hub


def build(preset: str, with_weights: bool, image_size: int | None):
    """A network of a preset, the preset's own input scaling inside.

    Of a network that gives tokens (ViT, DINOv2) the patches' are taken, as a map in the order of
    the picture, and class and register tokens are left out.

    Args:
        preset: a name that KerasHub knows, as 'resnet_50_imagenet', or a folder.
        with_weights: the preset's, else random ones.
        image_size: pixels; None: the preset's own.

    Returns:
        A keras.Model named 'backbone': images (batch, side, side, 3), RGB 0–255, to the last
        feature map (batch, rows, columns, channels).

    Raises:
        UserError: an unknown preset, one that can't be reached, that is no image network, or that
            takes another image size.
    """
    import keras

    network, converter = _load(preset, with_weights)
    own_size = _own_size(preset, network)
    side = image_size or own_size or (converter.image_size or (None,))[0] or 224
    if own_size not in (None, side):
        raise UserError(
            f"params.yaml, backbone.image_size: the preset {preset!r} takes {own_size} pixels, "
            f"received {side}; set it to {own_size} or null"
        )
    images = keras.Input((side, side, 3), name="backbone_images")
    scaled = images
    if converter.scale is not None or converter.offset is not None:
        scaled = keras.layers.Rescaling(
            1.0 if converter.scale is None else converter.scale,
            offset=0.0 if converter.offset is None else converter.offset,
            name="input_scaling",
        )(images)
    # The same layers behind the scaling, not a model inside a model: blocks are found by layers.
    plain = keras.Model(network.inputs[0], network.outputs[0])
    output = _as_map(preset, plain.call(scaled), side, getattr(network, "patch_size", None))
    return keras.Model(images, output, name="backbone")


def _load(preset: str, with_weights: bool):
    keras_hub = library()
    known = keras_hub.models.Backbone.presets
    if preset not in known and "://" not in preset and not Path(preset).is_dir():
        raise UserError(
            f"params.yaml, backbone.name: expected a preset of KerasHub or a folder that one was "
            f"saved to, received {preset!r}{params.nearest(preset, known)}; keras.io/keras_hub/"
            "presets lists them"
        )
    try:
        return (
            keras_hub.models.Backbone.from_preset(preset, load_weights=with_weights),
            keras_hub.layers.ImageConverter.from_preset(preset),
        )
    except Exception as error:  # kagglehub, requests and KerasHub have no class of error in common
        raise UserError(
            f"the preset {preset!r} of KerasHub can't be loaded as an image network "
            f"({type(error).__name__}: {error}). Connect this machine, or give backbone.name the "
            "folder of a preset that was saved with its image converter"
        ) from None


def _own_size(preset: str, network) -> int | None:
    """The side of the images that a network takes; None: any."""
    shape = getattr(network.inputs[0], "shape", ())
    if len(network.inputs) != 1 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(
            f"params.yaml, backbone.name: the preset {preset!r} is no network of RGB images: its "
            f"inputs are {[tuple(one.shape) for one in network.inputs]}"
        )
    return shape[1]


def _as_map(preset: str, output, side: int, patch_size):
    """The output as a feature map; of tokens those of the patches, which come last."""
    from keras import layers

    if len(output.shape) == 4:
        return output
    if len(output.shape) == 3:
        tokens, channels = output.shape[1:]
        patch = patch_size[0] if isinstance(patch_size, (tuple, list)) else patch_size
        rows = side // patch if patch else math.isqrt(tokens)
        if rows * rows <= tokens:
            patches = output[:, tokens - rows * rows :]
            return layers.Reshape((rows, rows, channels), name="map")(patches)
    raise UserError(
        f"params.yaml, backbone.name: the preset {preset!r} gives {tuple(output.shape)}, neither a "
        "feature map (batch, rows, columns, channels) nor tokens (batch, tokens, channels)"
    )
