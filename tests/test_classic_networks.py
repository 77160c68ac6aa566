"""LeNet-5, AlexNet and SE-ResNet-50 against the figures of their papers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from stages.common import backbones, blocks, classic_networks, models
from stages.common.run import UserError


def trained_parameters(model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("name", "feature_map", "parameters"),
    [
        # C5 as in the paper; C1 of three colours instead of one, C3 with all connections.
        ("lenet5", (1, 1, 120), 3 * 150 + 6 + 16 * (6 * 25 + 1) + 48_120),
        # The 60,965,224 of the grouped network less its three fully connected layers.
        ("alexnet", (6, 6, 256), 60_965_224 - 37_752_832 - 16_781_312 - 4_097_000),
        # ResNet-50's 25,557,032 and 2,530,992 of squeeze and excitation, less the top's 2,049,000.
        ("se_resnet50", (7, 7, 2048), 25_557_032 + 2_530_992 - 2_049_000),
    ],
)
def test_shapes_and_numbers_of_parameters(name, feature_map, parameters, tmp_path):
    row = backbones.BACKBONES[name]
    backbone = backbones.build(name, None, row.native_size)
    assert backbone.output_shape[1:] == feature_map
    assert trained_parameters(backbone) == parameters
    assert backbone.layers[1].name == "input_scaling"
    models.save(models.with_any_size(backbone), tmp_path / "b.keras")
    loaded = keras.models.load_model(tmp_path / "b.keras", compile=False)  # none of our code
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3)).astype("float32")
    np.testing.assert_allclose(
        loaded(images), models.with_any_size(backbone)(images), rtol=1e-4, atol=1e-5
    )
    keras.backend.clear_session()


def test_blocks_are_those_of_the_papers():
    of = {name: blocks.blocks(backbones.build(name, None, 96)) for name in ("lenet5", "alexnet")}
    assert list(of["lenet5"]) == ["stem", "block1", "block2", "block3"]
    assert list(of["alexnet"]) == ["stem", *(f"block{number}" for number in range(1, 6))]
    senet = blocks.blocks(backbones.build("se_resnet50", None, 64))
    assert [name for name in senet if name != "stem"] == [
        f"conv{stage}_block{number}"
        for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3))
        for number in range(1, count + 1)
    ]


def test_response_normalisation_is_tensorflows():
    import tensorflow as tf

    values = np.random.default_rng(0).normal(0, 50, (2, 3, 3, 7)).astype("float32")
    found = classic_networks._response_normalised(ops.convert_to_tensor(values))
    expected = tf.nn.local_response_normalization(
        values, depth_radius=2, bias=2, alpha=1e-4, beta=0.75
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_all_of_alexnet_trains():
    backbone = backbones.build("alexnet", None, 96)
    model = keras.Sequential([backbone, layers.Flatten(), layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [weight.numpy() for weight in backbone.trainable_weights]
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3)).astype("float32")
    model.fit(images, np.array([0, 1, 0, 1]), verbose=0)
    for old, new in zip(before, backbone.trainable_weights, strict=True):
        assert np.abs(old - new.numpy()).max() > 0, new.path


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"image_size: too small for lenet5, received 16"):
        backbones.build("lenet5", None, 16)
