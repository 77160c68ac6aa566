"""Blocks of networks: whole, in order, and such that a network can be cut behind each."""

import keras
import numpy as np
import pytest

from stages.common import backbones, blocks, models
from stages.common.run import UserError

FAMILIES = {
    "EfficientNetB0": (18, "block3a", 40),
    "EfficientNetV2B0": (23, "block3a", 48),
    "ResNet50": (17, "conv3_block1", 512),
    "ResNet50V2": (18, "conv3_block1", 512),
    "VGG16": (5, "block3", 256),
    "Xception": (14, "block4", 728),
    "InceptionV3": (11, "mixed3", 768),
    "DenseNet121": (63, "conv2_block6", 256),
    "MobileNet": (14, "conv_13", 1024),
    "MobileNetV2": (19, "block_16", 320),
    "MobileNetV3Small": (13, "expanded_conv_10", 96),
    "ConvNeXtTiny": (20, "stage_3_block_2", 768),
}


def cut_points(model) -> set[str]:
    """Layers and operations behind which nothing reads what came before them."""
    position = {one.name: number for number, one in enumerate(model.operations)}
    last_reader: dict[str, int] = {}
    for one in model.operations:
        for node in one._inbound_nodes:
            for parent in node.parent_nodes:
                name = parent.operation.name
                last_reader[name] = max(last_reader.get(name, 0), position[one.name])
    found, reach = set(), 0
    for number, one in enumerate(model.operations):
        if reach <= number:
            found.add(one.name)
        reach = max(reach, last_reader.get(one.name, number))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_a_family_are_whole(family):
    count, name, channels = FAMILIES[family]
    model = getattr(keras.applications, family)(
        include_top=False, weights=None, input_shape=(96, 96, 3)
    )
    found = blocks.blocks(model)
    assert len(found) == count
    assert model.get_layer(blocks.outputs(model)[name]).output.shape[-1] == channels
    names = [layer for layers in found.values() for layer in layers]
    assert sorted(names) == sorted(layer.name for layer in model.layers[1:])
    ends = [models.output_at(model, layer) for layer in blocks.outputs(model).values()]
    assert {end._keras_history.operation.name for end in ends} <= cut_points(model)
    keras.backend.clear_session()


def test_a_block_that_ends_in_a_sum_without_a_layer_is_cut_behind_it():
    """As ConvNeXt's do: the branch alone would leave out what came before."""
    inputs = keras.Input((8, 8, 3))
    before = keras.layers.Conv2D(4, 3, padding="same", name="before")(inputs)
    branch = keras.layers.Conv2D(4, 3, padding="same", name="branch")(before)
    after = keras.layers.Conv2D(4, 3, name="after")(before + branch)
    whole = models.with_any_size(keras.Model(inputs, after, name="backbone"))
    cut = models.at_layers(whole, ["before", "branch"])
    images = np.random.default_rng(0).random((1, 8, 8, 3), "float32")
    of_before, of_block = cut(images)
    weights = whole.get_layer("backbone").get_layer("branch")
    np.testing.assert_allclose(of_block, of_before + weights(of_before), rtol=1e-5, atol=1e-6)


def test_a_network_whose_names_tell_nothing_has_a_block_for_each_layer_with_weights():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255, name="scale")(inputs)
    x = keras.layers.Conv2D(4, 3, name="first")(x)
    x = keras.layers.ReLU(name="bend")(x)
    x = keras.layers.Conv2D(4, 3, name="second")(x)
    assert blocks.blocks(keras.Model(inputs, x)) == {
        "stem": ["scale"],
        "first": ["first", "bend"],
        "second": ["second"],
    }


def test_all_blocks_are_those_that_give_feature_maps():
    images = keras.Input((8, 8, 3))
    patches = keras.layers.Conv2D(4, 2, strides=2, name="patches")(images)
    tokens = keras.layers.Reshape((16, 4), name="tokens")(patches)
    mixed = keras.layers.Dense(4, name="mixed")(tokens)
    backbone = keras.Model(images, keras.layers.Reshape((4, 4, 4), name="map")(mixed))
    assert blocks.outputs(backbone) == {"patches": "tokens", "mixed": "map"}
    assert blocks.resolve(backbone, "all_blocks") == ["map"]


def test_names_of_blocks_and_layers_are_resolved():
    backbone = backbones.build("tiny", None, 32)
    assert blocks.resolve(backbone, None) == []
    assert blocks.resolve(backbone, "all_blocks") == ["block0_relu", "block1_relu"]
    assert blocks.resolve(backbone, ["block1", "block0_conv"]) == ["block1_relu", "block0_conv"]
    with pytest.raises(UserError, match=r"'blok1'; did you mean 'block1'.*blocks are stem, block0"):
        blocks.resolve(backbone, ["blok1"])
