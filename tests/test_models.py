import subprocess
import sys

import keras
import numpy as np
import pytest

from stages.common import augment, layer_table, models
from stages.fine_tune import unfreeze

PLAIN_LOAD = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 25, 3), dtype=np.uint8)


@pytest.mark.parametrize("head", ["linear", "dense", "conv"])
def test_saved_model_loads_without_our_code_and_gives_the_same_output(
    toy_classifier, images, tmp_path, head
):
    model = toy_classifier(head, temperature=1.7)
    expected = model.predict(images, verbose=0)
    models.save(model, tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", PLAIN_LOAD, "model.keras", "images.npy", "outputs.npy"],
        cwd=tmp_path,  # where no module of ours can be imported
        check=True,
        capture_output=True,
    )
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), expected)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-6)


def test_two_saves_and_a_reload_are_the_same_bytes(toy_classifier, tmp_path):
    first, second, third = (tmp_path / f"{number}.keras" for number in range(3))
    model = toy_classifier("dense")
    models.save(model, first)
    models.save(model, second)
    models.save(models.load(first), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second, third]


def test_bytes_and_floats_of_any_size_are_taken(toy_classifier, images):
    model = toy_classifier("linear")
    as_bytes = model.predict(images, verbose=0)
    as_floats = model.predict(images.astype("float32"), verbose=0)
    np.testing.assert_array_equal(as_bytes, as_floats)
    assert model.predict(images[:, :7, :9], verbose=0).shape == (3, 3)


def test_temperature_divides_the_logits_and_moves_no_decision(toy_classifier, images):
    plain = toy_classifier("linear")
    cooled = models.with_temperature(plain, 4.0)
    logits = models.logits_of(plain).predict(images, verbose=0)
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum(axis=1, keepdims=True)
    probabilities = cooled.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    assert models.temperature_of(cooled) == pytest.approx(4.0)
    np.testing.assert_array_equal(
        probabilities.argmax(axis=1), plain.predict(images, verbose=0).argmax(axis=1)
    )


def test_layer_table_lists_every_layer_with_its_phases(toy_classifier, tmp_path):
    model = toy_classifier("conv")
    before = layer_table.trainable_in_head_phase(model)
    unfreeze(model, "block1_conv", False)
    table = {row.name: row for row in layer_table.rows(model, before)}
    assert sum(row.parameters for row in table.values()) == model.count_params()
    assert not table["block0_conv"].trainable_in_fine_tune
    assert table["block1_conv"].trainable_in_fine_tune
    assert not table["block1_conv"].trainable_in_train_head
    assert table["logits"].trainable_in_train_head
    assert table["logits"].trainable_in_fine_tune
    assert table["block1_conv"].output_shape == "8 × 8 × 16"
    layer_table.write(tmp_path / "layers.csv", list(table.values()))
    header, first, *_ = (tmp_path / "layers.csv").read_text().splitlines()
    assert header.startswith("index,name,kind,output_shape,parameters,trainable_in_train_head")
    assert first.startswith("0,images,InputLayer")
    head_parameters = model.get_layer("head").count_params()
    assert f"{head_parameters:,} in train_head" in layer_table.totals(list(table.values()))


def test_the_tutorials_head_is_built_as_it_stands_there():
    from stages.common import heads

    head = heads.build("conv", (7, 7, 1280), 10, hidden_units=[512], dropout=0.2)
    kinds = [type(layer).__name__ for layer in head.layers[1:]]
    assert kinds == [
        "Conv2D",
        "BatchNormalization",
        "GlobalAveragePooling2D",
        "Dropout",
        "Flatten",
        "Dense",
        "Dense",
    ]
    assert head.get_layer("head_conv").kernel.shape == (7, 7, 1280, 7)
    assert head.get_layer("head_hidden").units == 512
    assert head.get_layer("head_dropout").rate == 0.2
    assert keras.activations.serialize(head.get_layer("head_hidden").activation) == "relu"


@pytest.mark.parametrize("head", ["dense", "conv"])
def test_training_model_out_of_training_gives_the_classifiers_logits(toy_classifier, images, head):
    model = toy_classifier(head)
    augmentation = augment.random_symmetry_layer([augment.IDENTITY, augment.LEFT_RIGHT], seed=0)
    trained = models.training_model(model, augmentation, images.shape[1:])
    np.testing.assert_allclose(
        trained(images, training=False),
        models.logits_of(model).predict(images, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("head", ["dense", "conv"])
def test_a_plain_call_is_no_training(toy_classifier, images, head, tmp_path):
    models.save(toy_classifier(head), tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras", compile=False)
    images = images.astype("float32")
    np.testing.assert_allclose(
        model(images), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6
    )
