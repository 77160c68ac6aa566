"""Networks for grey and for many channels: what becomes of kernels, scaling and features."""

import io

import keras
import numpy as np
import pytest
import tifffile
import yaml

from stages import backbone as stage
from stages.common import (
    augment,
    backbones,
    channels,
    explain,
    geometry,
    heads,
    image_augmentation,
    models,
    params,
)
from stages.common.run import UserError
from tests.toy_project import ROOT
from tools import check_params, export, predict

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (2, 40, 30, 1)).astype("float32")
# The first convolution, and whether all colours are scaled alike.
QUICK = {
    "efficientnet_lite0": ("stem_conv", True),
    "convnext_tiny": (None, False),  # inside the stem, a model of its own
    "vgg16": ("block1_conv1", False),
    "lenet5": ("block1_conv", True),
}
# One of each other family, each with its own way of scaling or its own kind of stem.
SLOW = {
    "efficientnet_b0": ("stem_conv", True),
    "efficientnet_v2_b0": ("stem_conv", False),
    "efficientnet_v2_s": ("stem_conv", True),
    "mobilenet": ("conv1", True),
    "mobilenet_v2": ("Conv1", True),
    "mobilenet_v3_small": ("conv", True),
    "xception": ("block1_conv1", True),
    "inception_v3": (None, True),
    "inception_resnet_v2": (None, True),
    "nasnet_mobile": ("stem_conv1", True),
    "resnet50_v2": ("conv1_conv", True),
    "densenet121": ("conv1_conv", False),
    "resnet50": ("conv1_conv", False),
    "alexnet": ("block1_conv", False),
    "se_resnet50": ("conv1_conv", False),
}
NETWORKS = {**QUICK, **SLOW}


def built(name: str, side: int = 96):
    weights = "imagenet" if name == "efficientnet_lite0" else None
    return backbones.build(name, weights, side)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_grey_picture_gives_what_it_gives_three_times_over(name, tmp_path):
    conv, alike = NETWORKS[name]
    of_rgb = built(name)
    of_grey = channels.with_channels(of_rgb, 1, averaged=True)
    assert [layer.name for layer in of_grey.layers] == [layer.name for layer in of_rgb.layers]
    if conv:
        kernel = of_grey.get_layer(conv).kernel.numpy()
        np.testing.assert_allclose(
            kernel, of_rgb.get_layer(conv).kernel.numpy().sum(axis=2, keepdims=True), rtol=1e-5
        )
    models.save(models.with_any_size(of_grey), tmp_path / "grey.keras")
    expected = models.with_any_size(of_rgb).predict(np.repeat(GREY, 3, axis=-1), verbose=0)
    loaded = keras.models.load_model(tmp_path / "grey.keras", compile=False)  # none of our code
    assert loaded.input_shape == (None, None, None, 1)
    found = loaded.predict(GREY, verbose=0)
    if alike:
        assert np.abs(found - expected).max() < 1e-3 * expected.std()
    else:  # the averages of mean and deviation stand in for each colour's own
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    keras.backend.clear_session()


@pytest.mark.parametrize("count", [2, 4, 7])
def test_equal_channels_give_what_grey_gives(count):
    for name in ("tiny", "alexnet"):
        of_rgb = built(name)
        many, one = (channels.with_channels(of_rgb, n, averaged=True) for n in (count, 1))
        pictures = RANDOM.integers(0, 256, (2, 96, 96, 1)).astype("float32")
        expected = one.predict(pictures, verbose=0)
        found = many.predict(np.repeat(pictures, count, axis=-1), verbose=0)
        assert np.abs(found - expected).max() < 1e-3 * expected.std(), name
    keras.backend.clear_session()


