"""Computes a convolution and the BatchNorm behind it as one convolution.

A BatchNorm that keeps its statistics is a multiplication and an addition for each channel. Both can
be done to the convolution's kernel and bias, which are small, instead of to its output, which is
large (Jacob et al. 2018, section 3.2). Outputs and the gradients of kernel, γ and β come out the
same, to rounding, since the fold is part of what is differentiated. On a CPU these networks wait
for memory more than they compute: benchmarks/profile.md has what it gains.
"""

from collections import Counter
from collections.abc import Iterator


def folded(network, is_trained: bool = False):
    """The same network, layers and weights shared, with every fold that can be made.

    A convolution is folded if its output goes to a BatchNorm over channels and nowhere else; all
    other layers stay as they are.

    Args:
        network: a functional keras.Model whose BatchNorm layers keep their statistics.
        is_trained: whether gradients will be asked for, and not outputs alone: on a CPU the folds
            of one pixel are then products of matrices.

    Returns:
        A keras.Model of the same inputs and outputs, to be called, not to be saved.
    """
    import keras

    convolution_of = foldable(network)
    taken_in = set(convolution_of.values())

    def call(layer, *arguments, **keywords):
        if layer.name in taken_in:
            return arguments[0]  # left to the BatchNorm behind it
        if layer.name not in convolution_of:
            return layer(*arguments, **keywords)
        convolution = network.get_layer(convolution_of[layer.name])
        return _folded_layer(convolution, layer, is_trained)(arguments[0])

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def foldable(network) -> dict[str, str]:
    """BatchNorm layer's name to the name of the convolution that can take it in."""
    import keras
    from keras import layers

    config = network.get_config()
    sources = {layer["name"]: list(_sources(layer["inbound_nodes"])) for layer in config["layers"]}
    uses = Counter(name for names in sources.values() for name in names)
    uses.update(_sources(config["output_layers"]))
    found = {}
    for layer in network.layers:
        if type(layer) is not layers.BatchNormalization or len(sources[layer.name]) != 1:
            continue
        before = network.get_layer(sources[layer.name][0])
        if (
            type(before) in (layers.Conv2D, layers.DepthwiseConv2D)
            and uses[before.name] == len(sources[before.name]) == 1
            and before.activation is keras.activations.linear
            and before.data_format == "channels_last"
            and layer.axis in (-1, 3)
        ):
            found[layer.name] = before.name
    return found


def _sources(described) -> Iterator[str]:
    """The layers whose outputs a part of a functional model's description names."""
    if isinstance(described, dict):
        if described.get("class_name") == "__keras_tensor__":
            yield described["config"]["keras_history"][0]
        else:
            for part in described.values():
                yield from _sources(part)
    elif isinstance(described, list | tuple):
        is_history = len(described) == 3 and isinstance(described[0], str)
        if is_history and isinstance(described[1], int):
            yield described[0]
        else:
            for part in described:
                yield from _sources(part)


def _is_product(convolution) -> bool:
    """Whether a convolution takes one pixel at a time and is better trained as a matrix product.

    The gradient of such a convolution by its kernel takes TensorFlow's CPU kernels far longer than
    the product that it equals (benchmarks/profile.md). In bfloat16 it does not, and on a GPU it
    was not measured.
    """
    import keras
    import tensorflow as tf

    return (
        type(convolution) is keras.layers.Conv2D
        and tuple(convolution.kernel_size) == tuple(convolution.strides) == (1, 1)
        and convolution.groups == 1
        and convolution.compute_dtype == "float32"
        and not tf.config.list_physical_devices("GPU")
    )


def _folded_layer(convolution, norm, is_trained: bool):
    import keras
    import tensorflow as tf
    from keras import ops

    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    convolve = ops.depthwise_conv if depthwise else ops.conv
    as_product = is_trained and _is_product(convolution)

    class FoldedConvolution(keras.layers.Layer):
        """Holds no weights: those of the two layers are read at every call, in float32."""

        def __init__(self):
            # Weights in float32 whatever the network computes in: what is rounded is their product.
            super().__init__(name=f"{norm.name}_folded", dtype="float32", autocast=False)
            self.built = True

        def call(self, images):
            scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
            if norm.scale:
                scale = scale * norm.gamma
            shift = -norm.moving_mean * scale
            if norm.center:
                shift = shift + norm.beta
            if convolution.use_bias:
                shift = shift + convolution.bias * scale
            kernel = ops.convert_to_tensor(convolution.kernel)
            # Depthwise (height, width, channels, multiplier), else (…, channels, filters).
            kernel = kernel * (ops.reshape(scale, kernel.shape[2:]) if depthwise else scale)
            if as_product:
                pixels = ops.reshape(images, (-1, kernel.shape[-2]))
                outputs = ops.matmul(pixels, ops.reshape(kernel, kernel.shape[-2:]))
                outputs = tf.nn.bias_add(outputs, shift)
                shape = (*ops.shape(images)[:-1], kernel.shape[-1])
                return ops.cast(ops.reshape(outputs, shape), norm.compute_dtype)
            outputs = convolve(
                ops.cast(images, convolution.compute_dtype),
                ops.cast(kernel, convolution.compute_dtype),
                strides=tuple(convolution.strides),
                padding=convolution.padding,
                data_format="channels_last",
                dilation_rate=convolution.dilation_rate,
            )
            # No sum of Keras': TensorFlow fuses a convolution, this and the activation behind it.
            outputs = tf.nn.bias_add(outputs, ops.cast(shift, outputs.dtype))
            return ops.cast(outputs, norm.compute_dtype)

    return FoldedConvolution()
