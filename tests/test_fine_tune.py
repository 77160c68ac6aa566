import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common import augment, backbones, heads, models, params
from stages.common.run import UserError
from stages.common.training import loop, optimizers
from stages.fine_tune import (
    FineTuneParams,
    largest_side,
    rate_factors,
    rate_factors_by_epoch,
    training_side,
    unfreeze,
    unfrozen_layers,
)
from tests import ROOT
from tests.training_toys import parameters


@pytest.mark.parametrize(
    ("choice", "norm_trains", "changing"),
    [
        ("none", False, set()),
        ("all", False, {"block0_conv", "block1_conv"}),
        ("all", True, {"block0_conv", "block0_norm", "block1_conv", "block1_norm"}),
        (3, False, {"block1_conv"}),
        ("block1_conv", True, {"block1_conv", "block1_norm"}),
    ],
)
def test_a_step_changes_the_unfrozen_layers_and_no_batch_norm_statistics(
    toy_classifier, choice, norm_trains, changing
):
    model = toy_classifier("conv")
    unfreeze(model, choice, norm_trains)
    nothing = augment.random_symmetry_layer([augment.IDENTITY], seed=0)
    trained = models.training_model(model, nothing, [32, 32, 3])
    optimizers.compile_model(trained, parameters(learning_rate=0.1), 1)
    layers = {layer.name: layer for layer in models.leaf_layers(model)}
    before = {name: [w.copy() for w in layer.get_weights()] for name, layer in layers.items()}
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = np.eye(3, dtype="float32")[np.arange(8) % 3]
    trained.train_on_batch(images, labels)
    changed = {
        name
        for name, layer in layers.items()
        for old, new in zip(before[name], layer.get_weights(), strict=True)
        if not np.array_equal(old, new)
    }
    assert {name for name in changed if name.startswith("block")} == changing
    assert "logits" in changed
    assert "head_norm" not in changed
    for name in ("block0_norm", "block1_norm", "head_norm"):
        np.testing.assert_array_equal(before[name][2:], layers[name].get_weights()[2:])


def test_unknown_layer_names_the_candidates():
    with pytest.raises(UserError, match=r"'block1_conf'.*did you mean 'block1_conv'.*stem"):
        unfrozen_layers("block1_conf", ["stem", "block1_conv"], {})
    with pytest.raises(UserError, match=r"expected 0 to 2.*received 3"):
        unfrozen_layers(3, ["stem", "block1_conv"], {})


UNFROZEN = {
    "block1": ["block1_conv", "block1_relu"],
    "block0_norm": ["block0_norm", "block0_relu", "block1_conv", "block1_relu"],
    "regex:_conv$": ["block0_conv", "block1_conv"],
    2: ["block1_conv", "block1_relu"],
}


@pytest.mark.parametrize("choice", UNFROZEN)
def test_layers_are_unfrozen_by_block_by_name_by_pattern_and_by_number(choice):
    names = ["block0_conv", "block0_norm", "block0_relu", "block1_conv", "block1_relu"]
    of_block = {"block0": names[:3], "block1": names[3:]}
    assert unfrozen_layers(choice, names, of_block) == set(UNFROZEN[choice])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("regex:(", "expected a regular expression after regex:, received '\\('"),
        ("regex:top", "a pattern that some layer's name has, received 'top'; the layers are stem"),
        ("blok1", "did you mean 'block1'.*the blocks are block1; the layers are stem"),
    ],
)
def test_a_choice_that_unfreezes_nothing_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        unfrozen_layers(choice, ["stem", "block1_conv"], {"block1": ["block1_conv"]})


def test_layers_of_a_model_inside_belong_to_its_block(toy_classifier):
    images = keras.Input((32, 32, 3))
    inside = keras.Sequential([keras.layers.Conv2D(4, 2, 2, name="shrink_conv")], name="shrink")
    x = inside(keras.layers.Conv2D(4, 2, 2, name="stem_conv")(images))
    backbone = keras.Model(images, keras.layers.Conv2D(16, 1, name="last")(x), name="backbone")
    head = toy_classifier("linear").get_layer("head")
    model = models.assemble(models.with_any_size(backbone), head)
    layers = {layer.name: layer for layer in models.leaf_layers(model.get_layer("backbone"))}
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    for choice, trainable in (("shrink", {"shrink_conv", "last"}), ("last", {"last"})):
        unfreeze(model, choice, True)
        with_weights = {name for name, layer in layers.items() if layer.weights}
        assert {name for name in with_weights if layers[name].trainable} == trainable
        unfreeze(model, "all", True)
        given = fine_tune_params(gradual_unfreezing=[[1, choice]])
        variables = trained.trainable_variables
        factors = rate_factors_by_epoch(variables, model.get_layer("backbone"), given)(1)
        paired = zip(variables, factors, strict=True)
        moving = {variable.path.split("/")[-2] for variable, factor in paired if factor}
        assert moving == {*trainable, "logits"}