def test_scaling_that_was_learned_is_averaged_too():
    """EfficientNet keeps mean and variance of each colour as weights, which ImageNet's have."""
    of_rgb = backbones.build("efficientnet_b0", None, 32)
    (layer,) = [one for one in of_rgb.layers if isinstance(one, keras.layers.Normalization)]
    layer.set_weights([np.array([0.4, 0.5, 0.6]), np.array([0.04, 0.05, 0.09]), np.array(0)])
    of_grey = channels.with_channels(of_rgb, 1, averaged=True)
    scaled = of_grey.get_layer(layer.name)(np.full((1, 1, 1, 1), 0.7, "float32"))
    np.testing.assert_allclose(scaled, 0.2 / np.sqrt(0.06), rtol=1e-5)
    keras.backend.clear_session()


def test_a_network_from_scratch_gets_new_kernels_and_the_same_ones_in_every_run():
    def kernel(averaged):
        of_rgb = backbones.build("tiny", None, 32)
        adapted = channels.with_channels(of_rgb, 4, averaged=averaged)
        return adapted.get_layer("block0_conv").kernel.numpy()

    assert np.ptp(kernel(True), axis=2).max() == 0
    assert np.ptp(kernel(False), axis=2).min() > 0
    np.testing.assert_array_equal(kernel(False), kernel(False))


def test_three_channels_are_the_network_itself():
    of_rgb = backbones.build("tiny", None, 32)
    assert channels.with_channels(of_rgb, 3, averaged=True) is of_rgb


def test_a_network_that_begins_with_no_convolution_is_refused():
    inputs = keras.Input((8, 8, 3), name="images")
    outputs = keras.layers.Conv2D(4, 3)(keras.layers.Dense(5)(inputs))
    with pytest.raises(UserError, match=r"preprocess\.channels: this network takes 3.*received 2"):
        channels.with_channels(keras.Model(inputs, outputs), 2, averaged=True)
    flat = keras.Model(inputs, keras.layers.Reshape((4, 4, 12))(inputs))
    with pytest.raises(UserError, match=r"preprocess\.channels: this network takes 3.*received 2"):
        channels.with_channels(flat, 2, averaged=True)


