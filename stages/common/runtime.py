"""What a GPU box is asked for: precision, devices, determinism."""

from typing import Annotated, Literal

from pydantic import Field

from stages.common import models, params
from stages.common.run import UserError

# Rescaling bytes in 8 or 11 bits loses some of them; TensorFlow's depthwise kernels gain nothing.
KEPT_IN_FLOAT32 = ("DepthwiseConv2D", "Normalization", "Rescaling", "Resizing")


@params.params_dataclass
class RuntimeParams:
    """Section `runtime`."""

    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"]
    devices: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)],
        Field(description="auto (all GPUs) or a whole number of 1 or more"),
    ]
    deterministic: params.Flag
    steps_per_execution: params.PositiveInt


def strategy(devices: int | str, batch_size: int):
    """A tf.distribute.Strategy over GPUs, or over CPUs where there is no GPU.

    On one device it is TensorFlow's default, which changes nothing. On several each takes an equal
    part of every batch, and their gradients are averaged: the result is that of one device, to
    rounding, so that rates need no change. A larger `batch_size` for more devices does call for a
    higher rate: k times as large, k times the rate of SGD (Goyal et al. 2017), √k times that of
    Adam (Malladi et al. 2022).

    Args:
        devices: 'auto', or how many.
        batch_size: of all devices together.

    Raises:
        UserError: there are fewer devices, or the batch can't be parted equally.
    """
    import tensorflow as tf

    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    found = [device.name for device in tf.config.list_logical_devices(kind)]
    count = len(found) if devices == "auto" else devices
    if count > len(found):
        raise UserError(
            f"params.yaml, runtime.devices: expected auto or at most {len(found)}, the {kind}s of "
            f"this machine, received {devices}"
        )
    if count == 1:
        return tf.distribute.get_strategy()
    if batch_size % count:
        raise UserError(
            f"params.yaml, fine_tune.batch_size: expected a multiple of {count}, the {kind}s that "
            f"share each batch, received {batch_size}; or set runtime.devices to 1"
        )
    print(f"{count} {kind}s, {batch_size // count} images of each batch on each", flush=True)
    return tf.distribute.MirroredStrategy(found[:count])


def set_precision(network, precision: str) -> None:
    """Sets what the layers of a network compute in; weights stay float32.

    Mixed precision as in Micikevicius et al. 2018. What brings the input to scale and depthwise
    convolutions stay in float32; so does all that comes after the network: pooling, head, softmax.

    Args:
        network: a keras.Model, which is changed.
        precision: 'float32', 'mixed_float16' or 'mixed_bfloat16'.
    """
    for layer in models.leaf_layers(network):
        kept = type(layer).__name__ in KEPT_IN_FLOAT32
        layer.dtype_policy = "float32" if kept else precision
