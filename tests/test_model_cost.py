import keras
import pytest
from keras import layers

from stages.common import backbones
from stages.common.model_cost import model_cost, multiply_adds


def test_a_tiny_network_by_hand(toy_classifier):
    # 32 × 32 × 3 → 16 × 16 × 8 → 8 × 8 × 16, kernels of 3 × 3; pool; 16 → 8 → 3.
    assert model_cost(toy_classifier("dense")) == {
        "multiply_adds": 16 * 16 * 8 * 27 + 8 * 8 * 16 * 72 + 16 * 8 + 8 * 3,
        # Convolutions without biases, BatchNorm with four numbers a channel, dense with biases.
        "parameters": 27 * 8 + 72 * 16 + 4 * (8 + 16) + (16 * 8 + 8) + (8 * 3 + 3),
    }


def test_the_tutorials_head_on_the_feature_map_by_hand(toy_classifier):
    backbone = 16 * 16 * 8 * 27 + 8 * 8 * 16 * 72
    # 7 filters of 7 × 7 × 16 at the 2 × 2 places of an 8 × 8 map, then 7 → 8 → 3.
    head = 2 * 2 * 7 * (7 * 7 * 16) + 7 * 8 + 8 * 3
    assert model_cost(toy_classifier("conv"))["multiply_adds"] == backbone + head


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(5, 3, strides=2, padding="same"), (8, 8, 4), 4 * 4 * 5 * 36),
        (layers.Conv2D(6, 3, groups=2, padding="valid"), (8, 8, 4), 6 * 6 * 6 * 18),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 6 * 6 * 8 * 9),
        (layers.SeparableConv2D(5, 3, padding="same"), (8, 8, 4), 64 * 4 * 9 + 64 * 4 * 5),
        (layers.Dense(7), (5,), 35),
        (layers.Dense(7), (2, 3, 5), 6 * 35),
        (layers.BatchNormalization(), (8, 8, 4), 0),
        (layers.MultiHeadAttention, None, None),
    ],
)
def test_each_kind_of_layer_by_hand(layer, shape, expected):
    if shape is None:
        layer, words = layers.MultiHeadAttention(2, 4), keras.Input((6, 8))
        layer(words, words)
    else:
        layer(keras.Input(shape))
    assert multiply_adds(layer) == expected


def test_a_kind_that_is_not_known_leaves_the_number_out():
    words = keras.Input((6, 8))
    model = keras.Model(words, layers.Dense(2)(layers.MultiHeadAttention(2, 4)(words, words)))
    assert model_cost(model) == {"parameters": model.count_params()}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("MobileNet", 569),  # Howard et al. 2017, Table 4
        ("MobileNetV2", 300),  # Sandler et al. 2018, Table 4
        ("EfficientNetB0", 390),  # Tan and Le 2019, Table 2
    ],
)
def test_published_networks_cost_what_is_published(name, millions):
    model = getattr(keras.applications, name)(weights=None)
    assert model_cost(model)["multiply_adds"] == pytest.approx(millions * 1e6, rel=0.015)


def test_the_default_backbone_costs_what_its_table_of_blocks_says():
    # (kernel, input channels, expanded, output channels, side of the input, stride)
    blocks = [(3, 32, 32, 16, 112, 1)]
    for kernel, repeats, inner, outer, side, stride in (
        (3, 2, 16, 24, 112, 2),
        (5, 2, 24, 40, 56, 2),
        (3, 3, 40, 80, 28, 2),
        (5, 3, 80, 112, 14, 1),
        (5, 4, 112, 192, 14, 2),
        (3, 1, 192, 320, 7, 1),
    ):
        blocks.append((kernel, inner, 6 * inner, outer, side, stride))
        after = (kernel, outer, 6 * outer, outer, side // stride, 1)
        blocks += [after] * (repeats - 1)
    expected = 112 * 112 * 32 * 27 + 7 * 7 * 320 * 1280
    for kernel, inner, expanded, outer, side, stride in blocks:
        smaller = side // stride
        expected += side**2 * inner * expanded if expanded != inner else 0
        expected += smaller**2 * expanded * (kernel**2 + outer)
    cost = model_cost(backbones.build("efficientnet_lite0", None, 224))
    assert cost["multiply_adds"] == expected
    # With the classifier of ImageNet. The network's page says 4.7 million, and 407 million
    # multiply-adds: 5.7 % more than there are in its convolutions and dense layers.
    assert cost["parameters"] + 1280 * 1000 + 1000 == pytest.approx(4.7e6, rel=0.01)
    assert expected + 1280 * 1000 == pytest.approx(407e6, rel=0.06)
