"""What a model costs by its architecture, on any machine: parameters and multiply-adds."""

import math

from stages.common import models

# The names of a layer's weights that work as a kernel does.
KERNELS = {
    "Conv2D": ("kernel",),
    "DepthwiseConv2D": ("kernel",),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
    "Dense": ("kernel",),
}


def model_cost(model) -> dict[str, int]:
    """The cost of one image at the size that the network sees.

    Args:
        model: a classifier with a layer that resizes, so that all later sizes are known.

    Returns:
        parameters: all numbers that the model holds, BatchNorm's running statistics among them.
        multiply_adds: of convolutions and dense layers, as papers count them: biases, BatchNorm,
            activations, pooling and resizing are left out. The number itself is left out where a
            layer with a matrix of weights is of another kind, rather than be too small.
    """
    cost = {"parameters": model.count_params()}
    counts = [multiply_adds(layer) for layer in models.leaf_layers(model)]
    if None not in counts:
        cost["multiply_adds"] = sum(counts)
    return cost


def multiply_adds(layer) -> int | None:
    """Multiply-adds of one layer for one image; None where that is not known.

    Every number of a kernel is used once at each place of the output.
    """
    kind = type(layer).__name__
    if kind not in KERNELS:
        return None if any(len(weight.shape) > 1 for weight in layer.weights) else 0
    *places, _channels = models.output_shape(layer)[1:]
    if None in places:
        return None
    kernels = [getattr(layer, name) for name in KERNELS[kind]]
    return math.prod(places) * sum(math.prod(kernel.shape) for kernel in kernels)
