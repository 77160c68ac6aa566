from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from stages.common import geometry, image_augmentation, models
from stages.common.image_augmentation import ImageAugmentationParams
from stages.common.training import loop
from tests.resized_parts import resized_by_pillow
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
    layer = image_augmentation.augmentation_layer(given, seed, images.shape[1])
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
    # Where a crop lies, from 0 (left, top) to 1 (right, bottom), of those with room to move.
    starts = (result[..., :2].min(axis=(1, 2)) - 50) / 150
    for start, span in zip(starts.T, spans.T, strict=True):
        places = (start / np.maximum(1 - span, 1e-6))[span < 0.9]
        assert -0.01 < places.min() < 0.1 < 0.3 < places.mean() < 0.7 < 0.9 < places.max() < 1.01


def test_a_crop_of_nearly_all_is_stretched_less_so_that_it_keeps_its_area(images):
    spans = np.ptp(augmented(images, crop_area=0.95)[..., :2], axis=(1, 2)) / 150
    assert 0.949 < spans.prod(axis=1).min() < 0.97


@pytest.mark.parametrize("side", [8, 16, 64])
def test_a_crop_is_resized_once(monkeypatch, side):
    """From the picture's own pixels to the network's, whether it shrinks or grows."""
    noise = np.random.default_rng(0).uniform(0, 255, (32, 16, 16, 3)).astype("float32")
    cropped, parts = geometry.cropped, []

    def spied(images, side, *part):
        parts.extend(np.asarray(one) for one in part)
        return cropped(images, side, *part)

    monkeypatch.setattr(geometry, "cropped", spied)
    given = ImageAugmentationParams(**{**OFF, "crop_area": 0.5})
    result = image_augmentation.augmentation_layer(given, 0, side)(noise, training=True)
    np.testing.assert_allclose(result, resized_by_pillow(noise, side, *parts), atol=5e-3)


def test_small_pictures_are_enlarged_before_turns_and_shears_interpolate():
    noise = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype("float32")
    given = ImageAugmentationParams(**{**OFF, "rand_augment": 0.2})
    for side, expected in [(8, 16), (64, 64)]:
        layer = image_augmentation.augmentation_layer(given, 0, side)
        assert layer(noise, training=True).shape == (64, expected, expected, 3)
        assert layer(noise, training=False).shape == noise.shape

    def turned(side):
        enlarged, changes = image_augmentation.augmentation_layer(given, 0, side).steps[1:]
        rotation = changes.changes()[4]
        return tf.image.resize(rotation(enlarged(noise, training=True)), (64, 64))

    assert np.std(turned(64)) > 1.1 * np.std(turned(16))


def test_a_shift_moves_by_whole_pixels_and_fills_the_rest_with_the_reflection():
    noise = np.random.default_rng(0).integers(0, 256, (256, 16, 24, 3)).astype("float32")
    result = augmented(noise, shift=0.125)
    mirrored = np.pad(noise, ((0, 0), (2, 2), (3, 3), (0, 0)), mode="symmetric")
    moves = Counter()
    for before, after in zip(mirrored, result, strict=True):
        (move,) = (
            (down, right)
            for down in range(5)
            for right in range(7)
            if np.array_equal(before[down : down + 16, right : right + 24], after)
        )
        moves[move] += 1
    assert len(moves) == 35  # by 2 pixels of 16 and 3 of 24, either way, in all combinations
    assert max(moves.values()) < 20  # 7.3 expected, standard deviation 2.7


@pytest.mark.parametrize(("shift", "limit"), [(0.01, 1), (1.0, 8)])
def test_the_smallest_shift_is_a_pixel_and_the_largest_the_whole_picture(shift, limit):
    """Of columns of their own colour: which one comes to lie at the edge tells the move."""
    columns = np.broadcast_to(np.arange(8.0)[:, None], (512, 8, 8, 3)).astype("float32")
    first = augmented(columns, shift=shift)[:, 0, :, 0]
    assert set(first[0]) <= set(range(8))
    mirrored = np.concatenate([np.arange(8), np.arange(8)[::-1]] * 2)
    starts = {tuple(mirrored[start : start + 8]): start for start in range(16)}
    found = {(starts[tuple(row.astype(int))] + 8) % 16 - 8 for row in first}
    expected = set(range(-limit, limit + 1))
    assert found == {(move + 8) % 16 - 8 for move in expected}


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
    layer = image_augmentation.augmentation_layer(given, 0, SIDE)
    # As in `fit`: the last batch may be smaller.
    signature = [tf.TensorSpec([None, SIDE, SIDE, 3])]
    result = tf.function(lambda batch: layer(batch, training=True), signature)(images)
    assert result.shape == images.shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("changes", [{"rand_augment": 0.5}, {"rand_augment": 1}, {"erasing": 1.0}])
def test_colours_stay_colours(images, changes):
    result = augmented(images, **changes)
    assert (result != images).any(axis=(1, 2, 3)).mean() > 0.8
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 255


def rand_augment(strength):
    given = ImageAugmentationParams(**{**OFF, "rand_augment": strength})
    return image_augmentation.augmentation_layer(given, 0, SIDE)


def differences(images, strength) -> np.ndarray:
    """What each of RandAugment's 13 changes adds to each image: (changes, *images.shape)."""
    changes = rand_augment(strength).steps[-1].changes()
    return np.stack([change(tf.constant(images)) - images for change in changes])


