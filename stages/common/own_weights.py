"""Weights of one's own, from a file, for a network of the table."""

import re
from pathlib import Path

import numpy as np

from stages.common import models
from stages.common.run import UserError

SUFFIXES = (".keras", ".weights.h5")


def check(path: Path) -> None:
    """UserError where there is no such file; the others beside it are named."""
    if not path.exists():
        inside = sorted(file.name for file in path.parent.glob("*") if file.name.endswith(SUFFIXES))
        raise UserError(
            f"params.yaml, backbone.weights: {path} does not exist; {path.parent} has "
            f"{', '.join(inside) or 'no such files'}"
        )


def load(backbone, path: Path):
    """Gives a network the weights that a file holds.

    Args:
        backbone: a keras.Model; leaves with the weights.
        path: a `.weights.h5` file of the same network, its top on or off; or a `.keras` file that
            holds it: a classifier of this pipeline, whose part `backbone` is taken, or a network,
            whose weights past the last one that is needed are a top and left out.

    Returns:
        The network; another one, layers shared, where that in the file scales its input further.

    Raises:
        UserError: the file can't be read, or its weights are of another network, or of one that
            scales its input in another way.
    """
    if path.suffix == ".h5":
        _check_that_scaling_is_known(backbone, path)
        try:
            backbone.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{path} holds no weights of this network: {error}") from None
        return backbone
    try:
        source = models.load(path)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise UserError(f"{path} can't be loaded as a Keras model: {_said(error)}") from None
    names = [layer.name for layer in source.layers]
    if "backbone" in names:
        source = source.get_layer("backbone")
    wanted, found = backbone.weights, source.weights
    for number, weight in enumerate(wanted):
        shape = tuple(found[number].shape) if number < len(found) else None
        if shape != tuple(weight.shape):
            raise UserError(
                f"{path} holds another network than backbone.name says: weight {number + 1} of "
                f"{len(wanted)}, {weight.path}, has shape {tuple(weight.shape)}, in the file "
                f"{'there is none' if shape is None else shape}"
            )
    backbone.set_weights([weight.numpy() for weight in found[: len(wanted)]])
    return _scaled_as(source, backbone, path)


def _check_that_scaling_is_known(backbone, path: Path) -> None:
    """UserError for EfficientNet-B0 to B7: see `_scaled_as`, which needs the network's layers."""
    import keras

    for layer in backbone.layers:
        # That of EfficientNetV2 has its numbers from its code, not from the file.
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            raise UserError(
                f"params.yaml, backbone.weights: expected a .keras file of this network, received "
                f"{path}, which does not say whether pixels are divided by the colours' deviation, "
                "as Keras does where it loads ImageNet's weights; save the network whole: "
                "network.save('NAME.keras')"
            )


def _scaled_as(source, backbone, path: Path):
    """The backbone with the input scaling of the source, which holds no weights.

    keras.applications divides the input of EfficientNet-B0 to B7 by the colours' deviation where it
    loads ImageNet's weights itself, and leaves that layer out elsewhere.

    Raises:
        UserError: the source begins with another scaling, as to 0–1 where it is -1 to 1 here.
    """
    import keras

    here = [layer for layer in backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    there = [layer for layer in source.layers if not isinstance(layer, keras.layers.InputLayer)]
    further, position = {}, 0
    for layer in there:
        is_scaling = isinstance(layer, keras.layers.Rescaling)
        if position < len(here) and type(layer) is type(here[position]):
            if is_scaling and not _scale_alike(layer, here[position]):
                raise _other_scaling(path, layer, here[position])
            position += 1
        elif is_scaling and position:
            further[here[position - 1].name] = layer
        elif is_scaling:
            raise _other_scaling(path, layer, here[0])
    if not further:
        return backbone

    def call(layer, *arguments, **keywords):
        found = layer(*arguments, **keywords)
        return further[layer.name](found) if layer.name in further else found

    return keras.models.clone_model(
        backbone, clone_function=lambda layer: layer, call_function=call
    )


def _scale_alike(one, other) -> bool:
    return all(
        np.allclose(first, second, rtol=1e-5, atol=1e-8)  # one number, or one for each colour
        for first, second in ((one.scale, other.scale), (one.offset, other.offset))
    )


def _other_scaling(path: Path, found, here) -> UserError:
    return UserError(
        f"{path} begins with {_described(found)}, where this network of the table begins with "
        f"{_described(here)}: weights that were trained behind the one would see other numbers "
        "behind the other; train it without a scaling of its own, or give it a row of its own in "
        "stages/common/backbones.py"
    )


def _described(layer) -> str:
    if not hasattr(layer, "scale"):
        return type(layer).__name__
    return f"pixels × {np.round(layer.scale, 6)} + {np.round(layer.offset, 6)}"


def _said(error: Exception) -> str:
    """What Keras says, less the whole description of the model that it adds."""
    text = str(error).strip()
    if unknown := re.search(r"Could not locate class '([^']+)'", text):
        return (
            f"it has a layer {unknown[1]}, which is none of Keras; save the network's weights "
            "alone (.weights.h5), or build it of Keras' own layers"
        )
    return (text.splitlines() or [type(error).__name__])[0]
