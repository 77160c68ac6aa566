"""Grad-CAM: which parts of a picture speak for a class."""

from collections.abc import Callable

import numpy as np

from stages.common import geometry, models

# Dark to bright in even steps, so that it reads in grey and with any colour deficiency.
COLORMAP = "inferno"
MOST_OPAQUE = 0.6  # of the colour over the picture, where the heat is 1


def heat_mapper(model) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function that makes heat maps of one batch after another, its graph built once.

    Grad-CAM (Selvaraju et al. 2017, equations 1 and 2). The feature map is the output of the
    classifier's layer `backbone`, whatever network that is; of several, the last, so that what the
    others say of the class is not in the picture. The score is the log-odds of the class before the
    temperature: its logit, as in the paper, less those of the others (their log-sum-exp). A softmax
    ignores what is added to all logits, so that of two classes one logit may hold all that tells
    them apart, and the other's map would stay empty.

    Args:
        model: a classifier from `models.assemble`.

    Returns:
        A function from images (batch, height, width, channels), uint8 or float 0–255, and classes
        (batch,), whole numbers, to (batch, rows, columns) of the feature map, float32 from 0 to 1:
        the largest value of each map is 1, or the map is all 0 where nothing in the picture speaks
        for the class.

    Raises:
        ValueError: the backbone's output is no feature map (batch, rows, columns, channels).
    """
    import tensorflow as tf

    resize, backbone, head = (model.get_layer(name) for name in ("resize", "backbone", "head"))
    pool = models.pool_of(model)
    several = isinstance(backbone.output, list)
    shape = _feature_map_shape(model)
    if len(shape) != 4:
        raise ValueError(
            "Grad-CAM needs a backbone whose output is (batch, rows, columns, channels), received "
            f"{tuple(shape)}"
        )

    resize = geometry.on_device(resize)

    @tf.function(reduce_retracing=True)
    def of_batch(images, classes):
        feature_maps = backbone(resize(tf.cast(images, tf.float32)), training=False)
        feature_map = feature_maps[-1] if several else feature_maps
        with tf.GradientTape() as tape:
            tape.watch(feature_map)
            features = [*feature_maps[:-1], feature_map] if several else feature_map
            for layer in pool:
                features = layer(features)
            logits = head(features, training=False)
            chosen = tf.one_hot(classes, logits.shape[1], on_value=True, off_value=False)
            others = tf.reduce_logsumexp(tf.where(chosen, -np.inf, logits), axis=1)
            scores = logits[chosen] - others
        # Of the sum over the batch: out of training no picture acts on another's score.
        gradients = tf.cast(tape.gradient(scores, feature_map), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        maps = tf.nn.relu(tf.reduce_sum(weights * tf.cast(feature_map, tf.float32), axis=3))
        return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=(1, 2), keepdims=True))

    return lambda images, classes: of_batch(
        tf.constant(images), tf.constant(classes, tf.int64)
    ).numpy()


def heat_maps(model, images: np.ndarray, classes: np.ndarray, batch_size: int) -> np.ndarray:
    """Heat maps of many images, see `heat_mapper`: (images, rows, columns), float32."""
    of_batch = heat_mapper(model)
    maps = [
        of_batch(images[start : start + batch_size], classes[start : start + batch_size])
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(maps) if maps else np.zeros((0, *_feature_map_shape(model)[1:3]), "f4")


def _feature_map_shape(model) -> tuple:
    output = model.get_layer("backbone").output
    return (output[-1] if isinstance(output, list) else output).shape


def overlay(picture: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """A picture in grey with its heat map over it in colour.

    Args:
        picture: (height, width, channels), uint8; see geometry.shown.
        heat_map: (rows, columns), float from 0 to 1; brought to the picture's size (bilinear).

    Returns:
        (height, width, 3), RGB uint8. Where the heat is 0 the grey picture is unchanged; the
        hotter, the brighter the colour and the less of the picture shines through.
    """
    from matplotlib import colormaps
    from PIL import Image

    height, width = picture.shape[:2]
    resized = Image.fromarray(heat_map.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    heat = np.clip(np.asarray(resized), 0, 1)[..., np.newaxis]
    rgb = np.ascontiguousarray(geometry.shown(picture))
    grey = np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"), np.float32)
    colors = colormaps[COLORMAP](heat[..., 0])[..., :3] * 255
    opacity = MOST_OPAQUE * heat
    return np.round((1 - opacity) * grey + opacity * colors).astype(np.uint8)


def overlay_colors() -> np.ndarray:
    """What `overlay` makes of middle grey as the heat goes from 0 to 1: (1, 256, 3), RGB uint8."""
    heat = np.linspace(0, 1, 256, dtype=np.float32)[np.newaxis]
    return overlay(np.full((1, 256, 3), 128, np.uint8), heat)
