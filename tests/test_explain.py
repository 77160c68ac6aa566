import keras
import numpy as np
import pytest

from stages.common import backbones, explain, heads, models

RED, GREEN, BLUE = range(3)


def color_classifier(kind: str, logits, temperature: float = 1.0, conv_kernel=None):
    """A classifier whose feature map is the picture itself, 8 × 8 mean colours from 0 to 1.

    Args:
        kind: of head.
        logits: (3 colours, classes): the weight of each colour's mean for each class.
        temperature: of the probabilities.
        conv_kernel: (7, 7), of the conv head; None: all 1.
    """
    inputs = keras.Input((32, 32, 3))
    means = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(inputs))
    backbone = keras.Model(inputs, means, name="backbone")
    logits = np.asarray(logits, np.float32)
    shape = (8, 8, 3) if kind == "conv" else (3,)
    head = heads.build(kind, shape, logits.shape[1], hidden_units=[3], dropout=0.0)
    if kind == "linear":
        head.get_layer("logits").set_weights([logits, np.zeros(logits.shape[1])])
    else:
        hidden = np.eye(3)
        if kind == "conv":
            kernel = np.zeros((7, 7, 3, 7))
            for color in range(3):
                kernel[:, :, color, color] = 1 if conv_kernel is None else conv_kernel
            head.get_layer("head_conv").set_weights([kernel, np.zeros(7)])
            hidden = np.eye(7, 3)
        head.get_layer("head_hidden").set_weights([hidden, np.zeros(3)])
        head.get_layer("logits").set_weights([logits, np.zeros(logits.shape[1])])
    return models.assemble(models.with_any_size(backbone), head, temperature)


def painted(*squares) -> np.ndarray:
    """A black picture (1, 32, 32, 3) with (rows, columns, colour, value) in cells of the map."""
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    for (top, bottom), (left, right), color, value in squares:
        picture[0, 4 * top : 4 * bottom, 4 * left : 4 * right, color] = value
    return picture


@pytest.mark.parametrize("kind", ["linear", "dense", "conv"])
def test_heat_lies_where_the_evidence_was_put(kind):
    model = color_classifier(kind, [[1, 0], [0, 1], [0, 0]])
    # Evidence for the first class at the top left, for the second one at the bottom right, and
    # blue, which speaks for neither, at the top right.
    picture = painted(
        ((0, 3), (0, 3), RED, 255), ((6, 8), (5, 8), GREEN, 255), ((0, 3), (5, 8), BLUE, 255)
    )
    first, second = explain.heat_maps(model, np.repeat(picture, 2, axis=0), np.array([0, 1]), 2)
    expected = np.zeros((2, 8, 8))
    expected[0, :3, :3] = 1
    expected[1, 6:, 5:] = 1
    np.testing.assert_allclose(np.stack([first, second]), expected, atol=1e-6)


def test_heat_is_the_weighted_sum_of_the_map_cut_off_at_zero():
    """Equation 2 by hand: 2 · red − 1 · green, then its positive part over its maximum."""
    model = color_classifier("linear", [[2, 0], [-1, 0], [0, 0]], temperature=7.0)
    picture = painted(
        ((0, 1), (0, 8), RED, 255), ((0, 1), (4, 8), GREEN, 255), ((5, 6), (0, 8), GREEN, 255)
    )
    (heat,) = explain.heat_maps(model, picture, np.array([0]), 1)
    expected = np.zeros((8, 8))
    expected[0, :4], expected[0, 4:] = 1, 0.5  # 2 of 2, and 2 − 1 of 2; where green is alone, −1
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_a_channels_weight_is_the_mean_of_its_gradient_over_the_map():
    """Equation 1: the head looks at the middle alone, yet the heat is where the channel is."""
    middle = np.zeros((7, 7))
    middle[3, 3] = 1
    model = color_classifier("conv", [[1, 0], [0, 1], [0, 0]], conv_kernel=middle)
    picture = painted(((3, 5), (3, 5), RED, 51), ((0, 1), (0, 1), RED, 255))
    (heat,) = explain.heat_maps(model, picture, np.array([0]), 1)
    assert heat[0, 0] == pytest.approx(1)
    np.testing.assert_allclose(heat[3:5, 3:5], 0.2, rtol=1e-5)