# The tiny network has two blocks; the head keeps the whole rate.
LAYER_FACTORS = {"logits": 1.0, "block1_conv": 0.5, "block0_conv": 0.25}


def test_rates_fall_block_by_block_towards_the_input(toy_classifier):
    model = toy_classifier("conv")
    unfreeze(model, "all", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    factors = rate_factors(trained.trainable_variables, backbone, 0.5)
    names = [variable.path for variable in trained.trainable_variables]
    of = {name: factors[[name in path for path in names].index(True)] for name in LAYER_FACTORS}
    assert of == LAYER_FACTORS


def fine_tune_params(**changes) -> FineTuneParams:
    content = params.read(ROOT / "params.yaml")
    content["fine_tune"].update(changes)
    return params.check(content, "fine_tune", FineTuneParams)


def test_gradual_unfreezing_moves_what_its_turn_has_come_for(toy_classifier):
    model = toy_classifier("linear")
    unfreeze(model, "all", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    given = fine_tune_params(
        gradual_unfreezing=[[2, "block1"], [4, "all"]], layer_decay=0.5, learning_rate=0.01
    )
    factors = rate_factors_by_epoch(trained.trainable_variables, backbone, given)
    assert factors(4) == rate_factors(trained.trainable_variables, backbone, 0.5)
    assert set(factors(1)) == {0.0, 1.0}
    optimizers.compile_model(trained, given, 4, factors)
    layers = {"logits": model.get_layer("head").get_layer("logits")} | {
        name: backbone.get_layer(name) for name in ("block0_conv", "block1_conv")
    }
    statistics = backbone.get_layer("block1_norm").get_weights()[2:]
    moved = {}
    for epoch in (1, 2, 3, 4):
        before = {name: layer.get_weights() for name, layer in layers.items()}
        trained.optimizer.begin_epoch(epoch)
        # The schedule begins at 0, so that it is the second step that moves.
        for _ in range(2):
            trained.train_on_batch(*eight_images())
        moved[epoch] = {
            name
            for name, layer in layers.items()
            if any(np.any(a != b) for a, b in zip(layer.get_weights(), before[name], strict=True))
        }
    assert moved == {
        1: {"logits"},
        2: {"logits", "block1_conv"},
        3: {"logits", "block1_conv"},
        4: {"logits", "block1_conv", "block0_conv"},
    }
    still = backbone.get_layer("block1_norm").get_weights()[2:]
    for old, new in zip(statistics, still, strict=True):
        np.testing.assert_array_equal(old, new)


def eight_images():
    """(images, one-hot labels) of noise."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")
    return images, np.eye(3, dtype="float32")[np.arange(8) % 3]


def test_steps_of_unfreezing_and_of_sizes_are_checked():
    for steps in ([[2, "none"], [1, "all"]], [[0, "all"]], [[99, "all"]]):
        with pytest.raises(UserError, match=r"gradual_unfreezing: expected epochs that rise, from"):
            fine_tune_params(gradual_unfreezing=steps)
        sizes = [[epoch, 64] for epoch, _ in steps]
        with pytest.raises(UserError, match=r"image_sizes: expected epochs that rise, from"):
            fine_tune_params(image_sizes=sizes)
    with pytest.raises(UserError, match=r"image_sizes"):
        fine_tune_params(image_sizes=[[1, 0]])
    with pytest.raises(UserError, match=r"unfreeze: .*received 'none': no layer would ever"):
        fine_tune_params(gradual_unfreezing=[[1, "none"], [4, "all"]], unfreeze="none")
    with pytest.raises(UserError, match=r"gradual_unfreezing.*expected null, or a list of \[epoch"):
        fine_tune_params(gradual_unfreezing="all")
    with pytest.raises(UserError, match=r"layers whose turn has not come"):
        fine_tune_params(gradual_unfreezing=[[1, "none"]], batch_norm_statistics="updated")


def test_statistics_of_unfrozen_norms_move_where_they_are_asked_to(toy_classifier):
    model = toy_classifier("linear")
    unfreeze(model, "block1", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(
        model, keras.layers.Identity(), [32, 32, 3], update_statistics=True
    )
    optimizers.compile_model(trained, fine_tune_params(batch_norm_statistics="updated"), 4)
    norms = {name: backbone.get_layer(name) for name in ("block0_norm", "block1_norm")}
    before = {name: norm.get_weights()[2:] for name, norm in norms.items()}
    trained.train_on_batch(*eight_images())
    moved = {
        name: all(np.any(a != b) for a, b in zip(norm.get_weights()[2:], before[name], strict=True))
        for name, norm in norms.items()
    }
    assert moved == {"block0_norm": False, "block1_norm": True}
    # Out of training the statistics that moved are used, as the saved model uses them.
    images, _ = eight_images()
    np.testing.assert_allclose(
        trained(images, training=False),
        models.logits_of(model)(images, training=False),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(UserError, match=r"batch_norm_statistics: expected frozen, since"):
        fine_tune_params(batch_norm_statistics="updated", batch_norm_trainable=False)


def test_images_are_smaller_where_an_epoch_says_so_and_whole_out_of_training(toy_classifier):
    model = toy_classifier("linear")
    sizes = fine_tune_params(image_sizes=[[2, 16], [4, 32]]).image_sizes
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3], image_sizes=sizes)
    images, _ = eight_images()
    whole = model.get_layer("head")(
        tf.reduce_mean(model.get_layer("backbone")(images, training=False), axis=(1, 2))
    )
    # The same weights behind an input of 16 pixels.
    smaller = backbones.build("tiny", None, 16)
    smaller.set_weights(model.get_layer("backbone").get_weights())
    maps = smaller(tf.image.resize(images, (16, 16), antialias=True), training=False)
    of_smaller = model.get_layer("head")(tf.reduce_mean(maps, axis=(1, 2)))
    for epoch, expected in ((1, whole), (2, of_smaller), (3, of_smaller), (4, whole)):
        trained.begin_epoch(epoch)
        received = trained(images, training=True)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trained(images, training=False), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_layers_of_several_depths_train_on_smaller_images(kind):
    backbone = models.at_layers(
        models.with_any_size(backbones.build("tiny", None, 32)), ["block0_relu", "block1_relu"]
    )
    channels = [feature_map.shape[-1] for feature_map in backbone.output]
    shape = (8, 8, sum(channels)) if kind == "residual" else (sum(channels),)
    head = heads.build(kind, shape, 3, hidden_units=[8], dropout=0.0)
    model = models.assemble(backbone, head)
    trained = models.training_model(
        model, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16), (2, 32)]
    )
    optimizers.compile_model(trained, fine_tune_params(image_sizes=[[1, 16], [2, 32]]), 4)
    images, labels = eight_images()
    for epoch in (1, 2):
        trained.begin_epoch(epoch)
        assert np.isfinite(trained.train_on_batch(images, labels)[0])


def test_a_network_of_one_size_says_that_it_is_one(toy_classifier):
    model = toy_classifier("linear")
    images = keras.Input((32, 32, 3))
    flat = keras.layers.Dense(16)(keras.layers.Flatten()(images))
    backbone = keras.Model(images, keras.layers.Reshape((1, 1, 16))(flat), name="backbone")
    fixed = models.assemble(models.with_any_size(backbone), model.get_layer("head"))
    with pytest.raises(UserError, match=r"image_sizes: this network, of 32 pixels, or its"):
        models.training_model(fixed, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16)])


def test_a_head_that_needs_larger_maps_says_so_before_it_trains(toy_classifier):
    model = toy_classifier("conv")  # 7 by 7 on 8 by 8
    with pytest.raises(UserError, match=r"image_sizes: this network.*or its head does not take"):
        models.training_model(model, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16)])


@pytest.mark.parametrize(
    ("shape", "crop_area", "side"),
    [
        ([300, 300, 3], 0.6, 300),
        ([32, 32, 3], 1.0, 32),
        # Crops are cut from all pixels that are there, whatever the pictures' shapes.
        ([240, 300, 3], 0.6, 300),
        (None, 0.6, 300),
        (None, 1.0, 192),
    ],
)
def test_training_images_come_as_squares(shape, crop_area, side):
    assert training_side(shape, 192, 300, crop_area) == side


@pytest.mark.parametrize(
    ("image_sizes", "expected"),
    [(None, 192), ([(1, 160)], 160), ([(1, 128), (4, 176)], 176), ([(3, 96)], 192)],
)
def test_the_largest_side_that_training_sees(image_sizes, expected):
    assert largest_side(image_sizes, 192) == expected


def test_training_at_two_sizes_lowers_the_loss(toy_classifier, tmp_path):
    model = toy_classifier("linear")
    trained = models.training_model(
        model,
        keras.layers.Identity(),
        [32, 32, 3],
        image_sizes=[(1, 16), (3, 32)],
    )
    given = parameters(learning_rate=0.003, epochs=6)
    images, labels = eight_images()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    optimizers.compile_model(trained, given, 1)
    history = loop.fit(
        trained,
        given,
        make_training_batches=lambda first: data.repeat(given.epochs - first),
        validation_batches=data,
        images_per_epoch=8,
        backup=tmp_path / "backup",
    )
    assert history[-1]["val_loss"] < history[0]["val_loss"]
