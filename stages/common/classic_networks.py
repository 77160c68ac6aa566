"""Three networks that Keras does not ship, from their papers: baselines without transfer.

They have random weights (Glorot and Bengio 2010, the library's default), so that a run with
`fine_tune.unfreeze: all` trains them from scratch on one's own images. Layers are named by block.
"""


def lenet5(images):
    """LeNet-5 up to C5 (LeCun et al. 1998, section II.B): 32 pixels to (batch, 1, 1, 120).

    As the paper has it, but for C3, which sees all maps of S2, and for subsampling, which averages
    without weights. F6 is a head of 84 units with tanh.

    Args:
        images: symbolic, (batch, side, side, 3), −1 to 1; 32 pixels or more.
    """
    from keras import layers

    x = images
    for number, filters in enumerate((6, 16, 120), 1):
        x = layers.Conv2D(filters, 5, activation="tanh", name=f"block{number}_conv")(x)
        if number < 3:
            x = layers.AveragePooling2D(2, name=f"block{number}_pool")(x)
    return x


def alexnet(images):
    """AlexNet up to its last pooling (Krizhevsky et al. 2012): 227 pixels to (batch, 6, 6, 256).

    With response normalisation (section 3.3), overlapping pooling (3.4), and the two halves, which
    were on two GPUs, in the second, fourth and fifth layer (figure 2).

    Args:
        images: symbolic, (batch, side, side, 3), the mean of each colour about 0.
    """
    from keras import layers

    x = layers.Conv2D(96, 11, 4, activation="relu", name="block1_conv")(images)
    x = layers.MaxPooling2D(3, 2, name="block1_pool")(_response_normalised(x))
    x = _in_halves(x, 256, 5, "block2")
    x = layers.MaxPooling2D(3, 2, name="block2_pool")(_response_normalised(x))
    x = layers.Conv2D(384, 3, padding="same", activation="relu", name="block3_conv")(x)
    x = _in_halves(x, 384, 3, "block4")
    x = _in_halves(x, 256, 3, "block5")
    return layers.MaxPooling2D(3, 2, name="block5_pool")(x)


def _in_halves(x, filters: int, size: int, block: str):
    """Two convolutions, each of half the channels; plain layers, since CPUs train no groups."""
    from keras import layers

    half = x.shape[-1] // 2
    parts = [
        layers.Conv2D(
            filters // 2, size, padding="same", activation="relu", name=f"{block}_conv_{number}"
        )(part)
        for number, part in enumerate((x[..., :half], x[..., half:]), 1)
    ]
    return layers.Concatenate(name=f"{block}_joined")(parts)


def _response_normalised(x):
    """Each value over (2 + 1e-4 · the sum of squares of 5 neighbouring channels) ** 0.75."""
    from keras import ops

    channels = x.shape[-1]
    padded = ops.pad(ops.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(padded[..., shift : shift + channels] for shift in range(5))
    return x / ops.power(2.0 + 1e-4 * total, 0.75)


def se_resnet50(images):
    """ResNet-50 with squeeze and excitation (Hu et al. 2018, tables 1 and 2): to 2,048 channels.

    The reduction is 16; strides are in the first convolution of a block, as in He et al. 2016.

    Args:
        images: symbolic, (batch, side, side, 3), scaled by mean and deviation.
    """
    from keras import layers

    x = layers.ZeroPadding2D(3, name="conv1_pad")(images)
    x = layers.Conv2D(64, 7, 2, use_bias=False, name="conv1_conv")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stage, (filters, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for number in range(1, count + 1):
            stride = 2 if number == 1 and stage > 2 else 1
            x = _bottleneck(x, filters, stride, number == 1, f"conv{stage}_block{number}")
    return x


def _bottleneck(x, filters: int, stride: int, projects: bool, name: str):
    from keras import layers

    def convolved(x, filters, size, stride, part):
        x = layers.Conv2D(
            filters, size, stride, padding="same", use_bias=False, name=f"{name}_{part}_conv"
        )(x)
        return layers.BatchNormalization(name=f"{name}_{part}_bn")(x)

    shortcut = convolved(x, 4 * filters, 1, stride, "0") if projects else x
    x = layers.ReLU(name=f"{name}_1_relu")(convolved(x, filters, 1, stride, "1"))
    x = layers.ReLU(name=f"{name}_2_relu")(convolved(x, filters, 3, 1, "2"))
    x = convolved(x, 4 * filters, 1, 1, "3")
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    squeezed = layers.Dense(filters // 4, activation="relu", name=f"{name}_reduce")(squeezed)
    gate = layers.Dense(4 * filters, activation="sigmoid", name=f"{name}_excite")(squeezed)
    x = layers.Multiply(name=f"{name}_scale")([x, gate])
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, x]))