@pytest.mark.parametrize("added", [-3, 5])
def test_what_is_added_to_all_logits_is_no_evidence(added):
    """A softmax ignores it; the class's logit alone would have it for red, or for nothing."""
    weights = np.array([[1.0, 0, 0], [0, 1, 1], [0, 0, 2]])
    picture = painted(
        ((0, 3), (0, 3), RED, 255), ((6, 8), (5, 8), GREEN, 255), ((0, 3), (5, 8), BLUE, 255)
    )
    pictures, classes = np.repeat(picture, 3, axis=0), np.arange(3)
    plain, shifted = (
        explain.heat_maps(color_classifier("linear", one), pictures, classes, 3)
        for one in (weights, weights + added)
    )
    assert plain.max(axis=(1, 2)).tolist() == [1, 1, 1]
    np.testing.assert_allclose(shifted, plain, atol=1e-5)


def test_heat_is_zero_where_nothing_speaks_for_the_class():
    model = color_classifier("linear", [[-1, 1], [-1, 1], [-1, 1]])
    (heat,) = explain.heat_maps(model, painted(((2, 4), (2, 4), RED, 200)), np.array([0]), 1)
    np.testing.assert_array_equal(heat, 0)


@pytest.mark.parametrize("kind", heads.HEADS)
def test_batches_singles_and_a_reloaded_model_agree(toy_classifier, tmp_path, kind):
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    classes = np.array([0, 1, 2, 0, 1])
    model = toy_classifier(kind, temperature=2.0)
    together = explain.heat_maps(model, images, classes, 5)
    assert together.shape == (5, 8, 8)
    assert together.dtype == np.float32
    assert together.min() == 0
    assert together.max() == 1
    np.testing.assert_allclose(explain.heat_maps(model, images, classes, 2), together, atol=1e-5)
    models.save(model, tmp_path / "model.keras")
    loaded = models.load(tmp_path / "model.keras")
    np.testing.assert_allclose(explain.heat_maps(loaded, images, classes, 1), together, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("efficientnet_lite0", "resnet50", "tiny"),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_the_last_feature_map_of_any_backbone_is_found(name):
    backbone = backbones.build(name, None, 64)
    head = heads.build("linear", (backbone.output_shape[-1],), 3, hidden_units=[1], dropout=0)
    model = models.assemble(models.with_any_size(backbone), head)
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    heat = explain.heat_maps(model, np.repeat(image, 3, axis=0), np.arange(3), 2)
    assert heat.shape == (3, *backbone.output_shape[1:3])
    assert heat.min() >= 0
    # The three classes' weights are random: for one of them at least something speaks.
    assert heat.max() == 1


def test_a_backbone_without_a_feature_map_is_refused():
    inputs = keras.Input((32, 32, 3))
    backbone = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs), name="backbone")
    head = heads.build("linear", (3,), 2, hidden_units=[1], dropout=0)
    images = keras.Input((None, None, 3), name="images")
    resized = keras.layers.Resizing(32, 32, name="resize")(images)
    model = keras.Model(images, head(backbone(resized)))
    with pytest.raises(ValueError, match=r"rows, columns, channels\), received \(None, 3\)"):
        explain.heat_maps(model, np.zeros((1, 32, 32, 3), np.uint8), np.array([0]), 1)


def test_overlay_has_the_pictures_size_and_colours_only_what_is_hot():
    picture = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[:2, :3] = 1
    laid_over = explain.overlay(picture, heat)
    assert laid_over.shape == picture.shape
    assert laid_over.dtype == np.uint8
    cold, hot = laid_over[-1, -1], laid_over[0, 0]
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    np.testing.assert_allclose(cold, grey, atol=1)  # the picture's own colours mean nothing here
    assert hot[0] > hot[2] + 30  # warm
