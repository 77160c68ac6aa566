"""backbone.weights: a file of one's own."""

import keras
import numpy as np
import pytest

from stages import backbone as stage
from stages.common import backbones, heads, models, params, paths
from stages.common.run import UserError


@pytest.fixture
def other():
    """A tiny network with weights that nothing draws by itself."""
    network = backbones.build("tiny", None, 48)
    random = np.random.default_rng(0)
    network.set_weights([random.normal(0, 1, weight.shape) for weight in network.weights])
    return network


def assert_equal_weights(one, other):
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def parameters(weights, name="tiny", library="keras"):
    section = {
        "library": library,
        "name": name,
        "weights": weights,
        "own_weights": "mine",
        "image_size": 32,
    }
    return params.check({"backbone": section}, "backbone", stage.BackboneParams)


def test_from_every_kind_of_file(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    classifier = models.assemble(
        models.with_any_size(other), heads.build("linear", (16,), 3, hidden_units=[1], dropout=0.0)
    )
    models.save(classifier, folder / "classifier.keras", ["a", "b", "c"])
    models.save(models.with_any_size(other), folder / "backbone.keras")
    other.save(folder / "network.keras")
    other.save_weights(folder / "plain.weights.h5")
    for file in ("classifier.keras", "backbone.keras", "network.keras", "plain.weights.h5"):
        assert_equal_weights(stage.network(parameters(file)), other)


def test_the_folder_of_a_preset_lies_where_dvc_notices_its_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine/preset", "elsewhere/preset"):
        (tmp_path / folder).mkdir(parents=True)
    assert parameters("preset", "mine/preset", "keras_hub").name == "mine/preset"
    assert parameters("preset", "resnet_50_imagenet", "keras_hub").name == "resnet_50_imagenet"
    with pytest.raises(UserError, match=r"or a folder in mine \(.*'elsewhere/preset'; move it"):
        parameters("preset", "elsewhere/preset", "keras_hub")


def test_mistakes_are_named(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    other.save(tmp_path / "mine" / "tiny.keras")
    other.save_weights(tmp_path / "mine" / "tiny.weights.h5")
    with pytest.raises(UserError, match=r"tint\.keras does not exist; mine has tiny\.keras, tiny"):
        stage.network(parameters("tint.keras"))
    with pytest.raises(UserError, match=r"tiny\.keras holds another network .* \(5, 5, 3, 6\)"):
        stage.network(parameters("tiny.keras", "lenet5"))
    with pytest.raises(UserError, match=r"tiny\.weights\.h5 holds no weights of this network"):
        stage.network(parameters("tiny.weights.h5", "lenet5"))
    (tmp_path / "mine" / "broken.keras").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken\.keras can't be loaded as a Keras model"):
        stage.network(parameters("broken.keras"))
    with pytest.raises(UserError, match=r"backbone\.weights: expected imagenet, null or a file"):
        parameters("imagnet", "resnet50")
    with pytest.raises(UserError, match=r"backbone\.weights: expected preset, null or a file"):
        parameters("imagenet", "resnet_50_imagenet", "keras_hub")
    with pytest.raises(UserError, match=r"backbone\.name: expected one of the .*'resnet50'"):
        parameters(None, "resnet5O")


def test_a_stage_takes_what_an_earlier_run_trained(other, run_stage, tmp_path):
    (tmp_path / "models" / "own").mkdir(parents=True)
    models.save(models.with_any_size(other), tmp_path / "models" / "own" / "mine.keras")
    (tmp_path / "params.yaml").write_text(
        "seed: 0\n"
        "preprocess: {image_size: 32, resize: pad, channels: 3}\n"
        "backbone: {library: keras, name: tiny, weights: mine.keras, own_weights: models/own, "
        "image_size: null}\n"
    )
    done = run_stage("backbone")
    assert done.returncode == 0, done.stderr
    saved = models.load(tmp_path / paths.BACKBONE)
    assert_equal_weights(saved.get_layer("backbone"), other)
    assert saved.get_layer("resize").pad_to_aspect_ratio


def test_random_weights_follow_from_the_seed_and_loaded_ones_do_not(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    other.save(tmp_path / "mine" / "tiny.keras")
    drawn = [stage.network(parameters(None), seed=seed).get_weights()[0] for seed in (0, 1, 1)]
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert_equal_weights(stage.network(parameters("tiny.keras"), seed=1), other)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_weights_that_were_trained_behind_another_scaling_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    constructor = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50"}[name]
    inputs = keras.Input((32, 32, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    network = getattr(keras.applications, constructor)(
        include_top=False, weights=None, input_tensor=scaled
    )
    keras.Model(inputs, network.output).save(tmp_path / "mine" / "zero_to_one.keras")
    with pytest.raises(UserError, match=r"one\.keras begins with pixels × 0\.003922 \+ 0"):
        stage.network(parameters("zero_to_one.keras", name))


def test_a_layer_that_nobody_knows_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    class Unknown(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    keras.Sequential([keras.Input((8,)), Unknown()]).save(tmp_path / "mine" / "custom.keras")
    with pytest.raises(UserError, match=r"custom\.keras can't .*a layer Unknown, which") as caught:
        stage.network(parameters("custom.keras"))
    assert "\n" not in str(caught.value)


def test_input_scaling_that_only_published_weights_bring_comes_along(tmp_path, monkeypatch):
    """EfficientNet-B0 as keras.applications builds it for ImageNet's weights, and for none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    plain = backbones.build("efficientnet_b0", None, 32)
    normalized = next(
        layer.name for layer in plain.layers if type(layer).__name__ == "Normalization"
    )

    def call(layer, *arguments, **keywords):
        found = layer(*arguments, **keywords)
        return keras.layers.Rescaling([2.0, 3.0, 4.0])(found) if layer.name == normalized else found

    published = keras.models.clone_model(
        plain, clone_function=lambda layer: layer, call_function=call
    )
    published.save(tmp_path / "mine" / "b0.keras")
    network = stage.network(parameters("b0.keras", "efficientnet_b0"))
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    expected = published(images).numpy()
    largest = np.abs(expected).max()
    np.testing.assert_allclose(network(images), expected, rtol=0, atol=1e-3 * largest)
    assert np.abs(plain(images) - expected).max() > 0.1 * largest
    # A file of weights alone can't say whether there was such a layer.
    published.save_weights(tmp_path / "mine" / "b0.weights.h5")
    with pytest.raises(UserError, match=r"expected a \.keras file of this network, received .*b0"):
        stage.network(parameters("b0.weights.h5", "efficientnet_b0"))
