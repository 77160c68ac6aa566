import numpy as np
import pytest
import tensorflow as tf

from stages.common import image_augmentation, models
from stages.common.image_augmentation import ImageAugmentationParams
from tests.test_params import error_of

OFF = {
    "horizontal_flip": False,
    "vertical_flip": False,
    "quarter_turns": False,
    "crop_area": 1.0,
    "shift": 0.0,
    "rand_augment": 0.0,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
COUNT, SIDE = 64, 32


@pytest.fixture
def images() -> np.ndarray:
    """Smooth pictures: red rises to the right, green downwards, blue tells images apart."""
    ramp = np.linspace(50, 200, SIDE)
    picture = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp, (SIDE, 1)).T], axis=-1)
    blue = np.broadcast_to(np.linspace(60, 120, COUNT)[:, None, None, None], (COUNT, SIDE, SIDE, 1))
    red_green = np.broadcast_to(picture, (COUNT, SIDE, SIDE, 2))
    return np.concatenate([red_green, blue], axis=-1).astype("float32")


def augmented(images, seed=0, **changes) -> np.ndarray:
    given = ImageAugmentationParams(**{**OFF, **changes})
    layer = image_augmentation.augmentation_layer(given, seed)
    np.testing.assert_array_equal(layer(images, training=False), images)
    return np.asarray(layer(images, training=True))


def test_all_off_changes_nothing(images):
    np.testing.assert_array_equal(augmented(images), images)


def test_a_crop_keeps_at_least_its_area_and_stretches_by_a_third_at_most(images):
    result = augmented(images, crop_area=0.25)
    spans = np.ptp(result[..., :2], axis=(1, 2)) / 150  # (images, [width, height]), of the whole
    area, stretch = spans.prod(axis=1), spans[:, 0] / spans[:, 1]
    assert 0.24 < area.min() < 0.4 < 0.8 < area.max() <= 1.001
    assert 0.74 < stretch.min() < 0.85 < 1.18 < stretch.max() < 1.35
    np.testing.assert_allclose(result[..., 2], images[..., 2], rtol=1e-4)  # each from its own image


def test_a_shift_fills_the_rest_with_the_pictures_reflection(images):
    result = augmented(images, shift=0.25)
    moved = np.abs(result[:, 16, 16, 0] - images[:, 16, 16, 0]) / 150
    assert 0.15 < moved.max() < 0.27
    assert result.min() >= 49  # no black border


def test_erasing_after_a_shift_works_in_a_compiled_step(images):
    """A shift leaves the sides unknown there, which erasing computes with."""
    import tensorflow as tf

    given = ImageAugmentationParams(
        **{
            **OFF,
            "horizontal_flip": True,
            "quarter_turns": True,
            "crop_area": 0.5,
            "shift": 0.2,
            "erasing": 0.5,
        }
    )
    layer = image_augmentation.augmentation_layer(given, 0)
    # As in `fit`: the last batch may be smaller.
    signature = [tf.TensorSpec([None, SIDE, SIDE, 3])]
    result = tf.function(lambda batch: layer(batch, training=True), signature)(images)
    assert result.shape == images.shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("changes", [{"rand_augment": 0.5}, {"erasing": 1.0}])
def test_colours_stay_colours(images, changes):
    result = augmented(images, **changes)
    assert (result != images).any(axis=(1, 2, 3)).mean() > 0.8
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 255


def test_all_of_it_runs_in_a_graph_of_batches_of_any_size(images):
    given = ImageAugmentationParams(
        **{**OFF, "quarter_turns": True, "crop_area": 0.5, "shift": 0.1, "erasing": 0.5}
    )
    layer = image_augmentation.augmentation_layer(given, 0)
    layer.build((None, SIDE, SIDE, 3))
    signature = [tf.TensorSpec((None, SIDE, SIDE, 3))]
    run = tf.function(lambda batch: layer(batch, training=True), input_signature=signature)
    for count in (8, 5):
        assert run(images[:count]).shape == (count, SIDE, SIDE, 3)


def test_erasing_takes_as_many_images_as_its_probability_says(images):
    changed = (augmented(images, erasing=0.5) != images).any(axis=(1, 2, 3))
    assert 20 <= changed.sum() <= 44  # 32 expected, standard deviation 4
    share = (augmented(images, erasing=1.0) != images).any(axis=-1).mean(axis=(1, 2))
    assert 0.01 < share.min() < share.max() < 0.36


@pytest.mark.parametrize(("kind", "value"), [("mixup", 0.4), ("cutmix", 1.0)])
def test_labels_are_mixed_as_the_images_are(images, kind, value):
    layer = image_augmentation.mixture_layer(ImageAugmentationParams(**{**OFF, kind: value}), 0)
    # Every image of one colour: how much of each is in a mixture can be read off its mean.
    flat = np.repeat(np.linspace(0, 255, COUNT), SIDE * SIDE * 3).reshape(COUNT, SIDE, SIDE, 3)
    images, labels, weights = models._mixed(
        layer, flat.astype("float32"), np.eye(COUNT, dtype="float32"), None
    )
    assert weights is None
    labels = np.asarray(labels)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    assert (labels.max(axis=1) < 0.95).mean() > 0.2  # many are of two images
    means = np.asarray(images).mean(axis=(1, 2, 3))
    # CutMix cuts between pixels: its share of the label is off by a row and a column at most.
    np.testing.assert_allclose(means, labels @ np.linspace(0, 255, COUNT), atol=20)


def test_each_part_of_a_mixture_keeps_its_images_weight(images):
    layer = image_augmentation.mixture_layer(ImageAugmentationParams(**{**OFF, "mixup": 0.4}), 0)
    labels = np.eye(COUNT, dtype="float32")
    weights = np.linspace(0, 2, COUNT).astype("float32")
    _, mixed, mixed_weights = models._mixed(layer, images, labels, weights)
    parts = np.asarray(mixed) * np.asarray(mixed_weights)[:, None]
    # The weight of an image is spread over mixtures; here of one image with itself or another.
    shares = parts / np.maximum(weights, 1e-9)
    np.testing.assert_allclose(shares[:, 1:].sum(axis=1) + (shares[:, 0]), shares.sum(axis=1))
    own = np.diag(shares)[1:]
    other = np.array([np.delete(row, number).sum() for number, row in enumerate(shares)])[1:]
    pure = np.isclose(other, 0)
    np.testing.assert_allclose((own + other)[~pure & (shares[1:, 0] == 0)], 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.crop_area": 0}, "expected a fraction above 0, up to 1 (no crops), received 0"),
        ({"augment.shift": 2}, "expected a number from 0 to 1, received 2"),
        ({"augment.mixup": -1}, "expected 0 (off) or a number above 0, received -1"),
        ({"augment.mixup": 0.2, "augment.cutmix": 1}, "expected one of them to be 0"),
        ({"layer_decay": 0}, "expected a number above 0, up to 1 (one rate for all layers)"),
        ({"average_decay": 1}, "expected null (no average) or a number above 0 and below 1"),
        (
            {"seconds_budget": 60, "schedule": "inverse_time"},
            "expected constant or cosine with seconds_budget, received inverse_time",
        ),
    ],
)
def test_impossible_values_are_refused(changes, message):
    assert message in error_of("fine_tune", changes)