def test_own_weights_of_rgb_are_adapted_and_those_of_as_many_channels_taken(tmp_path):
    section = {
        "library": "keras",
        "name": "tiny",
        "own_weights": str(tmp_path),
        "image_size": 32,
    }

    def network(file: str):
        content = {"backbone": {**section, "weights": file}}
        parameters = params.check(content, "backbone", stage.BackboneParams)
        return stage.network(parameters, 1)

    of_rgb = backbones.build("tiny", None, 32)
    of_rgb.set_weights([RANDOM.normal(0, 1, weight.shape) for weight in of_rgb.weights])
    of_grey = channels.with_channels(of_rgb, 1, averaged=True)
    models.save(of_rgb, tmp_path / "rgb.keras")
    models.save(models.with_any_size(of_grey), tmp_path / "grey.keras")
    of_grey.save_weights(tmp_path / "grey.weights.h5")
    for file in ("rgb.keras", "grey.keras", "grey.weights.h5"):
        for found, expected in zip(network(file).get_weights(), of_grey.get_weights(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_classifier_of_any_channels_trains_and_is_explained(count, tmp_path):
    of_rgb = backbones.build("tiny", None, 32)
    backbone = models.with_any_size(channels.with_channels(of_rgb, count, averaged=True))
    head = heads.build("linear", (16,), 3, hidden_units=[1], dropout=0.0)
    model = models.assemble(backbone, head)
    models.save(model, tmp_path / "one.keras")
    loaded = models.load(tmp_path / "one.keras")
    models.save(loaded, tmp_path / "two.keras")
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()
    pictures = RANDOM.integers(0, 256, (6, 32, 32, count)).astype("uint8")
    np.testing.assert_allclose(
        loaded.predict(pictures, verbose=0), model.predict(pictures, verbose=0), rtol=1e-5
    )
    changes = {
        "horizontal_flip": True,
        "vertical_flip": True,
        "quarter_turns": True,
        "crop_area": 0.5,
        "shift": 0.2,
        "rand_augment": 0.0,
        "erasing": 0.5,
        "mixup": 0.0,
        "cutmix": 1.0,
    }
    parameters = params.check(
        {"augment": changes}, "augment", image_augmentation.ImageAugmentationParams
    )
    trained = models.training_model(
        model,
        image_augmentation.augmentation_layer(parameters, 0, 32),
        [32, 32, count],
        image_augmentation.mixture_layer(parameters, 0),
    )
    trained.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    before = backbone.get_layer("backbone").get_layer("block0_conv").kernel.numpy()
    history = trained.fit(pictures, np.eye(3)[[0, 1, 2, 0, 1, 2]], verbose=0)
    assert np.isfinite(history.history["loss"][0])
    after = backbone.get_layer("backbone").get_layer("block0_conv").kernel.numpy()
    assert np.abs(after - before).max() > 0
    (heat, *_) = explain.heat_maps(model, pictures, np.zeros(6, int), batch_size=4)
    assert explain.overlay(pictures[0], heat).shape == (32, 32, 3)


@pytest.mark.parametrize("count", [1, 5])
def test_a_model_file_of_other_channels_predicts_and_is_exported(count, tmp_path):
    of_rgb = backbones.build("tiny", None, 32)
    backbone = models.with_any_size(channels.with_channels(of_rgb, count, averaged=True))
    head = heads.build("linear", (16,), 2, hidden_units=[1], dropout=0.0)
    models.save(models.assemble(backbone, head), tmp_path / "model.keras", ["a", "b"])
    classifier = predict.Classifier(tmp_path / "model.keras")
    pixels = RANDOM.integers(0, 256, (40, 50, count)).astype("uint8")
    file = io.BytesIO()
    layout = "contig" if count > 1 else None
    tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig=layout)
    picture = classifier.picture(file.getvalue())[np.newaxis]
    assert picture.shape == (1, 32, 32, count)
    (probabilities,) = classifier.probabilities(picture)
    assert classifier.overlays(picture, np.array([0]))[0].shape == (32, 32, 3)
    exported = export.fixed_size(models.load(tmp_path / "model.keras"))
    assert exported.input_shape == (None, 32, 32, count)
    found = exported.predict(picture.astype("float32"), verbose=0)[0]
    np.testing.assert_allclose(found, probabilities, atol=1e-5)


def test_all_sections_are_checked_together():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    check_params.check(content, "params.yaml")
    content["preprocess"]["channels"] = 0
    with pytest.raises(UserError, match=r"preprocess\.channels: expected 3 \(RGB\), 1.*received 0"):
        check_params.check(content, "params.yaml")
    content["preprocess"]["channels"] = 1
    check_params.check(content, "params.yaml")
    content["fine_tune"]["augment"]["rand_augment"] = 0.5
    with pytest.raises(UserError, match=r"fine_tune\.augment\.rand_augment: expected 0"):
        check_params.check(content, "params.yaml")


def test_symmetries_leave_channels_alone():
    picture = RANDOM.integers(0, 256, (1, 4, 4, 5)).astype("uint8")
    turned = augment.apply(picture, augment.LEFT_RIGHT)
    np.testing.assert_array_equal(turned, picture[:, :, ::-1])


def test_changes_of_colour_are_refused_without_colours():
    parameters = image_augmentation.ImageAugmentationParams(
        horizontal_flip=False,
        vertical_flip=False,
        quarter_turns=False,
        crop_area=1.0,
        shift=0.0,
        rand_augment=0.5,
        erasing=0.0,
        mixup=0.0,
        cutmix=0.0,
    )
    image_augmentation.check_channels(parameters, 3)
    with pytest.raises(UserError, match=r"rand_augment: expected 0 with preprocess\.channels: 1"):
        image_augmentation.check_channels(parameters, 1)


@pytest.mark.parametrize(("count", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
def test_what_people_see_of_other_channels(count, expected):
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8), (4, 6, count))
    np.testing.assert_array_equal(geometry.shown(pixels)[0, 0], expected)
    assert geometry.shown(pixels).shape == (4, 6, 3)
