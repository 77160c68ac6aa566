"""Networks for pictures of one, two, four or more channels, made from networks for RGB."""

from stages.common.geometry import RGB
from stages.common.run import UserError


def with_channels(backbone, channels: int, averaged: bool):
    """The same network with a first convolution that takes another number of channels.

    Each channel gets the mean of the colours' kernels times 3 / channels, so that the sum over all
    channels stays what it was: pretrained kernels are adapted like this elsewhere too (Wightman's
    timm, `adapt_input_conv`, sums them for one channel as well). A network for grey then gives what
    the RGB one gives of the picture three times over: exactly where all colours are scaled alike;
    where each colour has its own mean and deviation, their averages stand in, and it is near.

    Args:
        backbone: a keras.Model from images (batch, side, side, 3), RGB 0–255.
        channels: 1 or more.
        averaged: keep the kernels of the first convolution in this way; else it gets new random
            ones, as a network that is trained from scratch wants them.

    Returns:
        A keras.Model of the same layers' names from images (batch, side, side, channels), 0–255.

    Raises:
        UserError: the network does not begin with a convolution, or has RGB written into its
            layers.
    """
    import keras

    if channels == backbone.input_shape[-1]:
        return backbone
    images = keras.Input(
        (*backbone.input_shape[1:3], channels), name=backbone.layers[0].name, dtype="float32"
    )
    try:
        adapted = keras.models.clone_model(
            backbone, input_tensors=images, clone_function=_cloned_for_any_channels
        )
        if adapted.output_shape != backbone.output_shape:
            raise ValueError(f"the output would become {adapted.output_shape}")
        for old, new in zip(backbone.weights, adapted.weights, strict=True):
            _hand_over(old, new, averaged)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"params.yaml, preprocess.channels: this network takes {RGB} channels only, received "
            f"{channels}: {error}; set it to {RGB}, or name another backbone"
        ) from None
    for layer in adapted.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with a copy of the weights that were just set
    return adapted


def _cloned_for_any_channels(layer):
    """A new layer like the given one; where it scales each colour in its own way, all alike."""
    import keras

    if isinstance(layer, keras.Sequential):  # the stem of ConvNeXt; its own input has three
        parts = [_cloned_for_any_channels(one) for one in layer.layers]
        return keras.Sequential(parts, name=layer.name)
    config = layer.get_config()
    if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
        for key in ("scale", "offset", "mean", "variance"):
            if key in config and config[key] is not None:
                config[key] = _mean(config[key])
    return type(layer).from_config(config)


def _mean(value) -> float:
    import numpy as np

    return float(np.mean(value))


def _hand_over(old, new, averaged: bool) -> None:
    """Gives the weight of the network for RGB to that of the other."""
    from keras import ops

    if old.shape == new.shape:
        new.assign(old)
        return
    if len(old.shape) == 1:  # a mean or a variance of each colour
        new.assign(ops.full(new.shape, ops.mean(old)))
        return
    if len(old.shape) != 4 or (old.shape[:2], old.shape[3]) != (new.shape[:2], new.shape[3]):
        raise ValueError(f"its weight {old.path} has the shape {tuple(old.shape)}")
    if averaged:
        kernel = ops.mean(old, axis=2, keepdims=True) * (RGB / new.shape[2])
        new.assign(ops.broadcast_to(kernel, new.shape))
