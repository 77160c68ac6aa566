"""KerasHub's networks, from presets that the test saves: an optional extra."""

from pathlib import Path

import keras
import numpy as np
import pytest

from stages import backbone as backbone_stage
from stages import fine_tune
from stages.common import blocks, heads, hub, layer_table, models
from stages.common.run import UserError
from stages.common.training import optimizers
from tests.training_toys import parameters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keras_hub():
    return hub.library()


def save_preset(network, keras_hub, folder, **converter):
    network.save_to_preset(folder)
    # The converter names its network's class in the file.
    kind = {
        "ResNetBackbone": keras_hub.layers.ResNetImageConverter,
        "ViTBackbone": keras_hub.layers.ViTImageConverter,
        "DINOV2Backbone": keras_hub.layers.DINOV2ImageConverter,
    }[type(network).__name__]
    kind(**converter).save_to_preset(folder)
    return str(folder)


@pytest.fixture(scope="module")
def resnet(keras_hub, tmp_path_factory):
    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=False,
    )
    folder = tmp_path_factory.mktemp("presets") / "resnet"
    scaling = {"scale": [0.02, 0.01, 0.03], "offset": [-1.0, -2.0, 0.5]}
    return network, save_preset(network, keras_hub, folder, image_size=(64, 64), **scaling), scaling


@pytest.fixture(scope="module")
def vit(keras_hub, tmp_path_factory):
    network = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    folder = tmp_path_factory.mktemp("presets") / "vit"
    return network, save_preset(network, keras_hub, folder, scale=1 / 127.5, offset=-1.0)


def test_a_convolutional_network_with_its_own_scaling(resnet, tmp_path):
    network, preset, scaling = resnet
    backbone = hub.build(preset, True, 32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    expected = network.predict(images * scaling["scale"] + scaling["offset"], verbose=0)
    np.testing.assert_allclose(backbone.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)
    assert hub.build(preset, True, None).input_shape == (None, 64, 64, 3)
    random = hub.build(preset, False, 32).predict(images, verbose=0)
    assert np.abs(random - expected).max() > 1e-3
    assert len(blocks.blocks(backbone)) > 3  # its layers, not one model inside a model
    head = heads.build("linear", backbone.output_shape[-1:], 3, hidden_units=[1], dropout=0.0)
    classifier = models.assemble(models.with_any_size(backbone), head)
    models.save(classifier, tmp_path / "hub.keras", ["a", "b", "c"])
    again = models.load(tmp_path / "hub.keras").predict(images, verbose=0)
    np.testing.assert_allclose(again, classifier.predict(images, verbose=0), rtol=1e-4)


def test_a_network_without_weights_is_the_same_in_every_run(resnet):
    given = backbone_stage.BackboneParams(
        library="keras_hub",
        name=str(resnet[1]),
        weights=None,
        own_weights=str(Path(resnet[1]).parent),
        image_size=32,
    )
    first, second = (backbone_stage.network(given).get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_tokens_of_patches_become_a_map_in_the_pictures_order(vit):
    network, preset = vit
    backbone = hub.build(preset, True, None)
    assert backbone.output_shape == (None, 4, 4, 16)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    tokens = network.predict(images / 127.5 - 1, verbose=0)
    assert tokens.shape == (2, 17, 16)  # a class token before 16 patches
    found = backbone.predict(images, verbose=0)
    np.testing.assert_allclose(found[:, 1, 2], tokens[:, 1 + 4 + 2], rtol=1e-3, atol=1e-4)


def test_a_network_whose_encoder_gives_all_its_blocks_is_cut_listed_and_tuned(keras_hub, tmp_path):
    network = keras_hub.models.DINOV2Backbone(
        patch_size=16,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(96, 96, 3),
    )
    backbone = hub.build(save_preset(network, keras_hub, tmp_path / "dino"), True, None)
    assert blocks.resolve(backbone, "all_blocks")
    with pytest.raises(UserError, match=r"encoder. with \(None, 37, 16\)"):
        blocks.resolve(backbone, ["dinov2_backbone_encoder"])
    head = heads.build("linear", backbone.output_shape[-1:], 3, hidden_units=[1], dropout=0.0)
    classifier = models.assemble(models.with_any_size(backbone), head)
    fine_tune.unfreeze(classifier, "all", batch_norm_trainable=True)
    shapes = {row.name: row.output_shape for row in layer_table.rows(classifier, set())}
    assert shapes["dinov2_backbone_encoder"] == "37 × 16"
    trained = models.training_model(classifier, keras.layers.Identity(), [96, 96, 3])
    given = parameters(clip_norm=1.0)
    rates = fine_tune.rate_factors(
        trained.trainable_variables, classifier.get_layer("backbone"), 0.75
    )
    optimizers.compile_model(trained, given, 1, lambda epoch: rates)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    loss = trained.train_on_batch(images, np.eye(3, dtype="float32")[:2])[0]
    assert np.isfinite(loss)


def test_mistakes_are_named(vit, tmp_path):
    with pytest.raises(UserError, match=r"takes 32 pixels, received 48; set it to 32 or null"):
        hub.build(vit[1], True, 48)
    with pytest.raises(UserError, match=r"received 'resnet_50_imagnet'; did you mean 'resnet_50_i"):
        hub.build("resnet_50_imagnet", True, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="can't be loaded as an image network"):
        hub.build(str(tmp_path / "empty"), True, None)
    keras.backend.clear_session()