def test_weak_changes_are_small_whatever_is_drawn():
    """On a picture that auto contrast and equalization, which have no strength, hardly change."""
    ramp = np.tile(np.linspace(0, 250, SIDE), (SIDE, 1))
    picture = np.stack([ramp, ramp.T, ramp[::-1, ::-1]], axis=-1).astype("float32")
    images = np.repeat(picture[np.newaxis], 4 * COUNT, axis=0)

    def size(strength):
        return np.abs(augmented(images, rand_augment=strength) - images).mean(axis=(1, 2, 3))

    assert size(0.02).max() < 12
    assert size(0.02).mean() < 4 < 8 < size(0.3).mean() < size(1.0).mean()


def test_each_change_grows_with_its_strength(images):
    weak, middle, strong = [
        np.abs(differences(images, strength)).mean(axis=(1, 2, 3, 4))
        for strength in (0.02, 0.3, 1.0)
    ]
    steady = weak > 3
    assert steady.sum() == 2  # auto contrast and equalization
    np.testing.assert_array_equal(weak[steady], strong[steady])
    assert (weak < middle)[~steady].all()
    assert (middle < strong)[~steady].all()


def test_geometry_and_colours_go_both_ways(images):
    # Row, column and channel; geometry moves the picture along its ramp of red, or of green.
    shears, shifts, turn = [(10, 16, 0), (16, 10, 1)], [(16, 16, 0), (16, 16, 1)], (16, 28, 1)
    brightness, contrast, colour = (16, 16, 2), (16, 28, 0), (16, 28, 0)
    places = [*shears, *shifts, turn, brightness, contrast, colour]
    for change, (row, column, channel) in zip(differences(images, 0.3)[:8], places, strict=True):
        found = change[:, row, column, channel]
        assert found.min() < -3 < 3 < found.max()
        assert 16 < (found > 0).sum() < 48  # 32 expected, standard deviation 4


def test_auto_contrast_and_equalization_look_at_one_image_alone(images):
    images[1:] /= 2
    alone, together = differences(images[:1], 0.5), differences(images, 0.5)
    for number in (10, 12):
        np.testing.assert_array_equal(alone[number, 0], together[number, 0])


def test_images_of_a_batch_get_changes_of_their_own(images):
    """So weak that only auto contrast and equalization show: on 1 - (11 / 13)² = 28 % of them."""
    changed = np.abs(augmented(images, rand_augment=1e-6) - images).mean(axis=(1, 2, 3)) > 3
    assert 8 < changed.sum() < 29  # 18 expected, standard deviation 4


def test_rounding_errors_are_not_made_a_picture():
    """Shears leave some on a plain picture; auto contrast would make them black and white."""
    errors = np.random.default_rng(0).uniform(-1e-4, 1e-4, (COUNT, SIDE, SIDE, 3))
    plain = (101 + errors).astype("float32")
    np.testing.assert_allclose(augmented(plain, rand_augment=1e-6), 101, atol=0.1)


def test_what_is_drawn_follows_from_the_epoch(images):
    layer = rand_augment(0.5)
    callback = loop.epoch_seeds_callback()
    callback.set_model(layer)

    def epoch(number):
        callback.on_epoch_begin(number)
        return np.asarray(layer(images, training=True))

    first, second = epoch(0), epoch(1)
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.8
    np.testing.assert_array_equal(epoch(0), first)


def test_all_of_it_runs_in_a_graph_of_batches_of_any_size(images):
    changes = {"crop_area": 0.5, "shift": 0.1, "rand_augment": 0.5, "erasing": 0.5}
    given = ImageAugmentationParams(**{**OFF, "quarter_turns": True, **changes})
    layer = image_augmentation.augmentation_layer(given, 0, SIDE)
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


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0.05, 0.4, 1.0])
def test_shares_of_mixtures_are_spread_as_alpha_says(images, kind, alpha):
    layer = image_augmentation.mixture_layer(ImageAugmentationParams(**{**OFF, kind: alpha}), 0)
    own = [
        np.diag(models._mixed(layer, images, np.eye(COUNT, dtype="float32"), None)[1])
        for _ in range(12)
    ]
    # The variance of Beta(α, α).
    assert np.concatenate(own).var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.012)


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
        ({"augment.mixup": -1}, "expected 0 (off) or a number of 0.05 or more, received -1"),
        ({"augment.mixup": 0.01}, "expected 0 (off) or a number of 0.05 or more, received 0.01"),
        ({"augment.cutmix": 1e-6}, "expected 0 (off) or a number of 0.05 or more, received 1e-06"),
        ({"augment.mixup": 0.2, "augment.cutmix": 1}, "expected one of them to be 0"),
        ({"layer_decay": 0}, "expected a number above 0, up to 1 (one rate for all layers)"),
        ({"average_decay": 1}, "expected null (no average) or a number above 0 and below 1"),
        (
            {"seconds_budget": 60, "image_sizes": [[1, 64], [9, 128]]},
            "image_sizes: expected null, or one entry from epoch 1 on, with seconds_budget, "
            "received epochs [1, 9]: time may be up before a later one begins",
        ),
        (
            {"seconds_budget": 60, "gradual_unfreezing": [[2, "all"]]},
            "gradual_unfreezing: expected null, or one entry from epoch 1 on, with seconds_budget",
        ),
        (
            {"seconds_budget": 60, "schedule": "inverse_time"},
            "expected constant or cosine with seconds_budget, received inverse_time",
        ),
    ],
)
def test_impossible_values_are_refused(changes, message):
    assert message in error_of("fine_tune", changes)
