"""The blocks of a network: the units in which it is cut, unfrozen and given its own rates.

A block is a run of layers, in the order of depth, whose last one is its output. Networks do not
mark their blocks, but their layers' names do: by a prefix (`block3a_expand_conv`), or by the layer
that ends a block (`mixed5`).
"""

import json
import re
from collections.abc import Sequence

from stages.common import files, models, params, paths
from stages.common.run import UserError

STEM, TOP = "stem", "top"
ALL = "all_blocks"
LAYERS_FILE = paths.FEATURES / "layers.json"  # which layers the features are from
# A prefix of layers of one block, most special first; the network's own name may stand before it.
PREFIX = re.compile(
    r"""(?:convnext_\w+?_)?(
        stage_\d+_block_\d+               # ConvNeXt
        | conv\d+_block\d+                # ResNet, DenseNet
        | pool[2-9](?=_(?:bn|relu|conv)$) # DenseNet's transitions
        | block\d+_\d+(?=_)               # InceptionResNetV2
        | block\d+[a-z]?(?=_)             # EfficientNet, VGG, Xception, ours
        | block_\d+(?=_)                  # MobileNetV2
        | expanded_conv(?:_\d+(?=_))?     # MobileNetV3, the first of MobileNetV2
        | conv_(?:dw|pw|pad)_(?P<pair>\d+) # MobileNet: a depthwise and a pointwise convolution
    )""",
    re.VERBOSE,
)
# DenseNet ends a transition with a pooling layer that has the name of the next one's.
TRANSITION_END = re.compile(r"(pool[2-9])_pool$")
# Where the branches of a block meet: Inception, NASNet, InceptionResNetV2.
ENDING = re.compile(
    r"mixed(?:\d+|_5b|_6a|_7a)$|(?:normal|reduction)_concat_\w+$|custom_scale_layer"
)


def blocks(backbone) -> dict[str, list[str]]:
    """The blocks of a network.

    Args:
        backbone: a keras.Model, its layers in the order of depth.

    Returns:
        Block's name to the names of its layers, both in the order of depth; the input is left out.
        What comes before the first block is `stem`, what holds weights after the last one `top`. A
        network whose layers' names tell no blocks has one for each layer that holds weights, with
        the layers up to the next one.
    """
    layers = [layer for layer in backbone.layers if type(layer).__name__ != "InputLayer"]
    names = [layer.name for layer in layers]
    with_weights = {layer.name for layer in layers if layer.weights}
    if sum(bool(ENDING.match(name)) for name in names) > 1:
        return _by_endings(names)
    if any(map(_prefix, names)):
        return _by_prefixes(names, with_weights)
    return _by_weights(names, with_weights)


def outputs(backbone) -> dict[str, str]:
    """Block's name to the name of its last layer, in the order of depth; see models.output_at."""
    return {block: layers[-1] for block, layers in blocks(backbone).items()}


def _prefix(name: str) -> str | None:
    if end := TRANSITION_END.match(name):
        return end[1]
    found = PREFIX.match(name)
    return found and (f"conv_{found['pair']}" if found["pair"] else found[1])


def _by_prefixes(names: Sequence[str], with_weights: set[str]) -> dict[str, list[str]]:
    """Layers of no block belong to the one before them, where one comes after them again."""
    found: dict[str, list[str]] = {}
    current = STEM
    last = max((number for number, name in enumerate(names) if _prefix(name)), default=-1)
    for number, name in enumerate(names):
        current = _prefix(name) or current
        if number > last and name in with_weights:
            current = TOP
        found.setdefault(current, []).append(name)
    return found


def _by_endings(names: Sequence[str]) -> dict[str, list[str]]:
    """The first block that ends is the stem with the first meeting of branches."""
    found: dict[str, list[str]] = {}
    part: list[str] = []
    for name in names:
        part.append(name)
        if ENDING.match(name):
            inside = [block for block in map(_prefix, part) if block]
            found[inside[-1] if name.startswith("custom_scale") else name] = part
            part = []
    if part:
        found[TOP] = part
    return found


def _by_weights(names: Sequence[str], with_weights: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    current = STEM
    for name in names:
        if name in with_weights:
            current = name
        found.setdefault(current, []).append(name)
    return found


def resolve(backbone, chosen: str | Sequence[str] | None) -> list[str]:
    """The layers that blocks or layers are named by, in the given order.

    Args:
        backbone: a keras.Model.
        chosen: names of blocks (each stands for its last layer) or layers; 'all_blocks'; None.

    Raises:
        UserError: an unknown name, or a layer that gives no feature map; the blocks are listed.
    """
    of_block = outputs(backbone)
    if chosen is None:
        return []
    if chosen == ALL:
        holders = blocks(backbone)
        return [
            layer
            for block, layer in of_block.items()
            if any(backbone.get_layer(name).weights for name in holders[block])
            # Transformers' blocks give tokens.
            and len(models.output_shape(backbone.get_layer(layer))) == 4
        ]
    known = {layer.name: layer for layer in backbone.layers}
    found = []
    for name in chosen:
        layer = known.get(of_block.get(name, name))
        if layer is None:
            raise UserError(
                f"params.yaml, extract_features.layers: expected {ALL}, or blocks or layers of "
                f"this backbone, received {name!r}{params.nearest(name, [*of_block, *known])}; "
                f"the blocks are {', '.join(of_block)}"
            )
        shape = models.output_shape(layer)
        if len(shape) != 4:
            raise UserError(
                f"params.yaml, extract_features.layers: expected layers whose output is a feature "
                f"map (batch, rows, columns, channels), received {name!r} with {shape}; the blocks "
                f"are {', '.join(of_block)}"
            )
        found.append(layer.name)
    return found


def write_layers(names: Sequence[str]) -> None:
    """Says which layers the cached features are from; none: the backbone's output."""
    with files.replacing(LAYERS_FILE) as new:
        new.write_text(json.dumps(list(names)) + "\n", encoding="utf-8")


def read_layers() -> list[str]:
    """What `write_layers` wrote."""
    return json.loads(LAYERS_FILE.read_text(encoding="utf-8"))
