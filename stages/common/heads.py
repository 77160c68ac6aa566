"""The classifiers that stand on the features of a backbone."""

from collections.abc import Sequence

# Heads that look at the feature map itself; the others take what global pooling leaves of it.
MAP_HEADS = ("conv",)
HEADS = ("linear", "dense", "conv")


def build(
    kind: str, feature_shape: Sequence[int], classes: int, *, hidden_units: int, dropout: float
):
    """A model named 'head' from features to logits.

    Args:
        kind: 'linear': one dense layer. 'dense': dropout, a hidden layer with ReLU, dropout, dense
            layer. 'conv': the tutorial's, 7 filters of 7 by 7 on the feature map, BatchNorm,
            global average pooling, dropout, flatten, a hidden ReLU layer.
        feature_shape: (channels,) or (height, width, channels).
        classes: number of logits.
        hidden_units: of the hidden layer; a linear head has none.
        dropout: rate from 0 to below 1; a linear head has none.

    Returns:
        A keras.Model (batch, *feature_shape) to (batch, classes), float32.
    """
    import keras
    from keras import layers

    features = keras.Input(tuple(feature_shape), name="features")
    x = features
    if len(feature_shape) == 3 and kind not in MAP_HEADS:
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    if kind == "dense":
        x = layers.Dropout(dropout, name="head_input_dropout")(x)
        x = layers.Dense(hidden_units, activation="relu", name="head_hidden")(x)
        x = layers.Dropout(dropout, name="head_dropout")(x)
    elif kind == "conv":
        # The tutorial's Conv2D pads nothing: on a 7 by 7 map one number a filter is left.
        # A smaller map is padded, so that the head fits every backbone and image size.
        fits = min(feature_shape[:2]) >= 7
        x = layers.Conv2D(7, 7, padding="valid" if fits else "same", name="head_conv")(x)
        x = layers.BatchNormalization(name="head_norm")(x)
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
        x = layers.Dropout(dropout, name="head_dropout")(x)
        x = layers.Flatten(name="head_flatten")(x)
        x = layers.Dense(hidden_units, activation="relu", name="head_hidden")(x)
    logits = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(features, logits, name="head")
