"""A convolution with the BatchNorm behind it, computed as one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stages.common import backbones, folding, runtime


@pytest.fixture
def network():
    """A network that has each kind of convolution, BatchNorms with statistics of their own."""
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="plain")(images)
    x = layers.BatchNormalization(name="plain_norm")(x)
    x = layers.ReLU(max_value=6)(x)
    x = layers.Conv2D(6, 1, padding="same", name="pointwise")(x)
    x = layers.BatchNormalization(name="pointwise_norm")(x)
    x = layers.Conv2D(8, 1, strides=2, use_bias=False, name="strided")(x)
    x = layers.BatchNormalization(name="strided_norm")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(scale=False, name="depthwise_norm")(x)
    twice = layers.Conv2D(8, 1, name="twice")(x)  # goes to two layers: stays as it is
    x = layers.Add()([twice, layers.BatchNormalization(name="twice_norm")(twice)])
    x = layers.Conv2D(4, 1, activation="relu", name="active")(x)
    x = layers.BatchNormalization(center=False, name="active_norm")(x)
    model = keras.Model(images, [x, twice], name="backbone")
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([random.uniform(0.5, 1.5, w.shape) - 0.4 for w in layer.get_weights()])
    return model


def images(count: int = 4, side: int = 16):
    return np.random.default_rng(1).uniform(-1, 1, (count, side, side, 3)).astype("float32")


def test_it_finds_what_can_be_folded_and_nothing_else(network):
    assert folding.foldable(network) == {
        "plain_norm": "plain",
        "pointwise_norm": "pointwise",
        "strided_norm": "strided",
        "depthwise_norm": "depthwise",
    }


@pytest.mark.parametrize("is_trained", [False, True])
def test_outputs_and_gradients_are_those_of_the_network(network, is_trained):
    folded = folding.folded(network, is_trained)
    weights = [variable.value for variable in network.trainable_variables]
    found = []
    for model in (network, folded):
        with tf.GradientTape() as tape:
            outputs = model(images(), training=False)
            loss = sum(tf.reduce_mean(output**2) for output in outputs)
        found.append((outputs, tape.gradient(loss, weights)))
    for expected, received in zip(*(outputs for outputs, _ in found), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    for expected, received in zip(*(gradients for _, gradients in found), strict=True):
        np.testing.assert_allclose(
            received, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
        )


def test_it_follows_the_weights_and_leaves_the_network_as_it_was(network):
    before = network.get_config()
    folded = folding.folded(network)
    network.get_layer("plain_norm").gamma.assign(np.full(8, 3.0))
    expected, _ = network(images(), training=False)
    received, _ = folded(images(), training=False)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    assert network.get_config() == before


def test_what_is_trained_takes_folds_of_one_pixel_as_products(network):
    """The other way round training takes longer, which no other test would notice."""

    def operations(is_trained):
        folded = folding.folded(network, is_trained)
        graph = (
            tf.function(lambda x: folded(x, training=False)).get_concrete_function(images()).graph
        )
        kinds = [operation.type for operation in graph.get_operations()]
        return kinds.count("MatMul"), kinds.count("Conv2D")

    assert operations(is_trained=False) == (0, 5)
    assert operations(is_trained=True) == (1, 4)


@pytest.mark.parametrize(
    ("name", "folds"), [("efficientnet_lite0", 49), ("mobilenet_v3_small", 34), ("resnet50", 53)]
)
def test_whole_networks_give_the_same_features(name, folds):
    network = backbones.build(name, None, 64)
    pictures = 127.5 * (images(2, 64) + 1)
    assert len(folding.foldable(network)) == folds
    expected = network(pictures, training=False)
    received = folding.folded(network)(pictures, training=False)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_mixed_precision_is_that_of_the_layers(network):
    runtime.set_precision(network, "mixed_bfloat16")
    expected = network(images(), training=False)
    received = folding.folded(network)(images(), training=False)
    assert [tensor.dtype for tensor in received] == [tensor.dtype for tensor in expected]
    # bfloat16 has eight bits.
    np.testing.assert_allclose(
        tf.cast(received[0], tf.float32), tf.cast(expected[0], tf.float32), rtol=0.1, atol=0.1
    )
