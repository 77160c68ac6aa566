"""The classifiers that stand on the features of a backbone."""

from collections.abc import Sequence

# Heads that look at the feature map itself; the others take what global pooling leaves of it.
MAP_HEADS = ("conv", "residual")
HEADS = ("linear", "dense", "conv", "residual", "cosine")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
# What a cosine is multiplied by before training (Wang et al. 2018, CosFace, has 30 to 64 for faces
# in thousands of classes): few classes need less to be sure.
FIRST_COSINE_SCALE = 16.0
# Keras' 0.99 still holds 45 % of the mean 0 and variance 1 that it begins with after 80 steps, all
# that a hundred images have in 40 epochs of batches of 64 (docs/experiments.md).
NORM_MOMENTUM = 0.9


def build(
    kind: str,
    feature_shape: Sequence[int],
    classes: int,
    *,
    hidden_units: Sequence[int],
    dropout: float,
    activation: str = "relu",
    batch_norm: bool = False,
):
    """A model named 'head' from features to logits.

    Args:
        kind: 'linear': one dense layer. 'dense': dropout, then for each number of hidden units a
            dense layer, BatchNorm where asked for, its activation and dropout; then a dense layer.
            'conv': the tutorial's, 7 filters of 7 by 7 on the feature map, BatchNorm, global
            average pooling, dropout, flatten, one hidden layer. 'residual': BatchNorm and dropout
            of whole channels, for each number of hidden units a block of two convolutions of 3 by 3
            (He et al. 2016, figure 2), global average pooling, dropout. 'cosine': the cosine
            between the features and one learned direction a class, times one learned number
            (Gidaris and Komodakis 2018, equation 5).
        feature_shape: (channels,) or (height, width, channels).
        classes: number of logits.
        hidden_units: of the hidden layers, one number for 'conv'; channels of the blocks for
            'residual'; the others have none.
        dropout: rate from 0 to below 1, of 'dense', 'conv' and 'residual'.
        activation: of the hidden layers, one of `ACTIVATIONS`.
        batch_norm: whether 'dense' normalises its hidden layers.

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
        for number, units in enumerate(hidden_units):
            suffix = f"_{number}" if number else ""
            if batch_norm:
                x = layers.Dense(units, use_bias=False, name=f"head_hidden{suffix}")(x)
                x = layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"head_norm{suffix}")(x)
                x = layers.Activation(activation, name=f"head_activation{suffix}")(x)
            else:
                x = layers.Dense(units, activation=activation, name=f"head_hidden{suffix}")(x)
            x = layers.Dropout(dropout, name=f"head_dropout{suffix}")(x)
    elif kind == "conv":
        # As the tutorial has it, BatchNorm's momentum too. Its Conv2D pads nothing: one number a
        # filter is left of a map of 7 by 7. A smaller map is padded, so that the head fits every
        # backbone and image size.
        fits = min(feature_shape[:2]) >= 7
        x = layers.Conv2D(7, 7, padding="valid" if fits else "same", name="head_conv")(x)
        x = layers.BatchNormalization(name="head_norm")(x)
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
        x = layers.Dropout(dropout, name="head_dropout")(x)
        x = layers.Flatten(name="head_flatten")(x)
        x = layers.Dense(hidden_units[0], activation=activation, name="head_hidden")(x)
    elif kind == "residual":
        # Layers that are joined differ in scale; and neighbours in a map would give away what
        # dropout of single numbers hides (Tompson et al. 2015).
        x = layers.BatchNormalization(momentum=NORM_MOMENTUM, name="head_input_norm")(x)
        x = layers.SpatialDropout2D(dropout, name="head_input_dropout")(x)
        for number, units in enumerate(hidden_units):
            x = _residual_block(x, units, activation, f"head_block{number}")
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
        x = layers.Dropout(dropout, name="head_dropout")(x)
    elif kind == "cosine":
        return keras.Model(features, _cosine_logits(x, classes), name="head")
    logits = layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(features, logits, name="head")


def _residual_block(x, channels: int, activation: str, name: str):
    """He et al. 2016, figure 2, with BatchNorm; a convolution of 1 by 1 where the width changes."""
    from keras import layers

    def convolution(inputs, size: int, part: str):
        inputs = layers.Conv2D(
            channels, size, padding="same", use_bias=False, name=f"{name}_{part}_conv"
        )(inputs)
        return layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"{name}_{part}_norm")(inputs)

    branch = convolution(x, 3, "first")
    branch = layers.Activation(activation, name=f"{name}_first_activation")(branch)
    branch = convolution(branch, 3, "second")
    shortcut = x if x.shape[-1] == channels else convolution(x, 1, "shortcut")
    x = layers.Add(name=f"{name}_add")([branch, shortcut])
    return layers.Activation(activation, name=f"{name}_activation")(x)


def _cosine_logits(features, classes: int):
    """Layers of Keras alone, so that the saved file needs no code of ours."""
    import keras
    from keras import layers

    unit = keras.constraints.UnitNorm(axis=0)
    directions = layers.Dense(
        classes,
        use_bias=False,
        kernel_initializer="orthogonal",  # columns of length 1 where there are enough features
        kernel_constraint=unit,
        dtype="float32",
        name="head_directions",
    )
    cosines = directions(layers.UnitNormalization(name="head_unit_length")(features))
    directions.kernel.assign(unit(directions.kernel))
    # One number that all logits are multiplied by: a dense layer from one number to one.
    scaled = layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(FIRST_COSINE_SCALE),
        dtype="float32",
        name="head_scale",
    )(layers.Reshape((classes, 1), name="head_column")(cosines))
    return layers.Reshape((classes,), dtype="float32", name="logits")(scaled)
