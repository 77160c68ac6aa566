import numpy as np
import pytest

from stages.common import augment
from stages.extract_features import ExtractFeaturesParams, feature_function


def allowed(horizontal=False, vertical=False, turns=False) -> augment.AugmentParams:
    return augment.AugmentParams(
        horizontal_flip=horizontal, vertical_flip=vertical, quarter_turns=turns
    )


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("moves", "count"),
    [
        ((False, False, False), 1),
        ((True, False, False), 2),
        ((False, True, False), 2),
        ((True, True, False), 4),
        ((False, False, True), 4),
        ((True, False, True), 8),
        ((True, True, True), 8),
    ],
)
def test_symmetries_are_the_group_that_the_moves_generate(moves, count, images):
    symmetries = allowed(*moves).symmetries
    assert symmetries[0] == augment.IDENTITY
    pictures = {
        augment.apply(images[:1], symmetry).numpy().tobytes()
        if hasattr(augment.apply(images[:1], symmetry), "numpy")
        else images[:1].tobytes()
        for symmetry in symmetries
    }
    assert len(symmetries) == len(pictures) == count


def test_quarter_turns_are_those_of_numpy(images):
    turned = {
        np.asarray(augment.apply(images, symmetry)).tobytes()
        for symmetry in allowed(turns=True).symmetries
    }
    assert turned == {np.rot90(images, k, axes=(1, 2)).tobytes() for k in range(4)}


def test_random_layer_gives_each_symmetry_its_share_and_leaves_inference_alone(images):
    symmetries = allowed(True, True, True).symmetries
    layer = augment.random_symmetry_layer(symmetries, seed=3)
    np.testing.assert_array_equal(layer(images, training=False), images)
    result = np.asarray(layer(images, training=True))
    variants = np.stack([np.asarray(augment.apply(images, kind)) for kind in symmetries])
    matches = (variants == result).all(axis=(2, 3, 4))  # (symmetries, images)
    assert (matches.sum(axis=0) == 1).all()
    # 400 images in 8 kinds: 50 each, standard deviation 6.6.
    assert 25 <= matches.sum(axis=1).min() <= matches.sum(axis=1).max() <= 75
    again = np.asarray(augment.random_symmetry_layer(symmetries, seed=3)(images, training=True))
    np.testing.assert_array_equal(result, again)
    assert not np.array_equal(result, np.asarray(layer(images, training=True)))


def test_random_layer_makes_no_move_that_is_not_allowed(images):
    layer = augment.random_symmetry_layer(allowed(horizontal=True).symmetries, seed=0)
    result = np.asarray(layer(images, training=True))
    same = (result == images).all(axis=(1, 2, 3))
    flipped = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | flipped).all()
    assert 150 < flipped.sum() < 250


def test_views_are_the_features_of_the_symmetries(toy_backbone, images):
    symmetries = allowed(horizontal=True).symmetries
    views = feature_function(toy_backbone, "pooled", symmetries)(images[:2])
    assert views.shape == (2, 2, 16)
    assert views.dtype == np.float16
    plain = feature_function(toy_backbone, "pooled", [augment.IDENTITY])
    np.testing.assert_allclose(views[:, 0], plain(images[:2])[:, 0], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(
        views[:, 1], plain(images[:2, :, ::-1].copy())[:, 0], rtol=2e-3, atol=1e-3
    )
    maps = feature_function(toy_backbone, "map", [augment.IDENTITY])(images[:2])
    assert maps.shape == (2, 1, 8, 8, 16)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), plain(images[:2]), rtol=5e-3, atol=1e-3)


def test_more_views_than_symmetries_are_refused():
    with pytest.raises(ValueError, match=r"expected at most 2.*received 3"):
        ExtractFeaturesParams(
            features="pooled",
            layers=None,
            views=3,
            augment=allowed(horizontal=True),
            batch_size=8,
            engine="tensorflow",
        )
